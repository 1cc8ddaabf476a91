"""Timing two functions fairly: in turn, in one run, best and median of many."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BLOCK_SECONDS = 0.02


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: best, median, and how many calls were timed."""

    best: float
    median: float
    calls: int


def pair(first: Callable[[], object], second: Callable[[], object], seconds: float) -> tuple[Timing, Timing]:
    """Time two functions in turn, in blocks of calls A A A B B B A A A ..., for about `seconds` in all.

    A block lasts about BLOCK_SECONDS, so that each side mostly finds the caches as it left them, and there are at
    least 10 calls of each; every call counts.
    """
    functions = (first, second)
    for function in functions:  # compile, fill caches
        function()
        function()
    samples: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, samples)) < 10:
        for function, times in zip(functions, samples, strict=True):
            block = time.perf_counter() + BLOCK_SECONDS
            while (start := time.perf_counter()) < block:
                function()
                times.append(time.perf_counter() - start)
    return tuple(Timing(min(t), float(np.median(t)), len(t)) for t in samples)  # type: ignore[return-value]
