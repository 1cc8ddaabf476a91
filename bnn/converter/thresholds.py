"""Thresholds found by bisection on the very functions that PyTorch evaluates.

Between two quantizers a network does monotone arithmetic: scale, bias, batch norm, ReLU or hardtanh, quantizer. So
each level begins at one number. It is found here by asking the PyTorch modules themselves on which side a number
falls, not by solving for it: no formula is derived twice, the rounding of every float operation is included, and
gamma < 0 (a falling channel) and gamma = 0 (a constant one) need no special case.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from bnn_kernels.bit_planes import level_of_code
from torch import Tensor

from bnn.converter.errors import ConversionError
from bnn.planes import Term
from bnn.quantizers.base import Quantizer

INT_MIN, INT_MAX = np.iinfo(np.int32).min, np.iinfo(np.int32).max


@dataclass(frozen=True)
class LevelTable:
    """The levels of a quantizer with one term: codes[i] is the code of the i-th level in ascending order."""

    levels: np.ndarray
    codes: np.ndarray
    signed: bool
    multipliers: tuple[int, ...]

    @classmethod
    def of(cls, term: Term) -> "LevelTable":
        """Return the table of a term."""
        by_code = level_of_code(term.multipliers, term.signed)
        levels, codes = np.unique(by_code, return_index=True)
        return cls(levels, codes.astype(np.uint8), term.signed, term.multipliers)

    def rank(self, levels: Tensor) -> Tensor:
        """Return the index of each level in ascending order."""
        return torch.searchsorted(torch.from_numpy(self.levels), levels.to(torch.int64).contiguous())


def input_term(quantizer: Quantizer, x: Tensor, path: str) -> Term:
    """Return the one term of a quantized input; ConversionError if the quantizer is not a set of thresholds."""
    if not quantizer.elementwise:
        raise ConversionError(
            f"{path}: {type(quantizer).__name__} computes its scale from the whole input, so it is no set of fixed "
            "thresholds; use an elementwise input quantizer such as SteSign or DoReFaActivation"
        )
    terms = quantizer.planes(x).terms
    if len(terms) != 1 or terms[0].scale.ndim != 0 or not terms[0].scale > 0:
        raise ConversionError(f"{path}: an input quantizer with one positive scale can be converted, got {quantizer}")
    return terms[0]


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


def float_thresholds(quantizer: Quantizer, table: LevelTable, path: str) -> np.ndarray:
    """Return float32 (L-1, 1): the smallest float at which each level above the lowest begins, inf if none."""
    infinity = int(torch.tensor(float("inf")).view(torch.int32))
    wanted = torch.arange(1, len(table.levels))

    def reached(order: Tensor) -> Tensor:
        x = _float_of_order(order.clamp(-infinity, infinity))
        return table.rank(quantizer.planes(x).terms[0].levels()) >= wanted

    low = torch.full_like(wanted, -infinity - 1)
    found = _smallest_true(reached, low, torch.full_like(wanted, infinity + 1))
    result = _float_of_order(found.clamp(-infinity, infinity)).numpy()
    if np.isnan(result).any() or (np.diff(result) < 0).any():
        raise ConversionError(f"{path}: {quantizer} is not a rising function of its input")
    return result[:, None]


def integer_thresholds(
    level_of_sum: Callable[[Tensor], Tensor], channels: int, largest: int, table: LevelTable
) -> tuple[np.ndarray, np.ndarray]:
    """Return (t int32 (L-1, channels), flip bool (channels,)) such that level index = #{i : (sum >= t[i]) xor flip}.

    level_of_sum: maps int64 sums (T, channels) to integer levels (T, channels), monotone in each channel.
    largest: the sums lie in [-largest, largest].
    """
    ends = torch.tensor([[-largest], [largest]]).expand(2, channels)
    first, last = table.rank(level_of_sum(ends))
    flip = first > last
    direction = torch.where(flip, -1, 1)
    wanted = torch.arange(1, len(table.levels))[:, None]
    low = torch.full((len(table.levels) - 1, channels), -largest - 1)

    def reached(d: Tensor) -> Tensor:
        inside = d.clamp(-largest, largest)
        return (table.rank(level_of_sum(inside * direction)) >= wanted) & (d <= largest)

    found = _smallest_true(reached, low, -low)
    # A rising channel reaches the level for sums >= found; a falling one for sums <= -found, that is < 1 - found.
    never, always = found > largest, found <= -largest
    rising = torch.where(never, INT_MAX, torch.where(always, INT_MIN, found))
    falling = torch.where(never, INT_MIN, torch.where(always, INT_MAX, 1 - found))
    t = torch.where(flip, falling, rising)
    return t.numpy().astype(np.int32), flip.numpy().copy()
