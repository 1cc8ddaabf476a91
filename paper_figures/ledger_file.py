"""The ledger's file format: what every entry and every run of it says, and how a file is read and checked.

A ledger is one JSON object {"schema", "version", "command", "entries"}: an entry is an experiment, its runs the seeds.
`experiments.collect` writes ledgers; figures and `experiments.ledger` read them. docs/guides/ledger.md tells of it.
"""

import json
import math
from pathlib import Path
from typing import Any

SCHEMA, VERSION = "bitplanes ledger", 1
Entry = dict[str, Any]
Row = dict[str, Any]

# {field: (types, what it says)}; where the types hold None, null says that nobody knows, as of older runs.
_TEXT, _NUMBER, _COUNT = (str,), (int, float), (int,)
ENTRY_FIELDS: dict[str, tuple[tuple[type, ...], str]] = {
    "task": (_TEXT, "classification or language modelling"),
    "metric": (
        _TEXT,
        "what mean, interval and published are of: test_accuracy (a share, higher is better) or "
        "test_bits_per_character, test_bits_per_byte (lower is better)",
    ),
    "data": (_TEXT, "name of the data set"),
    "train_examples": ((int, type(None)), "examples of its training split"),
    "validation_examples": ((int, type(None)), "examples of its validation split"),
    "test_examples": ((int, type(None)), "examples of its test split"),
    "name": (_TEXT, "the first folder under runs/, `name=`"),
    "model": (_TEXT, "class of the network"),
    "method": (_TEXT, "quantizer, or the method that was compared"),
    "label": (_TEXT, "W/A bits and method, as figures write them"),
    "weight_bits": (_TEXT, "bits a weight: a number, their mean if layers differ, t for ternary, or 'N bases'"),
    "activation_bits": (_TEXT, "bits an activation"),
    "settings": ((dict,), "{dotted option: value} of what else differs between the entries of this file"),
    "experiment": ((str, type(None)), "hash of the config"),
    "config": (
        (dict, type(None)),
        "the resolved config, without the seed and what is no part of the experiment",
    ),
    "status": (_TEXT, "complete; or running, failed, stopped or missing: what hinders the seeds in `unfinished`"),
    "seeds": ((list,), "seeds of the finished runs"),
    "unfinished": ((list,), "{seed, status, reason, command} of each run that was wanted or begun and has not ended"),
    "mean": ((int, float, type(None)), "mean of the metric over the seeds"),
    "std": ((int, float, type(None)), "standard deviation over the seeds (n - 1); null for fewer than two"),
    "interval": (
        (list, type(None)),
        "95 % confidence interval of the mean over seeds (Student's t); null for one",
    ),
    "published": ((dict, type(None)), "{metric, value, source} of what was published for this experiment"),
    "command": (_TEXT, "the command that makes the first run again"),
    "train_seconds": ((int, float, type(None)), "seconds of training of all runs together"),
    "parameters": ((int, type(None)), "parameters of the network"),
    "fp32_bytes": ((int, type(None)), "bytes of them in FP32"),
    "runs": ((list,), "the finished runs, one for each seed"),
}
RUN_FIELDS: dict[str, tuple[tuple[type, ...], str]] = {
    "seed": (_COUNT, "seed of the run"),
    "value": (_NUMBER, "the entry's metric"),
    "test_accuracy": (_NUMBER, "share of the test split"),
    "validation_accuracy": ((int, float, type(None)), "share of the validation split"),
    "train_accuracy": ((int, float, type(None)), "share of the training batches of the last epoch"),
    "epochs": (_COUNT, "epochs that ran"),
    "steps": ((int, type(None)), "steps of the optimizer"),
    "stopped_by": ((str, type(None)), "what ended training before the last epoch"),
    "findings": ((list, type(None)), "what the doctor found, in words"),
    "train_seconds": ((int, float, type(None)), "seconds of training"),
    "command": (_TEXT, "the command that makes this run again"),
    "code": ((dict, type(None)), "{commit, sources}: the commit of the checkout and the hash of bnn's source files"),
    "versions": ((dict, type(None)), "versions of Python and of the packages"),
    "hardware": ((dict, type(None)), "processor, cores and threads"),
    "finished": ((str, type(None)), "time (UTC) when it ended"),
}
# Of runs that were converted, or whose packed network was timed.
PACKED_FIELDS: dict[str, tuple[tuple[type, ...], str]] = {
    "file_bytes": (_COUNT, "bytes of the packed file"),
    "test_accuracy_packed": (_NUMBER, "test accuracy of the packed network"),
    "same_predictions": (_COUNT, "predictions on the test split that are those of PyTorch"),
    "test_images": (_COUNT, "predictions that were compared"),
    "parity_ok": ((bool,), "whether all layers agree"),
    "latency_us": (
        (dict,),
        "{median, low, high, calls, cpu}: microseconds for one input, one thread; quartiles",
    ),
}
# Of runs that `experiments.compare_methods` judged.
JUDGED_FIELDS: dict[str, tuple[tuple[type, ...], str]] = {
    "diverged": (
        (bool,),
        "whether training failed: the loss not finite or that of guessing, or answers hardly better than guessing",
    ),
}
STATES = ("complete", "running", "failed", "stopped", "missing")


