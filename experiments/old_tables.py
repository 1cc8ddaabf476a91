"""Tables that older versions of `collect` and `compare_methods` wrote, as entries of a ledger.

What they did not say is null.
"""

from typing import Any

from experiments.ledger_entries import pooled
from experiments.run_records import bits_of
from paper_figures.ledger_file import Entry

# Columns of a collected table that are fields of an entry or of a run; the others were options that differed.
_KNOWN = {
    *("command", "experiment", "name", "data", "model", "quantizer", "label", "seed", "epochs", "steps", "stopped_by"),
    *("train_accuracy", "validation_accuracy", "test_accuracy", "parameters", "fp32_bytes", "train_seconds"),
    *("published", "published_source", "cpu", "torch", "finished"),
    *("file_bytes", "test_accuracy_packed", "same_predictions", "test_images", "parity_ok"),
}
# What runs may have beside what all have.
_MORE = ("file_bytes", "test_accuracy_packed", "same_predictions", "test_images", "parity_ok", "diverged")


def entries_of_table(content: dict[str, Any]) -> list[Entry]:
    """Return the entries of an old table; ValueError if it is none."""
    rows = content.get("rows")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it has no rows")
    try:
        return _of_methods(content) if "runs" in rows[0] else _collected(rows)
    except (KeyError, TypeError) as error:
        raise ValueError(f"its rows are not those of collect or compare_methods: {error} is missing") from error


def _entry(fields: dict[str, Any], runs: list[dict[str, Any]]) -> Entry:
    weight_bits, activation_bits = bits_of(fields["label"])
    return {
        "task": "classification",
        "metric": "test_accuracy",
        "data": fields["data"],
        "train_examples": fields.get("train_examples"),
        "validation_examples": fields.get("validation_examples"),
        "test_examples": fields.get("test_examples"),
        "name": fields["name"],
        "model": fields["model"],
        "method": fields["method"],
        "label": fields["label"],
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "experiment": fields.get("experiment"),
        "config": None,
        "published": fields.get("published"),
        "parameters": fields.get("parameters"),
        "fp32_bytes": fields.get("fp32_bytes"),
        "settings": fields.get("settings", {}),
        "command": runs[0]["command"],
        **pooled(sorted(runs, key=lambda run: run["seed"]), []),
    }


def _collected(rows: list[dict[str, Any]]) -> list[Entry]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        options = {key: row[key] for key in row if key not in _KNOWN}
        names = {key: row[key] for key in ("name", "data", "model", "quantizer", "label", "epochs")}
        groups.setdefault(row.get("experiment") or repr((names, options)), []).append(row)
    entries = []
    for members in groups.values():
        first = members[0]
        published = None
        if first.get("published") is not None:
            published = {"metric": "test_accuracy", "value": first["published"], "source": first["published_source"]}
        fields = first | {
            "method": first["quantizer"],
            "test_examples": first.get("test_images"),
            "published": published,
            "settings": {key: first[key] for key in first if key not in _KNOWN},
        }
        entries.append(_entry(fields, [_run(row) for row in members]))
    return entries


def _run(row: dict[str, Any], origin: dict[str, Any] | None = None) -> dict[str, Any]:
    origin = origin or {"versions": {"torch": row.get("torch")}, "hardware": {"cpu": row.get("cpu")}}
    return {
        "seed": row["seed"],
        "value": row["test_accuracy"],
        "test_accuracy": row["test_accuracy"],
        "validation_accuracy": row.get("validation_accuracy"),
        "train_accuracy": row.get("train_accuracy"),
        "epochs": row["epochs"],
        "steps": row.get("steps"),
        "stopped_by": row.get("stopped_by"),
        "findings": row.get("findings"),
        "train_seconds": row.get("train_seconds"),
        "command": row["command"],
        "code": None,
        "versions": origin["versions"],
        "hardware": origin["hardware"],
        "finished": row.get("finished"),
        **{key: row[key] for key in _MORE if key in row},
    }


def _of_methods(content: dict[str, Any]) -> list[Entry]:
    """Entries of a comparison of methods: a row is a method with its runs; data, model and budget are common."""
    data, budget = content["data"], content["budget"]
    entries = []
    for row in content["rows"]:
        first = row["command"]
        runs = []
        for run in row["runs"]:
            command = first.replace("seed=0", f"seed={run['seed']}")
            runs.append(_run({**run, "command": command, "epochs": budget["epochs"]}, content))
        fields = {
            "data": data["name"],
            **{f"{split}_examples": data[split] for split in ("train", "validation", "test")},
            "name": budget["name"],
            "model": content["model"],
            "method": row["method"],
            "label": row["label"],
            "experiment": row.get("experiment"),
            "published": row.get("published"),
        }
        entries.append(_entry(fields, runs))
    return entries
