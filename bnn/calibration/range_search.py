"""The range with the least cost, among those that shrink from the ends of the values towards 0."""

from collections.abc import Callable

import torch
from torch import Tensor

from bnn.calibration.distribution import Distribution
from bnn.quantizers.grid import Grid

# Shares of the whole range that are tried, and of what lies between the neighbours of the best.
COARSE, FINE = 50, 20

Cost = Callable[[Tensor, Tensor], Tensor]


def best_range(cost: Cost, values: Distribution, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the range (low, high), (C,) each, of least cost (C,); of equal ones the widest.

    Both ends of a grid without a zero point shrink together. With one, each is searched while the other stays, the
    upper end first and once more at last.
    """
    low, high = values.low.clamp(max=0), values.high.clamp(min=0)
    if not grid.has_zero_point:
        bound = torch.maximum(high, -low) if grid.low < 0 else high
        share = _best_share(lambda r: cost(-r * bound if grid.low < 0 else 0 * bound, r * bound), len(bound))
        return -share * bound if grid.low < 0 else 0 * bound, share * bound
    top = _best_share(lambda r: cost(low, r * high), len(high))
    bottom = _best_share(lambda r: cost(r * low, top * high), len(low))
    top = _best_share(lambda r: cost(bottom * low, r * high), len(high))
    return bottom * low, top * high


def _best_share(cost: Callable[[Tensor], Tensor], rows: int) -> Tensor:
    """Return the share (rows,) in (0, 1] of least cost: the best of COARSE, then of FINE around it."""
    best = torch.ones(rows, dtype=torch.float64)
    least = cost(best)
    for offsets in (
        [torch.full_like(best, -i / COARSE) for i in range(1, COARSE)],
        [torch.full_like(best, (i - FINE / 2) / (COARSE * FINE / 2)) for i in range(FINE + 1)],
    ):
        start = best
        for offset in offsets:
            share = (start + offset).clamp(1 / (COARSE * FINE), 1)
            found = cost(share)
            better = found < least
            best, least = torch.where(better, share, best), torch.where(better, found, least)
    return best
