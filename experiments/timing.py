"""Timing functions fairly: in turn, in one run, best and median of many."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

BLOCK_SECONDS = 0.02
# Threads of a pool spin after their work, ONNX Runtime's for over 20 ms: they would take a core from the next side.
REST_SECONDS = 0.05


def set_threads(count: int) -> int:
    """Set the threads of PyTorch, of the kernels and of their BLAS; 0 stands for all cores. Returns the count."""
    import bnn_kernels as bk
    import torch

    from bnn.machine import usable_cores

    count = count or usable_cores()
    torch.set_num_threads(count)
    bk.set_num_threads(count)
    return count


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: best, median and quartiles, and how many calls were timed."""

    best: float
    median: float
    calls: int
    quartiles: tuple[float, float]

    def divided(self, count: int) -> "Timing":
        """Return the times of one of `count` equal parts of the call."""
        low, high = self.quartiles
        return Timing(self.best / count, self.median / count, self.calls, (low / count, high / count))


def samples_in_turn(functions: Sequence[Callable[[], object]], seconds: float, least: int = 10) -> list[list[float]]:
    """Return the seconds of all calls of functions in turn, in blocks A A A B B B ... A A A ..., of `seconds` in all.

    A block lasts about BLOCK_SECONDS, so that each side mostly finds the caches as it left them, and there are at
    least `least` calls of each; every call counts. With more than one thread each block begins with REST_SECONDS in
    which the threads of the side before fall asleep, and with a call that does not count; `seconds` leaves both out.
    """
    import bnn_kernels as bk

    for function in functions:  # compile, fill caches
        function()
        function()
    rests = bk.get_num_threads() > 1 and len(functions) > 1
    samples: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, samples)) < least:
        for function, times in zip(functions, samples, strict=True):
            if rests:
                start = time.perf_counter()
                time.sleep(REST_SECONDS)
                function()
                end += time.perf_counter() - start
            block = time.perf_counter() + BLOCK_SECONDS
            while (start := time.perf_counter()) < block:
                function()
                times.append(time.perf_counter() - start)
    return samples


def in_turn(functions: Sequence[Callable[[], object]], seconds: float, least: int = 10) -> list[Timing]:
    """Time functions in turn; see `samples_in_turn`."""
    found = []
    for times in samples_in_turn(functions, seconds, least):
        low, median, high = (float(value) for value in np.quantile(times, (0.25, 0.5, 0.75)))
        found.append(Timing(min(times), median, len(times), (low, high)))
    return found


def pair(first: Callable[[], object], second: Callable[[], object], seconds: float) -> tuple[Timing, Timing]:
    """Time two functions in turn; see `in_turn`."""
    one, other = in_turn((first, second), seconds)
    return one, other
