"""Train one network: python -m experiments.train experiment=NAME; -m and comma lists sweep.

Writes into `run_dir`: config.yaml (resolved), checkpoints/, metrics.csv (the learning curve) and result.json. A run
that was interrupted, or cut short by trainer.max_time, goes on from its last epoch; one that has ended with the same
config is not run again; one that another process works on is waited for.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments import cli
from experiments.commands import this_command
from experiments.config_values import ConfigError
from experiments.identity import NOT_THE_EXPERIMENT, OF_THE_DATA, comparable, differing, experiment_id, flat
from experiments.lock import HeldError, run_lock
from experiments.objectives import check_objectives, values_of
from experiments.processes import by_torchrun, dismiss, follow, is_follower, others, torchrun_command
from experiments.published_numbers import per_cent, published_for
from experiments.results import bits_name, done, has_ended, is_complete, read_json, write_json
from experiments.run_parts import Parts, build_parts, check_values, trained
from experiments.stages import stage_configs, summary

# Not in the recorded command: the run is the same without.
NOT_REPEATED = tuple(key for key in NOT_THE_EXPERIMENT if key not in OF_THE_DATA)


def result_of(folder: Path, same: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result of a run that this folder holds, None if there is none.

    same: the comparable config. RunError if the result is damaged, or the run or its checkpoint is another's.
    """
    from bnn.training import CHECKPOINT, RunError
    from experiments.runs import load_config

    file = folder / "result.json"
    result, before = None, None
    try:
        if file.exists():
            result = read_json(file)
            before = result["config"]
        elif (folder / CHECKPOINT).exists() and (folder / "config.yaml").exists():
            before = load_config(folder)
    except (ValueError, KeyError) as error:
        raise RunError(f"{file} is damaged; remove it, and the same command writes it again: {error}") from error
    if before is not None and (there := comparable(before)) != same:
        raise RunError(
            f"{folder} holds a run with another config ({difference(there, same)}); remove the folder or choose "
            "another with run_dir=..."
        )
    return result


def difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Return in words in what two comparable configs differ, three options at most."""
    keys = [*(["seed"] if there.get("seed") != here.get("seed") else []), *differing([there, here])]
    old, new = flat(there), flat(here)
    words = [f"{key} is {old.get(key, 'absent')} there and {new.get(key, 'absent')} here" for key in keys[:3]]
    return ", ".join([*words, *(["and more"] if len(keys) > 3 else [])])


def run_stages(config: DictConfig, made_by: str) -> Path:
    """Run the stages of a config that have not ended, one after the other; returns the folder of the last."""
    stages = stage_configs(config)
    names = list(stages)
    for stage in stages.values():
        check_values(stage)  # a mistake in the last is told before the first has trained
    last = stages[names[-1]]
    if _has_ended(Path(last.run_dir), _comparable(last)):
        return Path(last.run_dir)
    before: list[dict[str, Any]] = []
    for name, stage in stages.items():
        print(f"stage {name}, {len(before) + 1} of {len(names)}", flush=True)
        folder = run(stage, made_by, name, before)
        result = read_json(folder / "result.json")
        if not has_ended(result):
            break  # time is up; the same command goes on here
        before.append(summary(name, result))
    return folder


def _comparable(config: DictConfig) -> dict[str, Any]:
    resolved: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return comparable({str(key): value for key, value in resolved.items()})


def run(
    config: DictConfig,
    made_by: str,
    stage: str | None = None,
    before: Sequence[dict[str, Any]] = (),
    wait: bool = True,
) -> Path:
    """Run one training from its config, unless it has ended; returns its folder.

    made_by: the command that makes this run again, for its result. stage, before: its name if it is a stage, and what
    results say of the stages before it. wait: another process that works on the same run is waited for, unless the
    config says lock=refuse; without it is a HeldError.
    """
    from bnn.training import RunError
    from bnn.training.files import remove_leftovers

    check_values(config)
    folder = Path(config.run_dir)
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    same = comparable({str(key): value for key, value in resolved.items()})
    if _has_ended(folder, same):
        return folder
    parts = build_parts(config)  # a mistake must not take the folder
    if parts.processes > 1 and OmegaConf.select(config, "trainer.num_nodes", default=1) != 1 and not by_torchrun():
        raise ConfigError("trainer.num_nodes above 1 is for torchrun, which starts the processes of all machines")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"run_dir={folder} cannot be made, choose another: {error.strerror}") from error
    with run_lock(folder, wait and config.lock == "wait"):
        if not _has_ended(folder, same):
            remove_leftovers(folder)
            _run(config, parts, resolved, same, folder, made_by, stage, before)
    return folder


def _has_ended(folder: Path, same: dict[str, Any]) -> bool:
    """Return whether there is nothing to do, and say so."""
    result = result_of(folder, same)
    if result is None or not has_ended(result):
        return False
    how = "already finished" if is_complete(result) else f"already ended ({done(result)})"
    print(f"{folder}: {how}, nothing to do")
    return True


def _run(
    config: DictConfig,
    parts: Parts,
    resolved: dict[Any, Any],
    same: dict[str, Any],
    folder: Path,
    made_by: str,
    stage: str | None,
    before: Sequence[dict[str, Any]],
) -> None:
    """Train in a folder that this process holds."""
    from bnn.training import REPORT, provenance
    from bnn.training.files import whole_file
    from bnn.training.provenance import code_state

    code_state()  # of now, not of the end

    data, costs = parts.data, parts.costs
    with whole_file(folder / "config.yaml") as file:
        OmegaConf.save(OmegaConf.create(resolved), file)
    with others(resolved, parts.processes):
        outcome = trained(config, parts)
    run_is: dict[str, Any] = {
        "command": made_by,
        "experiment": experiment_id(same),
        "name": config.name,
        "quantizer": config.quantizer.name,
        "label": config.quantizer.label,
        "seed": config.seed,
        "accuracy": {
            "train": round(outcome.train_accuracy, 6),
            "validation": round(outcome.validation_accuracy, 6),
            "test": round(outcome.test_accuracy, 6),
        },
    }
    if outcome.validation_bits is not None and outcome.test_bits is not None:
        bits = {"validation": outcome.validation_bits, "test": outcome.test_bits}
        run_is[bits_name(data)] = {split: round(value, 6) for split, value in bits.items()}
    if (published := published_for(config, data.name)) is not None:
        run_is["published"] = published
    found = []
    if (folder / REPORT).exists():
        seen = read_json(folder / REPORT)
        found = seen["findings"]
        model = config.model._target_.rpartition(".")[2]
        write_json(folder / REPORT, {**run_is, "data": data.name, "model": model, **seen, **provenance()})
    origin = provenance()
    origin["finished"] = None if outcome.stopped_by else origin["finished"]
    limits = {
        f"trainer.{name}": OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        for name, value in config.trainer.items()
        if value is not None
        and (str(name).startswith(("max_", "limit_")) or name in ("fast_dev_run", "overfit_batches"))
    }
    result = {
        **run_is,
        "epochs": outcome.epochs,
        "steps": outcome.steps,
        "stopped_by": outcome.stopped_by,
        "interruptions": outcome.interruptions,
        "processes": outcome.processes,
        **({"start": OmegaConf.to_container(config.start)} if config.start.run is not None else {}),
        **({"teacher": parts.teacher} if parts.teacher else {}),
        "limits": limits,
        "train_seconds": round(outcome.seconds, 1),
        "data": {
            "name": data.name,
            "train": data.count("train"),
            "validation": outcome.validation_examples,
            "test": outcome.test_examples,
        },
        "parameters": costs.parameters,
        "bytes": costs.bytes,
        # None where there are no layers to count, as in a graph that torchao has prepared.
        "macs": costs.macs or None,
        "bops": costs.bops or None,
        "findings": [{key: finding[key] for key in ("layer", "kind", "text")} for finding in found],
        "config": same,
        **origin,
    }
    if stage is not None:
        result["stages"] = [*before, summary(stage, result)]
    write_json(folder / "result.json", result)
    trial = outcome.stopped_by == "trainer.fast_dev_run"
    goes_on = (
        ""
        if has_ended(result)
        else f"; not finished, {'a trial keeps nothing' if trial else 'the same command goes on'}"
    )
    beside = "" if published is None else f" (published {per_cent(published['value'])} %, {published['source']})"
    print(f"{folder}: {_measured(outcome, data)}{beside} after {done(result)}, {outcome.seconds:.0f} s{goes_on}")
    for finding in found:
        print(f"  {': '.join(filter(None, (finding['layer'], finding['text'])))}. {finding['advice']}")


def _measured(outcome: Any, data: Any) -> str:
    """Return what a run measured, in words."""
    accuracy = f"test accuracy {outcome.test_accuracy:.2%}, validation {outcome.validation_accuracy:.2%}"
    if outcome.test_bits is None:
        return accuracy
    unit = f"bits a {data.unit}"
    return f"test {outcome.test_bits:.3f} {unit}, validation {outcome.validation_bits:.3f}; {accuracy}"


def task(config: DictConfig) -> float | tuple[float, ...]:
    """Run what the command line says; returns its objectives, by which a sweeper may search."""
    check_objectives(config)
    if by_torchrun() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ConfigError("torchrun starts one run: start a sweep (-m) without it, with trainer.devices=N")
    begin = run if config.stages is None else run_stages
    folder = begin(config, torchrun_command(this_command(NOT_REPEATED)))
    return values_of(folder, config.objectives)


def quiet() -> None:
    """Keep Lightning's own reports from the terminal."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def main() -> None:
    """Entry point."""
    from bnn.data import DataError
    from bnn.training import DivergenceError, RunError

    quiet()
    if is_follower():
        follow()
        return
    try:
        cli.run(task, "train", expected=(DataError, DivergenceError, HeldError, RunError, OSError, ValueError))
    finally:
        dismiss()


if __name__ == "__main__":
    sys.exit(main())
