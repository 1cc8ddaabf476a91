"""What a way of computing a convolution's sums offers, whatever it computes them with.

To add one: a class like these in a file beside its kernel, and a line in `packed_layers.choice` that says when it is
the one to take.
"""

from typing import Any, Protocol

import numpy as np

from bnn_kernels.bits.level_bytes import LevelBytes
from bnn_kernels.ops.outputs import Output


class ConvPath(Protocol):
    """Made once for the weights, geometry and `Maps` of a layer.

    dot = sum * factor + offsets[kind of border, filter]: `sum` is what the kernel hands to its output (`ops.outputs`),
    offsets int64 (kinds, G, filters of a group rounded up to eights), computed when they are read; groups: this G, 1
    where all filters lie side by side. sums_fit: whether the kernel's sums stay within int32 before an offset is added;
    if not they have wrapped around, and only the dot product may be compared.
    """

    factor: int
    groups: int
    sums_fit: bool

    @property
    def offsets(self) -> np.ndarray: ...

    def take(self, words: np.ndarray) -> tuple[Any, ...]:
        """Return the input as the kernel reads it, of contiguous words uint64 (P, N, H, W, V)."""
        ...

    def take_bytes(self, x: LevelBytes) -> tuple[Any, ...]:
        """Return the same of levels that are bytes."""
        ...

    def run(self, taken: tuple[Any, ...], positions: int, output: Output) -> None:
        """Compute all positions (n, oy, ox) into an output."""
        ...
