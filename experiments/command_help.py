"""The text of --help of commands with Hydra configs: usage, groups, and each option with its comment in the YAML."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from experiments import identity  # noqa: F401, configs may ask for ${experiment:}
from experiments.hydra_versions import VERSION_BASE

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

_FLAGS = """\
Flags:
  -m, --multirun      run every combination of comma-separated values: seed=0,1,2
  --config-dir FOLDER look for files of the groups there too: FOLDER/quantizer/mine.yaml is quantizer=mine
  --cfg job           print the config and run nothing
  --hydra-help        what else Hydra can do"""


def comments(text: str) -> tuple[str, dict[str, str]]:
    r"""Return the comment at the head of a YAML file, and {dotted key: the comment above it}.

    >>> comments("# a file\na: 1\n# of two\nb:\n  # inner\n  c: 2")
    ('a file', {'b': 'of two', 'b.c': 'inner'})
    """
    head: list[str] = []
    found: dict[str, str] = {}
    above: list[str] = []
    parents: list[tuple[int, str]] = []
    started = False
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            if not stripped.startswith("# @package"):
                (above if started else head).append(stripped.lstrip("# "))
            continue
        key = re.match(r"( *)([\w.]+):", line)
        if key:
            indent = len(key[1])
            parents = [(at, name) for at, name in parents if at < indent] + [(indent, key[2])]
            if above:
                found[".".join(name for _, name in parents)] = " ".join(above)
        started = True
        above = []
    return " ".join(head), found


def composed(config_name: str, overrides: Sequence[str], folder: str | None, **options: Any) -> DictConfig:
    """Return a command's config with these overrides, groups of `folder` (--config-dir) among them."""
    GlobalHydra.instance().clear()
    more = [] if folder is None else [f"hydra.searchpath=['file://{Path(folder).resolve()}']"]
    hydra.initialize_config_dir(str(CONFIGS), **VERSION_BASE)
    return hydra.compose(config_name, [*overrides, *more], **options)


def _file(path: str, folder: str | None) -> str:
    """Return the text of a config file, of the user's folder first."""
    for root in ([] if folder is None else [Path(folder)]) + [CONFIGS]:
        file = root / f"{path}.yaml"
        if file.is_file():
            return file.read_text(encoding="utf-8")
    return ""


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if name in ("_target_", "_partial_"):
            continue
        path = f"{key}.{name}" if key else str(name)
        if isinstance(value, dict) and value and "_target_" not in value:
            yield from _leaves(value, path)
            continue
        inner = list(_leaves(value, path)) if isinstance(value, dict) else []
        if inner:
            yield from inner
        elif key or not isinstance(value, dict):  # not the bare _target_ of a group
            yield path, value


def _written(value: Any) -> str:
    """Return a value as the command line takes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_written(inner)}' for key, inner in value.items())}}}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def help_text(doc: str | None, config_name: str, overrides: Sequence[str], folder: str | None) -> str:
    """Return the help of a command; with overrides, the options and values that these give."""
    config = composed(config_name, overrides, folder, return_hydra_config=True)
    choices = config.hydra.runtime.choices
    root = _file(config_name, folder)
    usage, explained = comments(root)
    entries = OmegaConf.create(root).defaults
    groups = [str(name) for entry in entries if isinstance(entry, DictConfig) for name in entry]
    groups = [name for name in groups if "override " not in name]
    lines = [f"usage: {usage}", "", (doc or "").strip(), ""]
    loader = GlobalHydra.instance().config_loader()
    if groups:
        lines.append("Groups, a file of configs/ each (GROUP=NAME):")
    for choice in groups:
        group, _, package = choice.removeprefix("optional ").partition("@")
        if package:
            continue  # a second network of a group that is listed; its options' comments say how to choose it
        chosen = choices.get(group) or "null"
        about, inner = comments(_file(f"{group}/{chosen}", folder))
        explained |= {
            key if group in ("experiment", "suite") else f"{group}.{key}": text for key, text in inner.items()
        }
        lines.append(f"{f'  {group}={chosen}':26}{about}".rstrip())
        names = ", ".join(name for name in loader.get_group_options(group) if name != chosen)
        lines += textwrap.wrap(f"or {names}", 110, initial_indent=" " * 6, subsequent_indent=" " * 9)
    lines += ["", "Options (option=value), with their values now:"]
    values: Any = OmegaConf.to_container(config)
    del values["hydra"]
    said = set()
    for key, value in _leaves(values):
        for parent in [key[: match.start()] for match in re.finditer(r"\.|$", key)]:
            if parent in explained and parent not in said:
                said.add(parent)
                text = explained[parent] if parent == key else f"{parent}: {explained[parent]}"
                lines += textwrap.wrap(text, 110, initial_indent="  # ", subsequent_indent="  # ")
        lines.append(f"  {key}={_written(value)}")
    return "\n".join([*lines, "", _FLAGS])
