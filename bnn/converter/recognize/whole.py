"""Whole numbers between known ends are levels, whatever computes them: round(x / s) + z, (x > d) - (x < -d).

So are multiples of one number, as sums of levels with the same step are.

Ends follow from clamps and from softmax. What is divided by a scale that is made of its own largest number, as
x / (max|x| / 127), has ends too: they are found by trying numbers of every size, as each image reaches them.
"""

import math
from collections.abc import Iterator

import torch
from bnn_kernels.steps.normalize import Softmax
from bnn_kernels.steps.pool import MaxPool
from torch import Tensor

from bnn.converter.graph.evaluate import Evaluation
from bnn.converter.graph.values import (
    Add,
    Affine,
    Channelwise,
    Clamp,
    Combine,
    Concat,
    Curve,
    Input,
    Moved,
    OwnStep,
    Pool,
    Unpacked,
    Value,
    live_values,
)
from bnn.converter.levels.table import LARGEST_FLOAT, values_of_codes
from bnn.planes import Planes, Term, code_bits, powers_of_two, signed_code_bits, twos_complement
from bnn.quantizers.base import Quantizer, Uniform

Ends = tuple[float, float]

MOST_LEVELS = 256
# Units that differ by less than this share are one: the same step, computed in two ways.
SAME = 1e-6
ANYTHING: Ends = (-math.inf, math.inf)
_ROUNDINGS = {"round": torch.round, "floor": torch.floor, "ceil": torch.ceil, "trunc": torch.trunc}
# Sizes of the numbers that an operand is tried with.
_SIZES = (1e-12, 1e-3, 1.0, 30.0, 1e4)
_TRIALS = 8
# Ends beyond this are those of numbers without ends.
_FAR = 2.0**40
# What differs by less is the same but for rounding.
_NEAR = 1e-4
# How far back the operand is looked for of which all else is made.
_FARTHEST = 6


class WholeNumbers(Quantizer):
    """Forward: the nearest multiple of a unit between low and high times it, halves to even."""

    elementwise = True

    def __init__(self, low: int, high: int, unit: float = 1.0):
        super().__init__()
        self.low, self.high, self.unit = low, high, unit

    @property
    def uniform(self) -> Uniform:
        """Rounding of the number itself."""
        return Uniform(self.unit, True, self.low, self.high)

    def forward(self, x: Tensor) -> Tensor:
        return self._levels(x) * self.unit

    def _levels(self, x: Tensor) -> Tensor:
        return (x / self.unit).clamp(self.low, self.high).round()

    def planes(self, x: Tensor) -> Planes:
        levels = self._levels(x.detach()).to(torch.int64)
        unit = torch.tensor(self.unit)
        if self.low >= 0:
            bits = max(1, self.high.bit_length())
            return Planes((Term(code_bits(levels, bits), False, powers_of_two(bits), unit),))
        bits = 1 + max(self.high.bit_length(), (-self.low - 1).bit_length())
        return Planes((Term(signed_code_bits(levels, bits), False, twos_complement(bits), unit),))


def whole_numbers(x: Value) -> WholeNumbers | None:
    """Return the quantizer whose levels a value's numbers are, if they are multiples of one, of at most eight bits."""
    unit = 1.0 if is_whole(x) else unit_of(x)
    if unit is None:
        return None
    low, high = (end / unit for end in ends(x))
    if not math.isfinite(high - low):
        return None
    low, high = round(low), round(high)
    if (low < 0 and not -128 <= low <= high <= 127) or high >= MOST_LEVELS:
        return None
    return WholeNumbers(low, high, unit)


def unit_of(x: Value) -> float | None:
    """Return what all numbers of a value are multiples of, as those of sums of levels with one step are."""
    if isinstance(x, Unpacked):
        terms = x.planes.terms
        plain = len(terms) == 1 and x.planes.offset is None and terms[0].zero_points is None
        return float(terms[0].scale) if plain and terms[0].scale.numel() == 1 else None
    is_clamp = (
        isinstance(x, Channelwise) and isinstance(x.form, Clamp) and {x.form.low, x.form.high} <= {0.0, *ANYTHING}
    )
    moves = isinstance(x, Add | Concat | Moved) or (isinstance(x, Pool) and _is_max(x))
    if not is_clamp and not moves:
        return None
    units = [unit_of(operand) for operand in x.inputs]
    first = units[0]
    same = first is not None and all(unit is not None and abs(unit - first) <= SAME * first for unit in units)
    return first if same else None


