"""The commands that result files record: pasted into a shell they do the same again."""

import os
import re
import shlex
from collections.abc import Iterable, Sequence

from hydra.core.hydra_config import HydraConfig

from experiments import cli
from experiments.identity import is_among


def shell_command(module: str, arguments: Sequence[str]) -> str:
    """Return the line that starts a module of experiments with these arguments, quoted for a POSIX shell.

    >>> shell_command("train", ["quantizer=xnor", "optimizer={lr:0.1,weight_decay:0}"])
    "python -m experiments.train quantizer=xnor 'optimizer={lr:0.1,weight_decay:0}'"
    """
    return " ".join([cli.program(module), *map(shlex.quote, arguments)])


def key_of(override: str) -> str:
    """Return the dotted key that a Hydra override sets, adds or removes.

    >>> [key_of(text) for text in ("+trainer.max_time='00:10'", "~doctor", "++seed=1")]
    ['trainer.max_time', 'doctor', 'seed']
    """
    return override.partition("=")[0].lstrip("+~")


def quoted(value: object) -> str:
    r"""Return a value as Hydra's grammar takes it, quoted if it holds more than plain letters.

    >>> print(quoted("runs/demo"), quoted("it's a folder"))
    runs/demo 'it\'s a folder'
    """
    if re.fullmatch(r"[A-Za-z_./-][\w./-]*", str(value)):
        return str(value)
    # Backslashes are special in front of a quote alone.
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), str(value)) + "'"


def this_command(without: Iterable[str] = ()) -> str:
    """Return the command of this Hydra job (of a sweep: this job alone), without options named here or below them.

    Options stay as they were given: a relative path is relative to the folder where the command was typed.
    """
    hydra = HydraConfig.get()
    folders = [
        source.path.removeprefix("file://")
        for source in hydra.runtime.config_sources
        if source.provider == "command-line" and source.path
    ]
    flags = [part for folder in folders for part in ("--config-dir", _short(folder, hydra.runtime.cwd))]
    leave = tuple(without)
    given = [text for text in hydra.overrides.task if not is_among(key_of(text), leave)]
    assert hydra.job.config_name is not None  # each command's config has the command's name
    return shell_command(hydra.job.config_name, [*flags, *given])


def _short(folder: str, start: str) -> str:
    """Return a folder relative to another one that it lies in, or as it is."""
    relative = (
        os.path.relpath(folder, start) if os.path.splitdrive(folder)[0] == os.path.splitdrive(start)[0] else folder
    )
    return folder if relative.startswith("..") else relative
