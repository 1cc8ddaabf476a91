"""Observers: from the values that a quantizer meets to the range that its levels shall cover."""

from typing import Protocol

import torch
from torch import Tensor

from bnn.calibration.distribution import AT_A_TIME, Distribution
from bnn.calibration.entropy import entropy
from bnn.calibration.range_search import best_range
from bnn.quantizers.grid import Grid

NAMES = ("min_max", "percentile", "mse", "entropy")


class Observer(Protocol):
    """What chooses a range. An object of one's own with such a method is as good as those here."""

    def range_of(self, values: Distribution, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the range (low, high), float64 (C,) each, that the levels of a grid shall cover."""
        ...


class MinMax:
    """From the smallest to the largest value: nothing is clipped."""

    def range_of(self, values: Distribution, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the ends of the values."""
        return values.low, values.high


class Percentile:
    """Up to a percentile of the magnitudes; with a zero point between percentiles that leave as much on both sides.

    percentile: in (50, 100]. ValueError on others.
    """

    def __init__(self, percentile: float = 99.99):
        if not 50 < percentile <= 100:
            raise ValueError(f"percentile must lie in (50, 100], got {percentile!r}")
        self.share = percentile / 100

    def range_of(self, values: Distribution, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the percentiles: the smallest values met that have at least this share of all at or below them."""
        if grid.has_zero_point:
            out = (1 - self.share) / 2
            return values.quantile(out), values.quantile(1 - out)
        values = values.clamped(0) if grid.low == 0 else values
        bound = values.quantile(self.share, of_magnitudes=True)
        return -bound if grid.low < 0 else bound.new_zeros(len(bound)), bound


class MeanSquaredError:
    """The range with which rounding and clipping together have the least mean squared error."""

    def range_of(self, values: Distribution, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the best of the ranges that shrink towards 0."""
        found = [self._of_rows(rows, grid) for rows in values.blocks(AT_A_TIME)]
        return torch.cat([low for low, _ in found]), torch.cat([high for _, high in found])

    def _of_rows(self, values: Distribution, grid: Grid) -> tuple[Tensor, Tensor]:
        def error(low: Tensor, high: Tensor) -> Tensor:
            rounded = grid.quantized(values.values, *grid.fit(low, high))
            return values.weighted_mean(rounded.sub_(values.values).square_())

        return best_range(error, values, grid)


class Entropy:
    """The range with which the quantized values tell most of the distribution of the values: least KL divergence.

    Migacz, "8-bit Inference with TensorRT", GTC 2017; see `bnn.calibration.entropy.entropy` for what is compared.
    """

    def range_of(self, values: Distribution, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the best of the ranges that shrink towards 0."""
        binned = values.clamped(0).binned() if grid.low == 0 and not grid.has_zero_point else values.binned()
        return best_range(lambda low, high: entropy(binned, grid, low, high), values, grid)


def observer_of(observer: str | Observer) -> Observer:
    """Return the observer of a name of NAMES, or the one that is given; ValueError or TypeError on others."""
    if isinstance(observer, str):
        made: list[Observer] = [MinMax(), Percentile(), MeanSquaredError(), Entropy()]
        if observer not in NAMES:
            raise ValueError(f"no observer is called {observer!r}; there are {', '.join(NAMES)}")
        return made[NAMES.index(observer)]
    if not callable(getattr(observer, "range_of", None)) or isinstance(observer, type):
        raise TypeError(f"an observer is one of {', '.join(NAMES)} or an object with range_of, got {observer!r}")
    return observer
