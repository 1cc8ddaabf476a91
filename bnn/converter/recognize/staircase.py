"""A function of one number that takes few values, rising from each to the next, is a quantizer: found by asking it.

What a network writes may be round(clamp(x * 3, 0, 1)) / 3, a sum of comparisons or torch.where(s == 0, 1, s). Whatever
it is, the function is asked for its values at floats of every size, and between two of them with different values in
the middle, until they are neighbours.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bnn.converter.levels.table import LARGEST_FLOAT, probes
from bnn.planes import (
    Planes,
    Term,
    code_bits,
    powers_of_two,
    sign_bits,
    signed_code_bits,
    ternary_bits,
    twos_complement,
)
from bnn.quantizers.base import Quantizer, Uniform

MOST_LEVELS = 256
# Values closer than this share of the largest are one: x - y + y is x but for rounding.
ROUNDING = 1e-5
# Where sums of such values are still told from rounding.
LARGEST_CANCELLED = 2.0**20

# Floats on either side of a spacing that are tried as the factor of a rounding.
_NEAR = 64
_INFINITE = 0x7F800000

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Staircase:
    """values float64 (L,), rising; starts float32 (L - 1,): the smallest float of each but the first."""

    values: Tensor
    starts: Tensor


def staircase(
    function: Function, low: float = -LARGEST_FLOAT, high: float = LARGEST_FLOAT, exact: bool = False
) -> Staircase | None:
    """Return the staircase that a function of floats in [low, high] is; None if it is none of at most 256 steps.

    exact: its values do not differ by rounding either.
    """
    found = _steps(function, low, high, 0.0, torch.float32)
    if found is None and not exact:  # perhaps but for rounding
        low, high = max(low, -LARGEST_CANCELLED), min(high, LARGEST_CANCELLED)
        found = _steps(function, low, high, ROUNDING, torch.float64)
    return found


def _order(x: Tensor) -> Tensor:
    """Return the place of a float32 among all floats; both zeros have one."""
    bits = x.view(torch.int32).to(torch.int64)
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _float_of(order: Tensor) -> Tensor:
    magnitude = order.abs().to(torch.int32).view(torch.float32)
    return torch.where(order < 0, -magnitude, magnitude)


def _steps(function: Function, low: float, high: float, rounding: float, dtype: torch.dtype) -> Staircase | None:
    def ask(x: Tensor) -> Tensor | None:
        try:
            y = function(x.to(dtype)).to(torch.float64)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
        return y if y.shape == x.shape and bool(y.isfinite().all()) else None

    smaller = torch.linspace(-16, 16, 257)
    given = torch.cat([probes(), smaller, torch.tensor([0.0, low, high])]).clamp(low, high)
    places = _order(given).unique()
    while True:
        values = ask(_float_of(places))
        if values is None:
            return None
        same = rounding * float(values.abs().max())
        jumps = (values.diff().abs() > same) & (places.diff() > 1)
        if int((values.diff().abs() > same).sum()) >= MOST_LEVELS:
            return None
        if not bool(jumps.any()):
            break
        middles = torch.div(places[:-1] + places[1:], 2, rounding_mode="floor")[jumps]
        places = torch.cat([places, middles]).sort().values
    steps = values.diff().abs() > same
    if bool((values.diff()[steps] < 0).any()) or not bool(steps.any()):
        return None
    starts = _float_of(places[1:][steps])
    parts = torch.tensor_split(values, (steps.nonzero().flatten() + 1))
    means = torch.stack([part.mean() for part in parts])
    if rounding and any(float(part.max() - part.min()) > 2 * same for part in parts):
        return None  # it rises slowly
    return Staircase(means, starts)


class Steps(Quantizer):
    """Forward: the value of a staircase."""

    elementwise = True

    def __init__(self, spacing: float, first: float, levels: Tensor, starts: Tensor):
        """spacing, first: of the values first + spacing * levels; levels: int64 (L,), rising from 0."""
        super().__init__()
        self.spacing, self.first, self.levels, self.starts = spacing, first, levels, starts

    def extra_repr(self) -> str:
        return f"{len(self.levels)} values from {self.first:.3g}"

    @functools.cached_property
    def uniform(self) -> Uniform | None:
        """Rounding, if a factor gives the levels on both sides of every start."""
        top, zero = len(self.levels) - 1, round(self.first / self.spacing)
        if top < 2 or int(self.levels[-1]) != top:
            return None
        low = zero if abs(self.first - zero * self.spacing) <= ROUNDING * self.spacing * top else 0
        wanted = torch.arange(low, low + top + 1.0)
        period = float(self.starts[-1].double() - self.starts[0].double()) / (top - 1)
        below = torch.nextafter(self.starts, torch.tensor(-math.inf))
        for divides, factor in ((True, period), (False, 1 / period)):
            place = int(torch.tensor(factor, dtype=torch.float32).view(torch.int32))
            near = place + torch.arange(-_NEAR, _NEAR + 1, dtype=torch.int32)
            factors = near[(near > 0) & (near < _INFINITE)].view(torch.float32)[:, None]
            made = [x / factors if divides else x * factors for x in (self.starts, below)]
            rounded = [y.clamp(low, low + top).round() for y in made]
            right = (rounded[0] == wanted[1:]).all(1) & (rounded[1] == wanted[:-1]).all(1)
            if bool(right.any()):
                return Uniform(float(factors[right][len(factors[right]) // 2]), divides, low, low + top)
        return None

    def forward(self, x: Tensor) -> Tensor:
        return self.planes(x).value().to(x.dtype)

    def planes(self, x: Tensor) -> Planes:
        index = torch.bucketize(x.detach().to(torch.float32).contiguous(), self.starts, right=True)
        level = self.levels[index]
        top = int(self.levels[-1])
        scale, zero = torch.tensor(self.spacing), round(self.first / self.spacing)
        if top == 1 and self.first != 0:
            half = self.spacing / 2
            middle = self.first + half
            offset = torch.tensor(middle) if abs(middle) > ROUNDING * half else None
            return Planes((Term(sign_bits(2.0 * level - 1), True, (1,), torch.tensor(half)),), offset)
        if abs(self.first - zero * self.spacing) > ROUNDING * self.spacing * max(top, 1):
            zero = -1 if top == 2 else 0
            shift = self.first - zero * self.spacing
        else:
            shift = 0.0
        offset = torch.tensor(shift) if shift else None
        if zero == -1 and top == 2:
            return Planes((Term(ternary_bits(level - 1), False, (1, -1), scale),), offset)
        bits = next(bits for bits in range(1, 10) if (zero < 0 or top + zero < 1 << bits) and _fits(zero, top, bits))
        if zero < 0:
            return Planes((Term(signed_code_bits(level + zero, bits), False, twos_complement(bits), scale),), offset)
        return Planes((Term(code_bits(level + zero, bits), False, powers_of_two(bits), scale),), offset)


def _fits(zero: int, top: int, bits: int) -> bool:
    if zero >= 0:
        return top + zero < 1 << bits
    return zero >= -(1 << (bits - 1)) and top + zero < 1 << (bits - 1)


def quantizer_of(found: Staircase) -> Steps | None:
    """Return the quantizer of a staircase; None if its values are no multiples of one number of up to 8 bits."""
    values = found.values
    gaps = values.diff()
    spacing = float(gaps.min())
    levels = ((values - values[0]) / spacing).round()
    top = int(levels[-1])
    if top > 255:
        return None
    spacing = float(values[-1] - values[0]) / top
    off = (values - values[0] - levels * spacing).abs().max()
    if float(off) > ROUNDING * float(values.abs().max()):
        return None
    spacing, first = float(torch.tensor(spacing, dtype=torch.float32)), float(values[0].float())
    zero = round(first / spacing)
    if abs(first - zero * spacing) <= ROUNDING * spacing * max(top, 1) and not any(
        _fits(zero, top, bits) for bits in range(1, 9)
    ):
        return None
    return Steps(spacing, first, levels.to(torch.int64), found.starts)
