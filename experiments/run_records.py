"""What a finished run says, as one record; and which options tell the experiments among some records apart."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.identity import comparable, differing, experiment_id, flat, is_among
from experiments.results import read_json

Record = dict[str, Any]

# Options that fields of the record stand for, as long as they follow from these.
_FOLLOW = (
    (("name",), ("name",)),
    (("data",), ("data",)),
    (("quantizer", "classifier.latent_clip", "classifier.center_latents", "schedules"), ("method",)),
    (("model.weight_quantizer", "model.input_quantizer"), ("method",)),
    (("model",), ("data", "model", "method")),
)


def bits_of(label: str) -> tuple[str, str]:
    """Return the bits of weights and of activations that a quantizer's label begins with.

    >>> bits_of("1/1+K"), bits_of("t/8 BitNet"), bits_of("3 bases/1"), bits_of("2.5/3 by layer")
    (('1', '1'), ('t', '8'), ('3 bases', '1'), ('2.5', '3'))
    """
    found = re.match(r"([\w.]+(?: bases)?)/([\w.]+(?: bases)?)", label)
    return (found[1], found[2]) if found else ("?", "?")


def described(config: dict[str, Any]) -> Record:
    """Return what a comparable config alone says of a run: which experiment it is, and of what."""
    data = config["data"]
    label = config["quantizer"]["label"]
    weight_bits, activation_bits = bits_of(label)
    model = config["model"]
    # What torchao has prepared for training is called what it was before.
    target = model["of"] if model["_target_"].endswith(".torchao_qat.Prepared") else model["_target_"]
    return {
        "experiment": experiment_id(config),
        "name": config["name"],
        "model": target.rpartition(".")[2],
        "method": config["quantizer"]["name"],
        "label": label,
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "data": str(data.get("name") or data["_target_"].rpartition(".")[2]),
        "config": {key: value for key, value in config.items() if key != "seed"},
    }


def measured(result: dict[str, Any]) -> tuple[str, str, float]:
    """Return (task, metric, value on the test split) of a result: of a language model its bits a token.

    >>> measured({"accuracy": {"test": 0.5}, "bits_per_character": {"test": 2.1, "validation": 2.2}})
    ('language modelling', 'test_bits_per_character', 2.1)
    """
    for key, values in result.items():
        if key.startswith("bits_per_"):
            return "language modelling", f"test_{key}", values["test"]
    return "classification", "test_accuracy", result["accuracy"]["test"]


def record_of(result_file: Path) -> Record:
    """Return one run's record: fields of its entry in a ledger, and the run itself under "run".

    ValueError names a file that lacks something.
    """
    result = read_json(result_file)
    try:
        task, metric, value = measured(result)
        record = {
            **described(comparable(result["config"])),
            "task": task,
            "metric": metric,
            "data": result["data"]["name"],
            "train_examples": result["data"].get("train"),
            "validation_examples": result["data"].get("validation"),
            "test_examples": result["data"].get("test"),
            "parameters": result["parameters"],
            "fp32_bytes": 4 * result["parameters"],
            "published": result.get("published"),
            "run": {
                "seed": result["seed"],
                "value": value,
                "test_accuracy": result["accuracy"]["test"],
                "validation_accuracy": result["accuracy"]["validation"],
                "train_accuracy": result["accuracy"]["train"],
                "epochs": result["epochs"],
                "steps": result.get("steps"),
                "stopped_by": result.get("stopped_by"),
                "findings": [": ".join(filter(None, (f["layer"], f["text"]))) for f in result.get("findings", [])],
                "train_seconds": result["train_seconds"],
                "command": result["command"],
                "code": result.get("code"),
                "versions": result["versions"],
                "hardware": result["hardware"],
                "finished": result["finished"],
                **_packed(result_file.parent, result.get("steps")),
            },
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{result_file.parent} was written by another version: {error} is missing") from error
    return record


def _packed(folder: Path, steps: int | None) -> dict[str, Any]:
    """Return what is known of a run's packed network; nothing if it was packed before it was trained further."""
    found: dict[str, Any] = {}
    if (folder / "conversion.json").exists():
        conversion = read_json(folder / "conversion.json")
        if conversion.get("steps", steps) == steps:
            keys = ("file_bytes", "test_accuracy_packed", "same_predictions", "test_images")
            found = {key: conversion[key] for key in keys} | {"parity_ok": conversion["parity"]["ok"]}
    if (folder / "latency.json").exists():
        latency = read_json(folder / "latency.json")
        if latency["steps"] == steps:
            found["latency_us"] = {key: latency[key] for key in ("median", "low", "high", "calls", "cpu")}
    return found


def settings(records: Iterable[Record]) -> list[str]:
    """Return the dotted keys that differ among the records' configs and do not follow from their other fields."""
    records = list(records)
    configs = [record["config"] for record in records]
    options = [flat(config) for config in configs]

    def told(key: str) -> bool:
        for keys, fields in _FOLLOW:
            if is_among(key, keys):
                values: dict[tuple[Any, ...], Any] = {}
                where = [tuple(record[name] for name in fields) for record in records]
                found = [text_of(one.get(key)) for one in options]
                return all(values.setdefault(*pair) == pair[1] for pair in zip(where, found, strict=True))
        return False

    keys = [key for key in differing(configs) if key not in ("name", "seed", "epochs") and not told(key)]
    # ${...} in the configs repeats values: optimizer.lr is classifier.optimizer.lr, epochs is scheduler.T_max.
    kept: list[str] = []
    for key in sorted(keys, key=lambda key: (key.count("."), keys.index(key))):
        others = [*kept, "epochs"]
        if not any(
            (other.rpartition(".")[2] == key.rpartition(".")[2] or other == "epochs")
            and all(text_of(one.get(key)) == text_of(one.get(other)) for one in options)
            for other in others
        ):
            kept.append(key)
    return sorted(kept, key=keys.index)


def text_of(value: Any) -> str:
    """Return an option's value as tables show it; nothing for None."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