def is_whole(x: Value) -> bool:
    """Whether a value's numbers are whole, whatever the input."""
    if isinstance(x, Unpacked):
        return _is_whole(values_of(x))
    if isinstance(x, Channelwise):
        form = x.form
        if isinstance(form, Curve):
            return form.kind in _ROUNDINGS
        if isinstance(form, Clamp):
            return is_whole(x.inputs[0]) and all(end == round(end) for end in (form.low, form.high) if abs(end) < 1e9)
        if not isinstance(form, Affine):
            return False
        parts = [torch.from_numpy(part) for part in (form.scale, form.shift) if part is not None]
        return is_whole(x.inputs[0]) and all(map(_is_whole, parts))
    if isinstance(x, Combine) and x.kind == "divide":
        return False
    moves = isinstance(x, Add | Combine | Concat | Moved) or (isinstance(x, Pool) and _is_max(x))
    return moves and all(map(is_whole, x.inputs))


def values_of(x: Unpacked) -> Tensor:
    """Return all values that levels have; none if they differ from channel to channel."""
    if x.planes.terms[0].zero_points is not None:
        return torch.tensor([math.nan])
    return torch.from_numpy(values_of_codes(x.planes))


def _is_whole(x: Tensor) -> bool:
    return bool((x == x.round()).all())


def _is_max(x: Pool) -> bool:
    return isinstance(x.fields, MaxPool.Fields)


def ends(x: Value) -> Ends:
    """Return between which numbers a value lies, whatever the input, as far as is known."""
    if isinstance(x, Unpacked):
        values = values_of(x)
        return float(values.min()), float(values.max())
    if isinstance(x, OwnStep) and isinstance(x.fields, Softmax.Fields) and not x.fields.log:
        return 0.0, 1.0
    if isinstance(x, Channelwise):
        return _ends_of_function(x)
    if isinstance(x, Add | Combine):
        kind = x.kind if isinstance(x, Combine) else "add"
        (a, b), (c, d) = map(ends, x.inputs)
        if kind == "add":
            return a + c, b + d
        if kind == "multiply" and all(map(math.isfinite, (a, b, c, d))):
            products = (a * c, a * d, b * c, b * d)
            return min(products), max(products)
        if kind in ("maximum", "minimum"):
            chosen = max if kind == "maximum" else min
            return chosen(a, c), chosen(b, d)
        return _tried_ends(x)
    if isinstance(x, Concat | Moved) or (isinstance(x, Pool) and _is_max(x)):
        found = [ends(operand) for operand in x.inputs]
        if isinstance(x, Moved) and bool((x.index == 0).any()):
            found.append((0.0, 0.0))
        return min(low for low, _ in found), max(high for _, high in found)
    return ANYTHING


def _ends_of_function(x: Channelwise) -> Ends:
    """Return the ends of rising and falling functions of each channel, one after the other, of some value."""
    functions = []
    operand: Value = x
    while isinstance(operand, Channelwise):
        if not operand.monotone:
            return ANYTHING
        functions.append(operand.function)
        operand = operand.inputs[0]
    low, high = ends(operand)
    given = torch.tensor([[low], [high]]).clamp(-LARGEST_FLOAT, LARGEST_FLOAT)
    made = given.expand(2, x.shape[0] if x.shape else 1)
    for function in reversed(functions):
        made = function(made)
    made = torch.where(made.abs() > _FAR, made.sign() * math.inf, made)
    return float(made.min()), float(made.max())


def _tried_ends(x: Value) -> Ends:
    """Return the ends of a product or quotient with what is made of the operand itself, if each image reaches them."""
    for base in _before(x.inputs[0]):
        if _depends_on_nothing_else(x, base):
            return _reached(x, base)
    return ANYTHING


def _before(x: Value) -> Iterator[Value]:
    for _ in range(_FARTHEST):
        yield x
        if not x.inputs:
            return
        x = x.inputs[0]


def _depends_on_nothing_else(x: Value, base: Value) -> bool:
    """Whether a value is a function of another one alone."""
    stack, seen = [x], {base}
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        if isinstance(value, Input) or not value.inputs:
            return False
        seen.add(value)
        stack.extend(value.inputs)
    return base in live_values([x])


def _reached(x: Value, base: Value) -> Ends:
    """Return the smallest and largest numbers of a value, if they are the same in images of every larger size."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for size in _SIZES:
        given = torch.randn(_TRIALS, *base.shape, generator=generator) * size
        given[1::2] *= given[1::2].abs()  # of which few are much larger than the others
        made = Evaluation({base: given})(x).flatten(1)
        if not bool(made.isfinite().all()):
            return ANYTHING
        found.append(torch.stack([made.amin(1), made.amax(1), made.abs().amax(1)], 1))
    low, high, size_ = torch.cat(found[2:]).unbind(1)  # smaller ones may count as zeros
    every = torch.cat(found)
    for least, most in ((low, high), (-size_, size_)):
        reached = all(bool((end - end[0]).abs().max() <= _NEAR) for end in (least, most))
        inside = bool((every[:, 0] >= least[0] - _NEAR).all()) and bool((every[:, 1] <= most[0] + _NEAR).all())
        if reached and inside:
            return round(float(least[0]), 3), round(float(most[0]), 3)
    return ANYTHING
