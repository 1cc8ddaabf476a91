"""What an observer knows of the values that a quantizer will meet: values, how often each, and their ends."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Bins on each side of 0 where values are counted by bins; as fine as TensorRT's histograms of 2,048.
BINS = 2048
# Values that are counted or rounded together: what a cache holds, and too few for PyTorch to start threads for.
AT_A_TIME = 1 << 15


@dataclass(frozen=True)
class Distribution:
    """Values of C channels, or of all together in one row.

    values: float64 (C, M). counts: float64 (C, M), how often each value was met, or None for once each. low, high:
    float64 (C,), the smallest and the largest.
    """

    values: Tensor
    counts: Tensor | None
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, values: Tensor) -> "Distribution":
        """Return the distribution of values (C, M) that are known one by one."""
        values = values.detach().to("cpu", torch.float64)
        return cls(values, None, values.amin(1), values.amax(1))

    def weighted_mean(self, amounts: Tensor) -> Tensor:
        """Return the mean (C,) over all values that were met of an amount (C, M) for each."""
        if self.counts is None:
            return amounts.mean(1)
        return (self.counts * amounts).sum(1) / self.counts.sum(1)

    def blocks(self, size: int) -> "list[Distribution]":
        """Return the same in parts of whole rows, of about so many values each."""
        rows = max(1, size // max(1, self.values.shape[1]))
        counts = [None] * len(self.low) if self.counts is None else self.counts.split(rows)
        parts = (self.values.split(rows), counts, self.low.split(rows), self.high.split(rows))
        return [Distribution(*part) for part in zip(*parts, strict=False)]

    def clamped(self, low: float) -> "Distribution":
        """Return the same with what is below `low` put there."""
        ends = self.low.clamp(min=low), self.high.clamp(min=low)
        return Distribution(self.values.clamp(min=low), self.counts, *ends)

    def quantile(self, share: float, of_magnitudes: bool = False) -> Tensor:
        """Return the smallest value (C,) at or below which lie at least `share` of all, or of their magnitudes."""
        values = self.values.abs() if of_magnitudes else self.values
        values, order = values.sort(dim=1)
        counts = torch.ones_like(values) if self.counts is None else self.counts.gather(1, order)
        reached = counts.cumsum(1)
        # Sums of counts are whole numbers, shares of them are not: 1e-9 of a count is rounding.
        at = (reached < share * reached[:, -1:] - 1e-9).sum(1, keepdim=True).clamp(max=values.shape[1] - 1)
        return values.gather(1, at)[:, 0]

    def binned(self) -> "Distribution":
        """Return the same with values counted in BINS bins of equal width on each side of 0, zeros left out.

        A bin stands for the mean of what lies in it. What is counted already stays as it is, without its zeros.
        """
        if self.counts is not None:
            return Distribution(self.values, self.counts * (self.values != 0), self.low, self.high)
        width = self.values.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny) / BINS
        index = (self.values / width).floor().clamp(-BINS, BINS - 1).long() + BINS
        once = (self.values != 0).to(torch.float64)
        counts = torch.zeros(len(index), 2 * BINS, dtype=torch.float64).scatter_add_(1, index, once)
        sums = torch.zeros_like(counts).scatter_add_(1, index, self.values)
        return Distribution(sums / counts.clamp(min=1), counts, self.low, self.high)
