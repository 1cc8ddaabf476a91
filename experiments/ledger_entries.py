"""Entries of a ledger from records of runs: seeds pooled, mixtures refused, what has not ended noted."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from experiments.identity import flat
from experiments.run_records import Record, settings
from experiments.seed_statistics import mean_interval
from paper_figures.ledger_file import STATES, Entry

_DATA = ("data", "train_examples", "validation_examples", "test_examples")
# What must be the same in all seeds of an experiment, and how a record tells it. The first cannot be allowed to differ.
_SAME: dict[str, Callable[[Record], Any]] = {
    "data": lambda record: {key: record[key] for key in _DATA},
    "versions": lambda record: {name: (record["run"]["versions"] or {}).get(name) for name in ("bitplanes", "torch")},
    "code": lambda record: {"sources of bnn": (record["run"]["code"] or {}).get("sources")},
}
MAY_DIFFER = tuple(_SAME)[1:]

_OF_ENTRY = (
    *("task", "metric", "data", "train_examples", "validation_examples", "test_examples", "name", "model", "method"),
    *("label", "weight_bits", "activation_bits", "experiment", "config", "published", "parameters", "fp32_bytes"),
)


def mixture(records: Sequence[Record], allowed: Iterable[str] = ()) -> str | None:
    """Return why the seeds of an experiment do not belong together, in words; None if they do.

    allowed: of MAY_DIFFER, what is let pass.
    """
    for what, tell in _SAME.items():
        if what in allowed:
            continue
        first = tell(records[0])
        for record in records[1:]:
            if (other := tell(record)) != first:
                words = [f"{key} {first[key]} and {other[key]}" for key in first if first[key] != other[key]]
                seeds = f"seeds {records[0]['run']['seed']} and {record['run']['seed']}"
                hint = f"; mixed=[{what}] lets it pass" if what in MAY_DIFFER else ""
                return f"{seeds} are of {', '.join(words)}{hint}"
    return None


def make_entries(records: Iterable[Record], unfinished: Iterable[Record] = ()) -> list[Entry]:
    """Return an entry for each experiment, in the order of the records.

    unfinished: records of runs without a result: what `described` says of them, and {seed, status, reason, command}
    under "run".
    """
    groups: dict[str, list[Record]] = {}
    waiting: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["experiment"], []).append(record)
    for record in unfinished:
        waiting.setdefault(record["experiment"], []).append(record)
    firsts = {**{key: found[0] for key, found in waiting.items()}, **{key: found[0] for key, found in groups.items()}}
    order = [*groups, *(key for key in waiting if key not in groups)]
    differ = settings([firsts[key] for key in order])
    return [_entry(firsts[key], groups.get(key, []), waiting.get(key, []), differ) for key in order]


def _entry(first: Record, done: list[Record], waiting: list[Record], differ: list[str]) -> Entry:
    runs = sorted((record["run"] for record in done), key=lambda run: run["seed"])
    open_runs = sorted((record["run"] for record in waiting), key=lambda run: run["seed"])
    options = flat(first["config"])
    entry = {**dict.fromkeys(_OF_ENTRY), "task": "classification", "metric": "test_accuracy", **first}
    return {
        **{key: entry[key] for key in _OF_ENTRY},
        "settings": {key: options.get(key) for key in differ},
        "command": (runs or open_runs)[0]["command"],
        **pooled(runs, open_runs),
    }


def pooled(runs: list[dict[str, Any]], unfinished: list[dict[str, Any]]) -> Entry:
    """Return the fields of an entry that follow from its runs."""
    values = [run["value"] for run in runs]
    seconds = [run["train_seconds"] for run in runs]
    interval = mean_interval(values)
    return {
        "status": min((run["status"] for run in unfinished), key=STATES.index, default="complete"),
        "seeds": [run["seed"] for run in runs],
        "unfinished": unfinished,
        "mean": round(float(np.mean(values)), 6) if values else None,
        "std": round(float(np.std(values, ddof=1)), 6) if len(values) > 1 else None,
        "interval": [round(end, 6) for end in interval] if interval else None,
        "train_seconds": round(sum(seconds), 1) if seconds and None not in seconds else None,
        "runs": runs,
    }
