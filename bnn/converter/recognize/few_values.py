"""Float weights that take only a few values per filter, whatever made them, as bits."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bnn.planes import Term, code_bits, powers_of_two, sign_bits, signed_code_bits, ternary_bits, twos_complement

# Straight-through estimators are often written as q(w) - w / s + w / s, which is q(w) but for the rounding of w / s:
# where w / s is up to 5 and weights are some hundredths, it is 2e-5 of them.
ROUNDING = 5e-5
MOST_LEVELS = 256


@dataclass(frozen=True)
class FewValues:
    """terms: of a weight, with scales (O,); their sum is the weight within rounding. same: to the bit."""

    terms: tuple[Term, ...]
    same: bool

    @property
    def term(self) -> Term:
        """The first term; the others are what is added everywhere."""
        return self.terms[0]


def few_values(weight: Tensor) -> FewValues | None:
    """Return the terms of a float weight (O, ...) of few values in each filter; None if it has many.

    They are -a, +a and perhaps 0, or up to 256 evenly spaced ones; scale and offset may differ by filter.
    """
    weight = weight.detach().to(torch.float32)
    if not weight.numel() or not bool(weight.any()):
        return None
    return _signs(weight) or _evenly_spaced(weight)


def _signs(weight: Tensor) -> FewValues | None:
    sizes = weight.flatten(1).abs()
    largest = sizes.amax(1, keepdim=True)
    zero = sizes == 0
    if not bool(((sizes - largest).abs() <= ROUNDING * largest).logical_or(zero).all()):
        return None
    mean = sizes.sum(1, dtype=torch.float64) / (~zero).sum(1).clamp(min=1)
    alike = ((sizes == largest) | zero).all(1)
    scale = torch.where(alike, largest[:, 0], mean.to(torch.float32))
    if bool(zero.any()):
        term = Term(ternary_bits(weight), False, (1, -1), scale)
    else:
        term = Term(sign_bits(weight), True, (1,), scale)
    return FewValues((term,), bool(alike.all()))


def _evenly_spaced(weight: Tensor) -> FewValues | None:
    rows = weight.flatten(1).to(torch.float64)
    if not bool(rows.isfinite().all()):
        return None
    grid = _grid(rows.reshape(1, -1))  # one spacing for all filters
    if rows.shape[1] >= 16 and _grid(rows[:1]) is not None:
        by_filter = _grid(rows)
        if grid is None or (by_filter is not None and by_filter[2].max() < grid[2].max() // 2):
            grid = by_filter
    if grid is None:
        return None
    scale, start = (part[:, 0].expand(len(rows)) for part in grid[:2])
    levels = grid[2].reshape(rows.shape)
    top = int(levels.max())
    zero = (start / scale).round()
    bits = next(bits for bits in range(1, 9) if top < 1 << bits)
    near = ROUNDING * rows.abs().amax(1)
    offset: tuple[Term, ...] = ()
    if bool((zero == zero[0]).all()) and bool(((start - zero * scale).abs() <= near).all()):
        term = _with_zero(levels + int(zero[0]), scale)
    elif bool((start + scale * ((1 << bits) - 1) / 2).abs().le(near).all()):  # as far below 0 as above
        codes = code_bits((1 << bits) - 1 - levels, bits)
        term = Term(codes, True, powers_of_two(bits), (scale / 2).float())
    else:
        term = Term(code_bits(levels, bits), False, powers_of_two(bits), scale.float())
        everywhere = torch.ones(1, *rows.shape, dtype=torch.bool)
        offset = (Term(everywhere, False, (1,), start.float()),)
    if term is None:
        return None
    terms = tuple(
        Term(t.bits.reshape(-1, *weight.shape), t.signed, t.multipliers, t.scale.clone()) for t in (term, *offset)
    )
    parts = [t.levels(torch.float32).flatten(1) * t.scale[:, None] for t in terms]
    return FewValues(terms, torch.equal(sum(parts[1:], parts[0]), weight.flatten(1)))


def _with_zero(levels: Tensor, scale: Tensor) -> Term | None:
    """Return the term of integer levels, of which 0 is the weight 0; None if they need more than eight bits."""
    low, high = int(levels.min()), int(levels.max())
    for bits in range(1, 9):
        if low >= 0 and high < 1 << bits:
            return Term(code_bits(levels, bits), False, powers_of_two(bits), scale.float())
        if low < 0 and low >= -(1 << (bits - 1)) and high < 1 << (bits - 1):
            return Term(signed_code_bits(levels, bits), False, twos_complement(bits), scale.float())
    return None


def _grid(rows: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return spacing (R, 1), first value (R, 1) and int64 levels (R, K) of evenly spaced values of each row; else None.

    Only if the values of a row are far fewer than its numbers.
    """
    spacings, firsts = [], []
    for row in rows:
        near = ROUNDING * float(row.abs().max())
        for part in (row[:4096], row) if len(row) > 4096 else (row,):
            values = np.sort(part.numpy())  # several times as quick as torch.unique
            starts = values[np.concatenate([[True], np.diff(values) > near])]
            if len(starts) > MOST_LEVELS or 4 * len(starts) > len(row):
                return None
        spacings.append(float(np.diff(starts).min()) if len(starts) > 1 else 0.0)
        firsts.append(float(starts[0]))
    spacing, first = (torch.tensor(part, dtype=torch.float64)[:, None] for part in (spacings, firsts))
    if bool((spacing == 0).any()):
        return None
    levels = ((rows - first) / spacing).round()
    top = levels.amax(1, keepdim=True)
    if float(top.max()) >= MOST_LEVELS:
        return None
    # The largest distance tells the spacing best, and means leave least of the rounding.
    first, last = (_mean(rows, levels == end) for end in (levels.new_zeros(()), top))
    spacing = (last - first) / top
    off = (rows - first - levels * spacing).abs().amax(1, keepdim=True)
    if bool((off > ROUNDING * rows.abs().amax(1, keepdim=True)).any()):
        return None
    return spacing, first, levels.to(torch.int64)


def _mean(rows: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean (R, 1) of the chosen numbers of each row, of which there is one at least."""
    smallest = rows.masked_fill(~chosen, torch.inf).amin(1, keepdim=True)
    return smallest + ((rows - smallest) * chosen).sum(1, keepdim=True) / chosen.sum(1, keepdim=True)


def multiplies_exactly(scales: tuple[Tensor, ...]) -> bool:
    """Whether floats that are integers times these scales add up without rounding: each is a power of two."""
    return all(bool((torch.frexp(scale.abs()).mantissa == 0.5).logical_or(scale == 0).all()) for scale in scales)
