"""Thresholds found by bisection on the very functions that PyTorch evaluates.

Between two quantizers a network does monotone arithmetic: scale, bias, batch norm, ReLU or hardtanh, quantizer. So
each level begins at one number. It is found here by asking the PyTorch modules themselves on which side a number
falls, not by solving for it: no formula is derived twice, the rounding of every float operation is included, and
gamma < 0 (a falling channel) and gamma = 0 (a constant one) need no special case.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bnn.converter.levels.table import LevelTable

INT_MIN, INT_MAX = np.iinfo(np.int32).min, np.iinfo(np.int32).max


def _smallest_true(predicate: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Return the smallest integer in (low, high] where a rising predicate holds, elementwise; `high` counts as true."""
    while bool((high - low > 1).any()):
        middle = torch.div(low + high, 2, rounding_mode="floor")
        true = predicate(middle)
        high = torch.where(true, middle, high)
        low = torch.where(true, low, middle)
    return high


def _float_of_order(order: Tensor) -> Tensor:
    """Return the float32 with this place in the order of all floats; 0 is both zeros."""
    magnitude = order.abs().to(torch.int32).view(torch.float32)
    return torch.where(order < 0, -magnitude, magnitude)


def _thresholds(
    level_of_order: Callable[[Tensor], Tensor], channels: int, largest: int, table: LevelTable
) -> tuple[Tensor, Tensor]:
    """Return (t int64 (L-1, channels), flip bool (channels,)): level index = #{i : (order >= t[i]) xor flip}.

    level_of_order: maps int64 orders (T, channels) in [-largest, largest] to integer levels, monotone by channel.
    t is largest + 1 or -largest - 1 where a level is never, or always, reached.
    """
    ends = torch.tensor([[-largest], [largest]]).expand(2, channels)
    first, last = table.rank(level_of_order(ends))
    flip = first > last
    direction = torch.where(flip, -1, 1)
    wanted = torch.arange(1, len(table.levels))[:, None]
    low = torch.full((len(table.levels) - 1, channels), -largest - 1)

    def reached(d: Tensor) -> Tensor:
        inside = d.clamp(-largest, largest)
        return (table.rank(level_of_order(inside * direction)) >= wanted) & (d <= largest)

    found = _smallest_true(reached, low, -low)
    always = found <= -largest
    # A rising channel reaches the level for orders >= found; a falling one for orders <= -found, that is < 1 - found.
    rising = torch.where(always, -largest - 1, found)
    falling = torch.where(always, largest + 1, torch.where(found > largest, -largest - 1, 1 - found))
    return torch.where(flip, falling, rising), flip


def float_thresholds(
    level_of_float: Callable[[Tensor], Tensor], channels: int, largest: float, table: LevelTable
) -> tuple[np.ndarray, np.ndarray]:
    """Return (t float32 (L-1, channels), flip bool (channels,)): level index = #{i : (x >= t[i]) xor flip}.

    level_of_float: maps float32 (T, channels) to integer levels, monotone by channel; it is asked within
    [-largest, largest]. t is +-inf where no float begins a level.
    """
    end = int(torch.tensor(largest, dtype=torch.float32).view(torch.int32))
    order, flip = _thresholds(lambda o: level_of_float(_float_of_order(o)), channels, end, table)
    t = _float_of_order(order.clamp(-end, end))
    t = torch.where(order > end, float("inf"), torch.where(order < -end, float("-inf"), t))
    return t.numpy(), flip.numpy().copy()


def integer_thresholds(
    level_of_sum: Callable[[Tensor], Tensor], channels: int, largest: int, table: LevelTable
) -> tuple[np.ndarray, np.ndarray]:
    """Return (t int32 (L-1, channels), flip bool (channels,)): level index = #{i : (sum >= t[i]) xor flip}.

    level_of_sum: maps int64 sums (T, channels) in [-largest, largest] to integer levels, monotone by channel.
    """
    t, flip = _thresholds(level_of_sum, channels, largest, table)
    t = torch.where(t > largest, INT_MAX, torch.where(t < -largest, INT_MIN, t))
    return t.numpy().astype(np.int32), flip.numpy().copy()
