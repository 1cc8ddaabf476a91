"""The ladder's rungs without training, as entries of a ledger beside those that were trained."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from experiments.identity import experiment_id
from experiments.ladder_rungs import RUNGS
from experiments.ledger_entries import make_entries
from experiments.run_records import Record, bits_of, record_of
from experiments.sweep_plan import Job
from paper_figures.ledger_file import Entry

# What the row of a quantized network depends on beside its FP32 run.
_OPTIONS = ("observer", "batches", "batch_size")


def with_untrained(
    entries: list[Entry], rows: list[dict[str, Any]], base: Sequence[Job], config: DictConfig, command: str,
    origin: dict[str, Any],
) -> list[Entry]:  # fmt: skip
    """Return the entries of what was trained, and of the packed rungs that were not, in the order of the rungs.

    Their runs are those of the FP32 network, one for each seed, with the accuracy and file of the rung and no training
    of its own. rows: as the result has them; those on a validation split are left out, for a ledger is of test splits.
    """
    if config.split != "test":
        return entries
    found: list[Record] = []
    for row in rows:
        rung = RUNGS[row["rung"]]
        if "failed" in row or not row["engine"].startswith("packed") or rung.name == "fp32" or rung.quantizer:
            continue
        options = {key: config[key] for key in _OPTIONS} if rung.ptq else {}
        if rung.name == "int4":
            options["ends"] = config.ends
        for at, job in enumerate(base):
            found.append(_record(record_of(job.folder / "result.json"), row, at, options, command, origin))
    order = ["base", *RUNGS]
    return sorted([*entries, *make_entries(found)], key=lambda entry: order.index(entry["method"]))


def _record(
    record: Record, row: dict[str, Any], at: int, options: dict[str, Any], command: str, origin: dict[str, Any]
) -> Record:
    """Return the record of an FP32 run with a rung in its place. at: which of the row's seeds it is."""
    accuracy, same = row["accuracy"][at], row["agreement_with_pytorch"][at]
    weight_bits, activation_bits = bits_of(row["bits"])
    config = {**record["config"], "ladder": {"rung": row["rung"], **options}}
    run = {
        "seed": record["run"]["seed"],
        "value": accuracy,
        "test_accuracy": accuracy,
        "validation_accuracy": None,
        "train_accuracy": None,
        "epochs": 0,
        "steps": 0,
        "stopped_by": None,
        "findings": None,
        "train_seconds": 0.0,
        "command": command,
        "code": origin["code"],
        "versions": origin["versions"],
        "hardware": origin["hardware"],
        "finished": origin["finished"],
        "test_accuracy_packed": accuracy,
        "same_predictions": round(same * row["compared"]),
        "test_images": row["compared"],
        "parity_ok": True,  # else the ladder ends with the report
    }
    if at == 0:  # the file of one seed is weighed
        run["file_bytes"] = row["file_bytes"]
    of_rung = {
        "method": row["rung"],
        "label": f"{row['bits']} {row['rung']}",
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "published": None,
        "experiment": experiment_id(config),
        "config": config,
    }
    return {**record, **of_rung, "run": run}
