"""What the Hydra mains share: where the configs lie, help, and one clear message for each kind of mistake."""

import errno
import functools
import json
import os
import re
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from experiments.command_help import CONFIGS as CONFIGS
from experiments.command_help import composed, help_text
from experiments.config_values import ConfigError, check_command_numbers, did_you_mean
from experiments.hydra_versions import VERSION_BASE as VERSION_BASE

# Each job of a sweep that fails leaves a file in the folder that this variable names, from whatever process it runs in.
_FAILED_JOBS = "BITPLANES_FAILED_JOBS"

# Options that name a file which a command writes at its end.
_WRITTEN = ("output", "costs_file", "sheet")

# Hydra's own folders, and what to use instead.
_FOLDER_OPTIONS = {
    "hydra.run.dir": "experiments.train writes to run_dir=FOLDER, other commands to output=FILE",
    "hydra.sweep.dir": "name each run's folder by its options: run_dir='FOLDER/${quantizer.name}/seed${seed}'",
    "hydra.sweep.subdir": "name each run's folder by its options: run_dir='FOLDER/${quantizer.name}/seed${seed}'",
    "hydra.job.chdir": "paths are those of the folder where the command starts",
}


def program(name: str) -> str:
    """Return how a user starts a command: `bitplanes NAME`, or `python -m experiments.NAME` in a clone."""
    installed = (CONFIGS.parent / "__main__.py").exists()  # the configs lie within the package `bitplanes`
    return f"bitplanes {name}" if installed else f"python -m experiments.{name}"


def console() -> Console:
    """Return a console for tables: as wide as the terminal, or wide enough where output goes to a file."""
    return Console() if sys.stdout.isatty() else Console(width=120)