class LedgerError(ValueError):
    """A file that is no ledger, or one that contradicts itself."""


def lower_is_better(metric: str) -> bool:
    """Return whether a smaller number of this metric is the better one."""
    return metric.startswith("test_bits")


def read_ledger(path: Path) -> list[Entry]:
    """Return the entries of a ledger's file. FileNotFoundError; LedgerError says what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LedgerError(f"{path} is no ledger: {error}") from error
    try:
        check_ledger(content)
    except LedgerError as error:
        raise LedgerError(f"{path} is no ledger: {error}") from error
    return content["entries"]


def check_ledger(content: Any) -> None:
    """Raise LedgerError, naming the entry and the field, unless the content of a file is a ledger of this version."""
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        old = isinstance(content, dict) and "rows" in content
        hint = "; it is a table of an older version: experiments.ledger move=FILE makes a ledger of it" if old else ""
        raise LedgerError(f"its schema is not {SCHEMA!r}{hint}")
    if content.get("version") != VERSION:
        raise LedgerError(f"it has version {content.get('version')!r} of the schema, and this software reads {VERSION}")
    if not isinstance(content.get("command"), str) or not isinstance(content.get("entries"), list):
        raise LedgerError("it needs a command and a list of entries")
    for number, entry in enumerate(content["entries"]):
        where = f"entry {number}"
        _check_fields(where, entry, ENTRY_FIELDS)
        for run in entry["runs"]:
            _check_fields(f"{where}, a run", run, RUN_FIELDS)
            optional = PACKED_FIELDS | JUDGED_FIELDS
            _check_fields(f"{where}, a run", run, {key: optional[key] for key in optional if key in run})
        _check_sums(where, entry)


def _check_fields(where: str, node: Any, fields: dict[str, tuple[tuple[type, ...], str]]) -> None:
    if not isinstance(node, dict):
        raise LedgerError(f"{where} is no object")
    for name, (types, meaning) in fields.items():
        if name not in node:
            raise LedgerError(f"{where} has no {name} ({meaning})")
        value = node[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise LedgerError(f"{where}: {name} is {value!r} ({meaning})")


def _check_sums(where: str, entry: Entry) -> None:
    """What an entry says of its runs must follow from them."""
    values = [run["value"] for run in entry["runs"]]
    if entry["status"] not in STATES or (entry["status"] == "complete") != (not entry["unfinished"]):
        raise LedgerError(f"{where}: status is {entry['status']!r} with {len(entry['unfinished'])} unfinished runs")
    if entry["seeds"] != [run["seed"] for run in entry["runs"]] or len(set(entry["seeds"])) != len(entry["seeds"]):
        raise LedgerError(f"{where}: seeds are {entry['seeds']}, and the runs have others, or one twice")
    if (entry["mean"] is None) != (not values):
        raise LedgerError(f"{where}: mean is {entry['mean']} of {len(values)} runs")
    if values and not math.isclose(entry["mean"], sum(values) / len(values), abs_tol=1e-6):
        raise LedgerError(f"{where}: mean is {entry['mean']}, and the runs' is {sum(values) / len(values):.6f}")


def run_rows(entries: list[Entry]) -> list[Row]:
    """Return one flat row for each finished run: its own fields, its entry's, and the settings as columns."""
    rows = []
    for entry in entries:
        of_entry = {key: entry[key] for key in ("experiment", "name", "data", "model", "label", "metric", "method")}
        of_entry |= {"quantizer": entry["method"], "parameters": entry["parameters"], "fp32_bytes": entry["fp32_bytes"]}
        published = entry["published"] or {}
        for run in entry["runs"]:
            hardware, versions = run["hardware"] or {}, run["versions"] or {}
            rows.append(
                {
                    **of_entry,
                    **{key: value for key, value in run.items() if not isinstance(value, dict | list)},
                    "published": published.get("value"),
                    "published_source": published.get("source"),
                    "cpu": hardware.get("cpu"),
                    "torch": versions.get("torch"),
                    **entry["settings"],
                }
            )
    return rows
