"""A histogram that takes values as they come: bins double in width when a larger value arrives.

Bins are a power of two wide and begin at 0, so two neighbours merge into one without any value changing its side. The
result depends on all values together and not on how they were split into batches, and one pass over the data is enough.
"""

import math

import torch
from torch import Tensor

from bnn.calibration.distribution import AT_A_TIME, Distribution

# Bins on each side of 0: at least half of them are in use on the wider side.
HALF = 8192


class Histogram:
    """Counts of values, the sum of those in each bin, the ends, and how many are exactly 0, which lie in no bin."""

    def __init__(self) -> None:
        self.counts = torch.zeros(2 * HALF, dtype=torch.float64)
        self.sums = torch.zeros(2 * HALF, dtype=torch.float64)
        self.zeros = 0
        self.low, self.high = math.inf, -math.inf
        self._exponent: int | None = None  # of the width of a bin

    @property
    def is_empty(self) -> bool:
        """Whether no value has come."""
        return self.high < self.low

    def add(self, x: Tensor) -> None:
        """Count the values of a tensor; ValueError if one of them is NaN or infinite."""
        if x.numel() == 0:
            return
        low, high = (float(end) for end in x.detach().aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("the values hold NaN or infinity")
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(abs(low), abs(high))
        if largest > 0:
            # frexp: largest < 2^e, so that 2^e / HALF is wide enough.
            self._widen(math.frexp(largest)[1] - HALF.bit_length() + 1)
        for part in x.detach().flatten().split(AT_A_TIME):
            self._count(part.to("cpu", torch.float64))

    def _widen(self, exponent: int) -> None:
        if self._exponent is None:
            self._exponent = exponent
        steps = min(exponent - self._exponent, HALF.bit_length() - 1)
        if steps > 0:
            self.counts, self.sums = _merged(self.counts, steps), _merged(self.sums, steps)
            self._exponent = exponent

    def _count(self, values: Tensor) -> None:
        zeros = int((values == 0).view(torch.uint8).sum())
        self.zeros += zeros
        if self._exponent is None or zeros == len(values):
            return
        index = (values * 2.0**-self._exponent).floor_().add_(HALF).long()
        self.counts += torch.bincount(index, minlength=2 * HALF)
        self.counts[HALF] -= zeros  # faster than to take them out beforehand
        self.sums += torch.bincount(index, values, minlength=2 * HALF)

    def distribution(self) -> Distribution:
        """Return one row of all values: the mean of each bin with its count, and 0 with the number of zeros."""
        used = self.counts > 0
        values, counts = self.sums[used] / self.counts[used], self.counts[used]
        if self.zeros:
            values, counts = (
                torch.cat([values, values.new_zeros(1)]),
                torch.cat([counts, counts.new_tensor([self.zeros])]),
            )
        ends = (torch.tensor([end], dtype=torch.float64) for end in (self.low, self.high))
        return Distribution(values[None], counts[None], *ends)


def _merged(bins: Tensor, steps: int) -> Tensor:
    """Return bins with 2^steps neighbours added into each, around the same middle."""
    parts = bins.reshape(-1, 1 << steps).sum(1)
    merged = torch.zeros_like(bins)
    start = HALF - len(parts) // 2
    merged[start : start + len(parts)] = parts
    return merged
