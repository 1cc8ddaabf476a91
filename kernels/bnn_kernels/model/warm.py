"""Fill the cache of machine code at build time, so that a model's first call in a fresh container compiles nothing."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numba.core import event

from bnn_kernels.compile import cache as jit_cache
from bnn_kernels.model.packed_model import PackedModel
from bnn_kernels.runtime import threads

# A first call runs step by step, a second of as many images records, from the third on it is played back.
CALLS = 3


class Warmed(NamedTuple):
    """Kernels that were compiled, in seconds, and why they are not kept, "" if they are."""

    compiled: int
    seconds: float
    not_kept: str


class _Compilations(event.Listener):
    """Counts the kernels that are compiled rather than taken from the cache; Numba compiles one at a time."""

    def __init__(self) -> None:
        self.count, self.seconds, self._depth, self._start = 0, 0.0, 0, 0.0

    def on_start(self, event: Any) -> None:
        if self._depth == 0:
            self._start = time.perf_counter()
        self._depth += 1

    def on_end(self, event: Any) -> None:
        self._depth -= 1
        self.count += isinstance(event.data["dispatcher"]._cache, jit_cache.KernelCache)
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._start


@contextmanager
def compilations() -> Iterator[_Compilations]:
    """Count the kernels that are compiled meanwhile, in any thread."""
    listener = _Compilations()
    event.register("numba:compile", listener)
    try:
        yield listener
    finally:
        event.unregister("numba:compile", listener)


def example_inputs(model: PackedModel, images: int) -> list[np.ndarray]:
    """Return inputs of that many images: zeros, which are a row of every table too."""
    kinds = zip(model.input_shapes, model.input_dtypes, strict=True)
    return [np.zeros((images, *shape), dtype) for shape, dtype in kinds]


def warm(model: PackedModel, batches: Sequence[int] = (1, 8), counts: Sequence[int] | None = None) -> Warmed:
    """Compile every kernel that calls of a model with so many images and threads need.

    counts: numbers of threads, by default one and all that may be used. Kernels are shared among threads whatever
    their size meanwhile: a later call may share any of them.
    """
    before = threads.get_num_threads()
    with compilations() as found:
        try:
            for count in dict.fromkeys(counts or (1, before)):
                threads.set_num_threads(count)
                with threads.sharing_everything():
                    for images in batches:
                        for _ in range(CALLS):
                            model(*example_inputs(model, images))
        finally:
            threads.set_num_threads(before)
    return Warmed(found.count, found.seconds, jit_cache.not_kept())
