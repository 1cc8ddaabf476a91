"""How much of a distribution quantized values lose: the Kullback-Leibler divergence of TensorRT's calibration."""

import torch
from torch import Tensor

from bnn.calibration.distribution import Distribution
from bnn.quantizers.grid import Grid


def entropy(binned: Distribution, grid: Grid, low: Tensor, high: Tensor) -> Tensor:
    """Return KL(P || Q) (C,), in nats, of what a grid that covers low to high (C,) makes of a histogram.

    P: the counts of the bins within the range, with all that lies outside added to the outermost bins that hold
    something. Q: the counts within the range alone, where all bins that become one level, if they hold something, share
    its count evenly. Both are divided by their sums. So clipping costs, as P has what Q lacks, and so do wide levels,
    which wash out what the bins tell apart. Zeros are left out: every grid has them exactly. A row with nothing in the
    range has an infinite divergence.
    Migacz, "8-bit Inference with TensorRT", GTC 2017, pages 36 to 38; its 128 levels of magnitudes are here those of
    any grid.
    """
    step, zero_point = grid.fit(low, high)
    assert binned.counts is not None
    lowest, highest = grid.low - zero_point[:, None], grid.high - zero_point[:, None]
    unclipped = (binned.values / step[:, None]).round()
    inside = (unclipped >= lowest) & (unclipped <= highest) & (binned.counts > 0)
    within = binned.counts * inside
    reference = within + _at_the_ends(binned, inside)
    index = (unclipped.clamp(lowest, highest) - lowest).long()
    levels = torch.zeros(len(index), grid.high - grid.low + 1, dtype=torch.float64)
    total = levels.scatter_add(1, index, within)
    filled = levels.scatter_add(1, index, inside.to(torch.float64))
    shared = (total / filled.clamp(min=1)).gather(1, index) * inside
    p = reference / reference.sum(1, keepdim=True)
    q = shared / shared.sum(1, keepdim=True)
    divergence = torch.where(inside, p * (p / q).log(), 0).sum(1)
    return torch.where(inside.any(1), divergence, torch.inf)


def _at_the_ends(binned: Distribution, inside: Tensor) -> Tensor:
    """Return the counts outside of a range as they are added to the first and last bin within it."""
    assert binned.counts is not None
    far = torch.finfo(torch.float64).max
    lowest = torch.where(inside, binned.values, far).argmin(1, keepdim=True)
    highest = torch.where(inside, binned.values, -far).argmax(1, keepdim=True)
    outside = binned.counts * ~inside
    below = (outside * (binned.values < binned.values.gather(1, lowest))).sum(1, keepdim=True)
    above = outside.sum(1, keepdim=True) - below
    added = torch.zeros_like(binned.counts)
    return added.scatter_add(1, lowest, below).scatter_add(1, highest, above)
