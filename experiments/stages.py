"""Staged recipes: several trainings one after the other, each with options of its own, as one experiment.

`stages` of a config is {name: {option: value}}, in order. Each stage is a run of its own in run_dir/stages/NAME, but
the last, which is the run itself; so whatever stops the command, the same command goes on in the stage where it was.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.commands import key_of, quoted
from experiments.config_values import ConfigError, did_you_mean
from experiments.identity import is_among

# What a stage may say beside options: the weights it starts from.
START = "start"
LAST, BEST, NONE = "last", "best", "none"


def stage_configs(config: DictConfig) -> dict[str, DictConfig]:
    """Return {stage: its whole config}, all composed and in order; ConfigError names the stage that is wrong."""
    job = HydraConfig.get()
    given = list(job.overrides.task)
    given_stages = config.stages
    stages: Any = OmegaConf.to_container(given_stages) if isinstance(given_stages, DictConfig) else given_stages
    if not isinstance(stages, dict) or not stages or not all(o is None or isinstance(o, dict) for o in stages.values()):
        raise ConfigError(f"stages must be {{name: {{option: value}}}} in order, got {stages!r}")
    result: dict[str, DictConfig] = {}
    folders: dict[str, str] = {}
    names = [str(name) for name in stages]
    for name, options in zip(names, stages.values(), strict=True):
        if not name.replace("_", "").replace("-", "").isalnum():
            raise ConfigError(f"stages.{name}: a stage is named by letters, digits, _ and -, for it names a folder")
        final = name == names[-1]
        folders[name] = str(config.run_dir) if final else f"{config.run_dir}/stages/{name}"
        overrides = _overrides(name, dict(options or {}), config, given, folders)
        where = [f"run_dir={quoted(folders[name])}", *([] if final else ["stages=null"])]
        keeps = [] if final else _keeps_best(stages[names[names.index(name) + 1]])
        rest = [text for text in given if key_of(text) != "run_dir"]
        result[name] = compose(job.job.config_name, [*rest, *overrides, *where, *keeps])
    return result


def _keeps_best(following: Any) -> list[str]:
    return ["keep_best=true"] if (following or {}).get(START) == BEST else []


def _overrides(
    name: str, options: dict[str, Any], config: DictConfig, given: Sequence[str], folders: dict[str, str]
) -> list[str]:
    """Return a stage's options as Hydra's overrides; folders: those of the stages so far, this one the last."""
    before = list(folders)[:-1]
    start = options.pop(START, LAST if before else NONE)
    if start not in (LAST, BEST, NONE) or (start != NONE and not before):
        raise ConfigError(f"stages.{name}.start is last, best or none (the first stage's is none), got {start!r}")
    result = [] if start == NONE else [f"start.run={quoted(folders[before[-1]])}", f"start.weights={start}"]
    teacher = options.get("teacher")
    if isinstance(teacher, dict) and "stage" in teacher:
        if teacher["stage"] not in before:
            raise ConfigError(f"stages.{name}.teacher.stage must be an earlier stage, got {teacher['stage']!r}")
        options["teacher"] = {"run": folders[teacher["stage"]]}
    groups = GlobalHydra.instance().config_loader().list_groups("")
    for key, value in _leaves(options):
        first = key.partition(".")[0]
        if first not in config and first not in groups:
            raise ConfigError(f"stages.{name}: there is no option {key!r}.{did_you_mean(first, map(str, config))}")
        twice = [text for text in given if is_among(key_of(text), [key]) or is_among(key, [key_of(text)])]
        if twice:
            raise ConfigError(f"{twice[0]} is set by a stage: give stages.{name}.{key}=... instead")
        chosen = key in groups and isinstance(value, str)
        result.append(f"{'' if chosen else '++'}{key}={_written(value)}")
    return result


def _leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _written(value: Any) -> str:
    """Return a value as Hydra's grammar has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return quoted(value) if isinstance(value, str) else str(value)


def summary(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Return what the whole run's result says of a stage."""
    keys = ("experiment", "quantizer", "epochs", "steps", "stopped_by", "interruptions", "teacher", "start")
    taken = {key: result[key] for key in keys if key in result}
    return {"name": name, **taken, "train_seconds": result["train_seconds"], "accuracy": result["accuracy"]}


def is_stage(folder: Path) -> bool:
    """Return whether a run's folder is that of a stage which is not the last."""
    return folder.parent.name == "stages"
