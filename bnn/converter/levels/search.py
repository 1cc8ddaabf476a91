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

# Numbers that are asked about at once, where there are few thresholds: a call costs more than these.
_AT_ONCE = 1 << 12
# Thresholds of a channel from which on their places are guessed: levels are most often evenly spaced.
_MANY = 8
# How far from a guess a threshold is looked for, at first and where it is not there.
_REACHES = (2, 64)


def _narrowed(points: Tensor, true: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ends (low, high] with what is known of a number between them."""
    return torch.where(true, low, points), torch.where(true, points, high)


def _smallest_true(predicate: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Return the smallest integer in (low, high] where a rising predicate holds, elementwise; `high` counts as true.

    predicate: maps (K, *shape) to bool.
    """
    count = max(1, _AT_ONCE // max(1, low.numel()))
    parts = torch.arange(1, count + 1).reshape(-1, *[1] * low.ndim)
    while bool((high - low > 1).any()):
        points = low + torch.div((high - low) * parts, count + 1, rounding_mode="floor")
        if count == 1:
            low, high = _narrowed(points[0], predicate(points)[0], low, high)
            continue
        false = (~predicate(points)).sum(0, keepdim=True)
        ends = torch.cat([low[None], points, high[None]])
        low, high = ends.gather(0, false)[0], ends.gather(0, false + 1)[0]
    return high


def _float_of_order(order: Tensor) -> Tensor:
    """Return the float32 with this place in the order of all floats; 0 is both zeros."""
    magnitude = order.abs().to(torch.int32).view(torch.float32)
    return torch.where(order < 0, -magnitude, magnitude)


def _near_guesses(
    reached: Callable[[Tensor, Tensor], Tensor], wanted: Tensor, ranks: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Return narrower ends (low, high], as if levels began at evenly spaced orders between the first and the last.

    reached: of orders (K, *shape) and wanted levels, whether the levels are reached. ranks: (2, channels), the lowest
    and the highest level. wanted, low, high: (L-1, channels).
    """
    least, most = ranks
    outer = torch.stack([(least + 1).clamp(max=len(wanted)), most.clamp(min=1)])
    first, last = _smallest_true(
        lambda points: reached(points, outer), low.gather(0, outer - 1), high.gather(0, outer - 1)
    )
    within = (wanted > least) & (wanted <= most)
    low = torch.where(within, torch.maximum(first - 1, low), low)
    high = torch.where(within, torch.minimum(last, high), high)
    share = (wanted - 1 - least) / (most - 1 - least).clamp(min=1)
    guess = first + ((last - first) * share.clamp(0, 1).to(torch.float64)).round().to(torch.int64)
    for reach in _REACHES:
        for point in (guess - reach, guess + reach):
            inside = torch.maximum(torch.minimum(point, high), low + 1)
            low, high = _narrowed(inside, reached(inside[None], wanted)[0], low, high)
        if not bool((high - low > 2 * reach).any()):
            break
    return low, high


def _thresholds(
    level_of_order: Callable[[Tensor], Tensor], channels: int, largest: int, table: LevelTable, even: bool
) -> tuple[Tensor, Tensor]:
    """Return (t int64 (L-1, channels), flip bool (channels,)): level index = #{i : (order >= t[i]) xor flip}.

    level_of_order: maps int64 orders (T, channels) in [-largest, largest] to integer levels, monotone by channel.
    even: whether levels are likely to begin at evenly spaced orders.
    t is largest + 1 or -largest - 1 where a level is never, or always, reached.
    """
    ends = torch.tensor([[-largest], [largest]]).expand(2, channels)
    ranks = table.rank(level_of_order(ends))
    flip = ranks[0] > ranks[1]
    direction = torch.where(flip, -1, 1)
    wanted = torch.arange(1, len(table.levels))[:, None].expand(-1, channels)

    def reached(points: Tensor, wanted: Tensor) -> Tensor:
        inside = points.clamp(-largest, largest) * direction
        rank = table.rank(level_of_order(inside.reshape(-1, channels))).reshape(points.shape)
        return (rank >= wanted) & (points <= largest)

    ranks = ranks.sort(0).values
    # Levels that are always or never reached need no search.
    low = torch.where(wanted > ranks[1], largest, -largest - 1)
    high = torch.where(wanted <= ranks[0], -largest, largest + 1)
    if even and len(wanted) >= _MANY:
        low, high = _near_guesses(reached, wanted, ranks, low, high)
    found = _smallest_true(lambda points: reached(points, wanted), low, high)
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
    order, flip = _thresholds(lambda o: level_of_float(_float_of_order(o)), channels, end, table, even=False)
    t = _float_of_order(order.clamp(-end, end))
    t = torch.where(order > end, float("inf"), torch.where(order < -end, float("-inf"), t))
    return t.numpy(), flip.numpy().copy()


def integer_thresholds(
    level_of_sum: Callable[[Tensor], Tensor], channels: int, largest: int, table: LevelTable
) -> tuple[np.ndarray, np.ndarray]:
    """Return (t int32 (L-1, channels), flip bool (channels,)): level index = #{i : (sum >= t[i]) xor flip}.

    level_of_sum: maps int64 sums (T, channels) in [-largest, largest] to integer levels, monotone by channel.
    """
    t, flip = _thresholds(level_of_sum, channels, largest, table, even=True)
    t = torch.where(t > largest, INT_MAX, torch.where(t < -largest, INT_MIN, t))
    return t.numpy().astype(np.int32), flip.numpy().copy()
