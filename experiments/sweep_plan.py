"""A sweep's plan: from its config, which cells with which options, and for each seed the run that a job is."""

import fnmatch
import itertools
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from experiments.commands import key_of, quoted, shell_command
from experiments.config_values import ConfigError
from experiments.identity import comparable, experiment_id
from experiments.results import has_ended, read_json

KEYS = ("name", "options", "axes", "cells", "seeds", "convert", "latency")


@dataclass
class Job:
    """One training: a cell of the sweep with one seed. config: the whole config; options: what makes it."""

    cell: str
    seed: int
    options: list[str]
    config: DictConfig
    convert: bool
    experiment: str
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = Path(self.config.run_dir)

    @property
    def command(self) -> str:
        """The command that makes the run."""
        return shell_command("train", self.options)

    @property
    def same(self) -> dict[str, Any]:
        """The comparable config."""
        return comparable(self.config)

    def trained(self) -> bool:
        """Whether its training is over."""
        result = self.folder / "result.json"
        return result.exists() and has_ended(read_json(result))

    def converted(self) -> bool:
        """Whether the packed network that the sweep wants is there, of the weights of now."""
        file = self.folder / "conversion.json"
        if not self.convert:
            return True
        return file.exists() and read_json(file).get("steps") == read_json(self.folder / "result.json")["steps"]

    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.trained() and self.converted()


def cells_of(sweep: DictConfig) -> dict[str, list[str]]:
    """Return {name: options} of a sweep: every combination of its axes, named by their values, then its own cells.

    In options $AXIS stands for the value of an axis. ConfigError if a name stands twice or an entry has no such form.
    """
    unknown = [str(key) for key in sweep if key not in KEYS]
    if unknown:
        raise ConfigError(f"sweep has no {', '.join(unknown)}; it has {', '.join(KEYS)}")
    common = [str(text) for text in sweep.get("options") or []]
    axes: dict[str, dict[str, list[str]]] = {
        str(axis): {str(value): list(options or []) for value, options in values.items()}
        for axis, values in (sweep.get("axes") or {}).items()
    }
    found: dict[str, list[str]] = {}
    for values in itertools.product(*axes.values()) if axes else ():
        names = dict(zip(axes, values, strict=True))
        options = [*common, *(text for axis, value in names.items() for text in axes[axis][value])]
        found["/".join(values)] = [string.Template(text).safe_substitute(names) for text in options]
    for name, options in (sweep.get("cells") or {}).items():
        if str(name) in found:
            raise ConfigError(f"sweep.cells.{name} is a combination of axes already")
        found[str(name)] = [*common, *(options or [])]
    if not found:
        raise ConfigError("sweep has neither axes nor cells")
    return {name: _last_of_each(options) for name, options in found.items()}


def _last_of_each(options: list[str]) -> list[str]:
    """Return the options in order, of those that set one key the last alone: cells override what is common."""
    last = {key_of(text): at for at, text in enumerate(options)}
    return [text for at, text in enumerate(options) if last[key_of(text)] == at]


def jobs_of(config: DictConfig) -> list[Job]:
    """Return the jobs of a sweep command's config, cell after cell. ConfigError names what cannot be run."""
    if config.sweep is None:
        raise ConfigError("name a sweep: sweep=NAME, a file of configs/sweep")
    seeds = list(config.sweep.seeds if config.seeds is None else config.seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds must be different numbers, at least one; got {seeds}")
    cells = cells_of(config.sweep)
    if config.only is not None:
        chosen = {name for pattern in config.only for name in fnmatch.filter(cells, str(pattern))}
        if not chosen:
            wanted = ", ".join(map(str, config.only))
            raise ConfigError(f"no cell of the sweep is {wanted}; cells are {', '.join(cells)}")
        cells = {name: options for name, options in cells.items() if name in chosen}
    data = [] if config.data_root is None else [f"data.root={quoted(config.data_root)}"]
    common = [f"name={quoted(config.sweep.name)}"]
    jobs = [
        job
        for cell, options in cells.items()
        for job in _jobs(cell, _last_of_each([*common, *options, *config.overrides, *data]), seeds, config)
    ]
    seen: dict[tuple[str, int], str] = {}
    for job in jobs:
        if (other := seen.setdefault((job.experiment, job.seed), job.cell)) != job.cell:
            raise ConfigError(f"cells {other} and {job.cell} of the sweep are the same experiment")
    return jobs


def _jobs(cell: str, options: list[str], seeds: list[int], config: DictConfig) -> Iterator[Job]:
    whole = compose("train", options)
    if whole.stages is not None:
        raise ConfigError(f"cell {cell}: a recipe of several stages is run by train, not by a sweep")
    experiment = experiment_id(whole)
    for seed in seeds:
        of_seed = OmegaConf.merge(whole, {"seed": seed, "trainer": {"enable_progress_bar": False}})
        assert isinstance(of_seed, DictConfig)
        given = [*(text for text in options if key_of(text) != "seed"), f"seed={seed}"]
        yield Job(cell, seed, given, of_seed, bool(config.sweep.get("convert")), experiment)
