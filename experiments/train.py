"""Train one network: python -m experiments.train experiment=NAME; -m and comma lists sweep.

Writes into `run_dir`: config.yaml (resolved), checkpoints/, metrics.csv (the learning curve) and result.json. A run
that was interrupted goes on from its last epoch; one that is finished with the same config is not run again.
"""

import logging
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments import cli
from experiments.results import read_json, write_json
from experiments.run_parts import build_parts, check_values

# What may differ between two runs that are the same experiment.
NOT_THE_EXPERIMENT = (
    "run_dir",
    "trainer.enable_progress_bar",
    "trainer.accelerator",
    "data.root",
    "data.download",
    "doctor",
    "doctor.every",
    "classifier.pack_activations",
)


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    """Return the resolved config without what only says where or how loudly it ran."""
    copy = OmegaConf.create(config)
    for key in NOT_THE_EXPERIMENT:
        parent, _, leaf = key.rpartition(".")
        node = OmegaConf.select(copy, parent) if parent else copy
        if node is not None and leaf in node:
            del node[leaf]
    result = OmegaConf.to_container(copy)
    assert isinstance(result, dict)
    return {str(key): value for key, value in result.items()}


def command() -> str:
    """Return the command that makes this run on any machine: its overrides without those of NOT_THE_EXPERIMENT."""
    overrides = HydraConfig.get().overrides.task
    kept = [text for text in overrides if text.partition("=")[0].lstrip("+") not in NOT_THE_EXPERIMENT]
    return " ".join([cli.program("train"), *kept])


def run(config: DictConfig, made_by: str) -> Path:
    """Run one training from its config, unless it is finished; returns its folder.

    made_by: the command that makes this run again, for its result.
    """
    from bnn.training import CHECKPOINT, REPORT, Checkup, RunError, Scheduling, provenance, train

    check_values(config)
    folder = Path(config.run_dir)
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    same = comparable({str(key): value for key, value in resolved.items()})
    result_file, config_file = folder / "result.json", folder / "config.yaml"
    if result_file.exists() and read_json(result_file)["config"] == same:
        print(f"{folder}: already finished, nothing to do")
        return folder
    if config_file.exists() and (folder / CHECKPOINT).exists():
        before = OmegaConf.to_container(OmegaConf.load(config_file))
        assert isinstance(before, dict)
        if comparable({str(key): value for key, value in before.items()}) != same:
            raise RunError(
                f"{folder} holds a run with another config; remove the folder or choose another with run_dir=..."
            )
    parts = build_parts(config)  # a mistake must not take the folder
    data, costs = parts.data, parts.costs
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(resolved), config_file)

    callbacks: list[Any] = [Scheduling(parts.schedules)]
    if config.doctor.every is not None:
        callbacks.append(Checkup(folder, config.doctor.every, config.classifier.latent_clip, data.num_classes))
    outcome = train(
        parts.classifier,
        parts.network,
        data,
        folder,
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=config.seed,
        augment=parts.augment,
        trainer=parts.trainer,
        callbacks=callbacks,
    )
    run_is: dict[str, Any] = {
        "command": made_by,
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
    found = []
    if (folder / REPORT).exists():
        seen = read_json(folder / REPORT)
        found = seen["findings"]
        model = config.model._target_.rpartition(".")[2]
        write_json(folder / REPORT, {**run_is, "data": data.name, "model": model, **seen, **provenance()})
    write_json(
        result_file,
        {
            **run_is,
            "epochs": outcome.epochs,
            "train_seconds": round(outcome.seconds, 1),
            "data": {
                "name": data.name,
                "train": len(data.train.labels),
                "validation": len(data.validation.labels),
                "test": len(data.test.labels),
            },
            "parameters": costs.parameters,
            "bytes": costs.bytes,
            "macs": costs.macs,
            "bops": costs.bops,
            "findings": [{key: finding[key] for key in ("layer", "kind", "text")} for finding in found],
            "config": same,
            **provenance(),
        },
    )
    print(
        f"{folder}: test accuracy {outcome.test_accuracy:.2%}, validation {outcome.validation_accuracy:.2%} "
        f"after {outcome.epochs} epochs, {outcome.seconds:.0f} s"
    )
    for finding in found:
        print(f"  {': '.join(filter(None, (finding['layer'], finding['text'])))}. {finding['advice']}")

    return folder


def task(config: DictConfig) -> float:
    """Run what the command line says; returns the validation accuracy, by which a sweeper may search."""
    folder = run(config, command())
    return float(read_json(folder / "result.json")["accuracy"]["validation"])


def main() -> None:
    """Entry point."""
    from bnn.data import DataError
    from bnn.training import DivergenceError, RunError

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    cli.run(task, "train", expected=(DataError, DivergenceError, RunError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
