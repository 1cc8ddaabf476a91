"""The teacher of a run: a finished run, or a network of a config with a file of weights."""

import hashlib
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.config_values import ConfigError
from experiments.hydra_versions import instantiate
from experiments.targets import check


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_teacher(config: DictConfig) -> tuple[Any, dict[str, Any]] | None:
    """Return (bnn.training.Teacher, what result.json says of it), None if none is given; ConfigError if it cannot be.

    A run is taken as it was trained. A network of `teacher.model` is in full precision where it could be quantized.
    """
    given = config.teacher
    run, model, weights = given.run, given.model, given.weights
    if run is None and model is None:
        if weights is not None:
            raise ConfigError("teacher.weights are of a network: give teacher.model too (model@teacher.model=NAME)")
        return None
    if run is not None and (model is not None or weights is not None):
        raise ConfigError("teacher.run is a whole network: give it, or teacher.model with teacher.weights")
    if run is None and weights is None:
        raise ConfigError("teacher.model needs teacher.weights=FILE: a teacher has learned before")
    return _of_run(Path(str(run))) if run is not None else _of_model(model, Path(str(weights)))


def _of_run(folder: Path) -> tuple[Any, dict[str, Any]]:
    from bnn.training import CHECKPOINT, Teacher
    from experiments.results import has_ended, read_json
    from experiments.runs import find_run, load_run

    found = find_run(folder)
    result = read_json(found / "result.json") if (found / "result.json").exists() else None
    if result is None or not has_ended(result):
        raise ConfigError(f"teacher.run={folder} has not ended: train it first, with the command that began it")
    config, network = load_run(found)
    sha256 = file_hash(found / CHECKPOINT)
    says = {"run": str(folder), "model": config.model._target_.rpartition(".")[2], "quantizer": config.quantizer.name}
    return Teacher(network, sha256), says | {"sha256": sha256, "test_accuracy": result["accuracy"]["test"]}


def _of_model(model: DictConfig, weights: Path) -> tuple[Any, dict[str, Any]]:
    from bnn.training import Teacher, load_weights
    from experiments.runs import fp32_twin

    if "weight_quantizer" in model:
        network = fp32_twin(model)
    else:
        check(model, "teacher.model")
        network = instantiate(model, _convert_="object")
    load_weights(network, weights)
    sha256 = file_hash(weights)
    name = str(OmegaConf.select(model, "_target_")).rpartition(".")[2]
    return Teacher(network, sha256), {"model": name, "weights": str(weights), "sha256": sha256}
