"""The latency of whole calls of a packed model, for sizes of batches and numbers of threads."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bnn_kernels.model.packed_model import PackedModel
from bnn_kernels.model.warm import CALLS, example_inputs
from bnn_kernels.runtime import threads

# Fewer calls than this have no median worth a name.
FEWEST_CALLS = 5


class Latency(NamedTuple):
    """Seconds of one call: the median and the best of so many."""

    images: int
    threads: int
    median: float
    best: float
    calls: int


def bench(
    model: PackedModel, batches: Sequence[int] = (1, 8), counts: Sequence[int] | None = None, seconds: float = 1.0
) -> list[Latency]:
    """Return the latency of calls on so many images with so many threads, each measured for so many seconds.

    counts: numbers of threads, by default one and all that may be used. Time of compilation and recording is left out.
    """
    before = threads.get_num_threads()
    found = []
    try:
        for count in dict.fromkeys(counts or (1, before)):
            threads.set_num_threads(count)
            for images in batches:
                inputs = example_inputs(model, images)
                for _ in range(CALLS):
                    model(*inputs)
                times: list[float] = []
                end = time.perf_counter() + seconds
                while len(times) < FEWEST_CALLS or time.perf_counter() < end:
                    start = time.perf_counter()
                    model(*inputs)
                    times.append(time.perf_counter() - start)
                found.append(Latency(images, count, float(np.median(times)), min(times), len(times)))
    finally:
        threads.set_num_threads(before)
    return found
