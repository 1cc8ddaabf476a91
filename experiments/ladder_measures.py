"""What is measured of each network on the ladder: answers, latency, energy, memory and bytes."""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import process_memory
from experiments.energy import microjoules_a_call
from experiments.timing import samples_in_turn, set_threads


def answers(predict: Callable[[np.ndarray], np.ndarray], batches: Iterable[np.ndarray]) -> np.ndarray:
    """Return the logits (N, classes), float64, of all batches."""
    return np.concatenate([np.array(predict(x), np.float64) for x in batches])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithms of the probabilities of logits (N, classes).

    >>> np.exp(log_softmax(np.zeros((1, 4))))
    array([[0.25, 0.25, 0.25, 0.25]])
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def divergence(exact: np.ndarray, found: np.ndarray) -> float:
    """Return the mean Kullback-Leibler divergence, in nats, of a network's probabilities from those in FP32."""
    p, q = log_softmax(exact), log_softmax(found)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of inputs that two networks put in the same class."""
    return float((one.argmax(axis=1) == other.argmax(axis=1)).mean())


def compared(found: np.ndarray, exact: np.ndarray, labels: np.ndarray | None) -> dict[str, Any]:
    """Return how good answers are; accuracy is None without labels. RuntimeError if they are no numbers."""
    if not np.isfinite(found).all():
        raise RuntimeError("some answers are not finite")
    return {
        "accuracy": None if labels is None else round(float((found.argmax(axis=1) == labels).mean()), 6),
        "agreement_with_fp32": round(agreement(found, exact), 6),
        "kl_from_fp32": round(divergence(exact, found), 9),
    }


def latencies(
    built: Sequence[tuple[Any, Path]], example: np.ndarray, threads: int, seconds: float, least: int
) -> list[dict[str, Any]]:
    """Time networks in turn on one example, all with so many threads; built: (engine, folder) of each.

    Returns for each the median and the 90th percentile of its calls, and its energy a call where the CPU tells it.
    """
    count = set_threads(threads)
    networks = [engine.load(folder, count, batch=len(example), counted=False) for engine, folder in built]
    calls = [functools.partial(network.predict, example) for network in networks]
    found = []
    for call, samples in zip(calls, samples_in_turn(calls, seconds * len(calls), least), strict=True):
        median, high = np.quantile(samples, (0.5, 0.9))
        energy = microjoules_a_call(call, seconds)
        found.append(
            {
                "threads": count,
                "p50_us": round(float(median) * 1e6, 2),
                "p90_us": round(float(high) * 1e6, 2),
                "calls": len(samples),
                "energy_uj": None if energy is None else round(energy, 1),
            }
        )
    return found


def memory(engine: Any, folder: Path, example: np.ndarray) -> dict[str, int] | None:
    """Return the resident memory of a process that runs a network, None where the system does not say it."""
    from experiments.engine_memory import measure

    return measure(engine.name, folder, example) if process_memory.is_measured() else None
