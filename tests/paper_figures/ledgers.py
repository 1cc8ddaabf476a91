"""Ledgers for tests of figures: entry("1/1", accuracies of seeds, ...), ledger(entries)."""

from experiments.ledger_entries import pooled
from experiments.run_records import bits_of


def entry(label, accuracies, *, method=None, sizes=None, latencies=None, metric="test_accuracy", **fields):
    """An entry of DigitsCNN on the digits whose seeds 0, 1, ... have these accuracies, packed sizes and latencies."""
    runs = []
    for seed, value in enumerate(accuracies):
        run = {
            "seed": seed,
            "value": value,
            "test_accuracy": value if metric == "test_accuracy" else 0.5,
            "validation_accuracy": 0.5,
            "train_accuracy": 0.5,
            "epochs": 2,
            "steps": 10,
            "stopped_by": None,
            "findings": [],
            "train_seconds": 1.0,
            "command": f"python -m experiments.train seed={seed}",
            "code": {"commit": None, "sources": "0" * 12},
            "versions": {"torch": "2"},
            "hardware": {"cpu": "a CPU"},
            "finished": "2026-01-01T00:00:00+00:00",
        }
        if sizes:
            packed = {"file_bytes": sizes[seed], "test_accuracy_packed": value, "same_predictions": 400}
            run |= {**packed, "test_images": 400, "parity_ok": True}
        if latencies:
            median = latencies[seed]
            run["latency_us"] = {"median": median, "low": median, "high": median, "calls": 9, "cpu": "a CPU"}
        runs.append(run)
    weight_bits, activation_bits = bits_of(label)
    return {
        "task": "classification" if metric == "test_accuracy" else "language modelling",
        "metric": metric,
        "data": "digits",
        "train_examples": 1197,
        "validation_examples": 200,
        "test_examples": 400,
        "name": "demo",
        "model": "DigitsCNN",
        "method": method or label,
        "label": label,
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "experiment": f"{method}{label}",
        "config": {},
        "published": None,
        "parameters": 1000,
        "fp32_bytes": 4000,
        "settings": {},
        "command": "python -m experiments.train",
        **pooled(runs, []),
    } | fields


def ledger(entries):
    """The content of a ledger's file."""
    return {"schema": "bitplanes ledger", "version": 1, "command": "python -m experiments.collect", "entries": entries}
