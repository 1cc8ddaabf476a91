"""What the Hydra mains share: where the configs lie, and one clear message for each kind of mistake."""

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def program(name: str) -> str:
    """Return how a user starts a command: `bitplanes NAME`, or `python -m experiments.NAME` in a clone."""
    installed = (CONFIGS.parent / "__main__.py").exists()  # the configs lie within the package `bitplanes`
    return f"bitplanes {name}" if installed else f"python -m experiments.{name}"


def console() -> Console:
    """Return a console for tables: as wide as the terminal, or wide enough where output goes to a file."""
    return Console() if sys.stdout.isatty() else Console(width=120)


def _valid_keys(config_name: str, key: str) -> list[str]:
    """Return the dotted options that stand where `key` was looked for."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        node: Any = hydra.compose(config_name)
    prefix = ""
    for part in key.split(".")[:-1]:
        if not isinstance(node, DictConfig) or part not in node:
            break
        node, prefix = OmegaConf.select(node, part), f"{prefix}{part}."
    return [f"{prefix}{name}" for name in node] if isinstance(node, DictConfig) else []


def _explain(error: BaseException, config_name: str, overrides: Sequence[str]) -> str:
    text = str(error)
    both = f"{text}\n{error.__cause__}"
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return str(error.__cause__)
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        if f"'{key.split('.')[-1]}'" in both and "not in struct" in both:
            valid = _valid_keys(config_name, key)
            close = difflib.get_close_matches(key, valid, 1)
            guess = f" Did you mean {close[0]}?" if close else ""
            return f"there is no option {key!r}.{guess} Options there: {', '.join(valid)}"
    return both if error.__cause__ and str(error.__cause__) not in text else text


def run(task: Callable[[DictConfig], Any], config_name: str, expected: tuple[type[Exception], ...] = ()) -> None:
    """Compose the config, run the task, and turn mistakes into one message and exit status 2.

    expected: errors of the task that a message explains fully; all others keep their traceback. HYDRA_FULL_ERROR=1
    keeps every traceback.
    """
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra re-raises instead of exiting, so that the message can be ours
    main = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(task)
    try:
        main()
    except (HydraException, OmegaConfBaseException, *expected) as error:
        if full:
            raise
        print(f"error: {_explain(error, config_name, sys.argv[1:])}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
