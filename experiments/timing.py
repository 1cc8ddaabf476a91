"""Timing two functions fairly: in turn, in one run, best and median of many."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: best, median, and how many calls were timed."""

    best: float
    median: float
    calls: int


def pair(first: Callable[[], object], second: Callable[[], object], seconds: float) -> tuple[Timing, Timing]:
    """Time two functions in turn, A B A B ..., for about `seconds` in all (at least 10 calls of each)."""
    functions = (first, second)
    for function in functions:  # compile, fill caches
        function()
        function()
    samples: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples[0]) < 10:
        for function, times in zip(functions, samples, strict=True):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return tuple(Timing(min(t), float(np.median(t)), len(t)) for t in samples)  # type: ignore[return-value]
