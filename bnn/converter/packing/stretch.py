"""What lies between a value and a quantizer's levels behind it, as one monotone function of each channel.

Scale, bias, batch norm and rising activations move no number of a channel past another, and max pooling commutes with
all of them. So whatever that stretch of a network is, the levels are thresholds on the value that it starts from, and
pooling is a maximum or (where the rest falls) a minimum of levels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from bnn_kernels.steps.pool import PoolFields
from torch import Tensor

from bnn.converter.graph.values import Channelwise, Levels, Pool, Value
from bnn.converter.levels.search import float_thresholds, integer_thresholds
from bnn.converter.levels.table import LARGEST_FLOAT, LevelTable
from bnn.converter.packing.planner import Demand


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Level index = #{i : (x >= t[i]) xor flip}; t (L-1, C), flip bool (C,)."""

    t: np.ndarray
    flip: np.ndarray
    table: LevelTable

    def same(self, other: "Thresholds") -> bool:
        """Whether both give the same levels."""
        mine, theirs = self.table, other.table
        alike = (mine.signed, mine.multipliers) == (theirs.signed, theirs.multipliers)
        alike = alike and np.array_equal(mine.codes, theirs.codes)
        return alike and np.array_equal(self.t, other.t) and np.array_equal(self.flip, other.flip)


class Stretch:
    """The way from a value with `channels` channels to the levels of a demand on it."""

    def __init__(self, demand: Demand, channels: int):
        self.levels: Levels = demand.levels
        self.path = demand.path
        self.channels = channels

    @cached_property
    def table(self) -> LevelTable:
        """The levels in order."""
        return self.levels.table

    @property
    def pools(self) -> list[int]:
        """Places of max pooling in the path."""
        return [i for i, value in enumerate(self.path) if isinstance(value, Pool)]

    def apply(self, y: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Run path[first:last] on floats (T, channels), pooling and flattening left out."""
        for value in self.path[first:last]:
            if isinstance(value, Channelwise):
                y = value.function(y)
        return y

    def level(self, y: Tensor) -> Tensor:
        """Return the integer levels of floats (T, channels) after the whole stretch."""
        return self.levels.levels(self.apply(y))

    def rises(self, first: int, last: int | None, enter: Callable[[Tensor], Tensor] = lambda y: y) -> np.ndarray:
        """Return bool (channels,): whether path[first:last] does not fall. `enter` comes before the first of them."""
        ends = torch.tensor([[-LARGEST_FLOAT], [LARGEST_FLOAT]]).expand(2, self.channels)
        low, high = self.apply(enter(ends), first, last)
        return (high >= low).numpy().copy()

    @cached_property
    def on_floats(self) -> Thresholds:
        """The levels as float32 thresholds on the value."""
        alike = all(part.uniform for part in (self.levels, *self.path) if isinstance(part, Levels | Channelwise))
        t, flip = float_thresholds(self.level, 1 if alike else self.channels, LARGEST_FLOAT, self.table)
        flip = np.broadcast_to(flip, self.channels).copy()
        return Thresholds(np.broadcast_to(t, (len(t), self.channels)).copy(), flip, self.table)

    def on_integers(self, output: Callable[[Tensor], Tensor], largest: int) -> Thresholds:
        """Return int32 thresholds on the sums from which `output` makes the value."""
        found = integer_thresholds(lambda sums: self.level(output(sums)), self.channels, largest, self.table)
        return Thresholds(*found, self.table)


def pools_alike(a: Stretch, b: Stretch) -> bool:
    """Whether two stretches from one value pool in the same way."""

    def windows(path: Sequence[Value]) -> list[PoolFields]:
        return [value.fields for value in path if isinstance(value, Pool)]

    if windows(a.path) != windows(b.path):
        return False
    return all(
        np.array_equal(a.rises(i + 1, None), b.rises(j + 1, None)) for i, j in zip(a.pools, b.pools, strict=True)
    )