def print_what_the_terminal_knows() -> None:
    """Let characters that the encoding of standard output lacks come out as `?` instead of ending the command."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


def _valid_keys(config_name: str, key: str, others: Sequence[str], folder: str | None) -> list[str]:
    """Return the dotted options that stand where `key` was looked for, with the other overrides in force."""
    try:
        node: Any = composed(config_name, others, folder)
    except HydraException:  # a second mistake
        node = composed(config_name, [], folder)
    prefix = ""
    for part in key.split(".")[:-1]:
        if not isinstance(node, DictConfig) or part not in node:
            break
        node, prefix = OmegaConf.select(node, part), f"{prefix}{part}."
    names = node if isinstance(node, DictConfig) else []
    return [f"{prefix}{name}" for name in names if name not in ("_target_", "_partial_")]


def _explain(error: BaseException, config_name: str, overrides: Sequence[str], folder: str | None) -> str:
    text = str(error)
    both = f"{text}\n{error.__cause__}"
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return str(error.__cause__)
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        if f"'{key.split('.')[-1]}'" in both and "not in struct" in both:
            valid = _valid_keys(config_name, key, [other for other in overrides if other != override], folder)
            text = f"there is no option {key!r}.{did_you_mean(key, valid)} Options there: {', '.join(valid) or 'none'}"
            if key.startswith("trainer."):
                text += f". Any argument of Lightning's Trainer is given with a plus: +{override}"
            return text
        if text.startswith(f"Multiple values for {key}."):
            return f"{key} is there already: give it without the plus, {override.lstrip('+')}"
    if lacking := re.search(r"Could not find 'hydra/(launcher|sweeper)/(\w+)'", both):
        extra = "ray" if lacking[2] == "ray" else "launchers"
        return f"{lacking[1]} {lacking[2]} is not installed: pip install 'bitplanes[{extra}]'"
    return both if error.__cause__ and str(error.__cause__) not in text else text


def _refuse_folder_options(overrides: Sequence[str]) -> None:
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in _FOLDER_OPTIONS and not (key == "hydra.job.chdir" and value.lower() == "false"):
            raise ConfigError(f"{key} cannot be given: {_FOLDER_OPTIONS[key]}")


def _check_written(config: DictConfig) -> None:
    """Raise ConfigError before a task begins if a file that it writes at its end could not be written."""
    for key in _WRITTEN:
        if not isinstance(value := OmegaConf.select(config, key), str):
            continue
        file = Path(value)
        try:
            if file.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            if not file.exists() or file.is_file():  # /dev/null is neither
                there = next(folder for folder in file.absolute().parents if folder.exists())
                tempfile.TemporaryFile(dir=there).close()
        except OSError as error:
            raise ConfigError(f"{key}={value} cannot be written: {error.strerror}") from error


class _Job:
    """A task whose foreseen mistakes do not pass through Hydra, which would print its own line for each.

    One of a single run is kept in `mistake`. A job of a sweep notes that it failed, lets the other jobs run and returns
    nan, which is no value to a sweeper that searches.
    """

    def __init__(
        self, task: Callable[[DictConfig], Any], known: tuple[type[Exception], ...], config_name: str | None = None
    ):
        functools.update_wrapper(self, task)
        self._task, self._known = task, known
        self._defaults: Any = {}
        if config_name is not None:
            self._defaults = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{config_name}.yaml"))
        self.mistake: Exception | None = None

    def __call__(self, config: DictConfig) -> Any:
        sweeps = HydraConfig.get().mode == RunMode.MULTIRUN
        try:
            check_command_numbers(config, self._defaults)
            _check_written(config)
            return self._task(config)
        except self._known as error:
            if not sweeps:
                self.mistake = error
                return None
            return self._note(str(error), known=True, config=config)
        except Exception as error:
            if not sweeps:
                raise
            traceback.print_exc()
            return self._note(f"{type(error).__name__}: {error}", known=False, config=config)

    def _note(self, text: str, known: bool, config: DictConfig) -> Any:
        job = HydraConfig.get()
        note = {"number": job.job.num, "job": " ".join(job.overrides.task), "text": text, "known": known}
        print(f"failed: {note['job']}: {text}", file=sys.stderr)
        file = Path(os.environ[_FAILED_JOBS]) / f"{uuid.uuid4().hex}.json"
        file.write_text(json.dumps(note), encoding="utf-8")
        count = len(OmegaConf.select(config, "objectives", default=[0]))
        return float("nan") if count == 1 else (float("nan"),) * count


def _report_failed_jobs(folder: Path) -> int:
    """Print every job that failed; return the exit status: 0, 2, or 1 if one failed for a reason nobody foresaw."""
    notes = sorted(
        (json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")), key=lambda n: n["number"]
    )
    if not notes:
        return 0
    lines = [f"  {note['job']}: {note['text']}" for note in notes]
    print("\n".join([f"error: of the sweep's jobs {len(notes)} failed:", *lines]), file=sys.stderr)
    return 2 if all(note["known"] for note in notes) else 1


def run(task: Callable[[DictConfig], Any], config_name: str, expected: tuple[type[Exception], ...] = ()) -> None:
    """Compose the config, run the task, and turn mistakes into one message and exit status 2.

    expected: errors of the task that a message explains fully; all others keep their traceback. HYDRA_FULL_ERROR=1
    keeps every traceback. --help prints the help of the command and runs nothing.
    """
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra re-raises instead of exiting, so that the message can be ours
    print_what_the_terminal_knows()
    known: tuple[type[Exception], ...] = (HydraException, OmegaConfBaseException, ConfigError, *expected)
    arguments = get_args_parser().parse_args()
    job = _Job(task, known, config_name)
    main = hydra.main(**VERSION_BASE, config_path=str(CONFIGS), config_name=config_name)(job)
    try:
        if arguments.help:
            doc = sys.modules[task.__module__].__doc__
            text = help_text(doc, config_name, arguments.overrides, arguments.config_dir)
            print(re.sub(r"python -m experiments\.(\w+)", lambda found: program(found[1]), text))
            return
        _refuse_folder_options(arguments.overrides)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as failed:
            os.environ[_FAILED_JOBS] = failed
            try:
                main()
            finally:
                status = _report_failed_jobs(Path(failed))
        if job.mistake is not None:
            raise job.mistake
        if status:
            sys.exit(status)
    except known as error:
        if full:
            raise
        print(f"error: {_explain(error, config_name, arguments.overrides, arguments.config_dir)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
