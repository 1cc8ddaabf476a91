"""Quantizers as ONNX files hold them: their steps, zero points and thresholds are given, not learned.

Gradients pass straight through within the range, so that a network that was read can be trained on.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from bnn.planes import Planes, Term, code_bits, powers_of_two, signed_code_bits, ternary_bits, twos_complement
from bnn.quantizers.base import Quantizer, Uniform
from bnn.quantizers.straight_through import straight_through

Rounding = Literal["ROUND", "FLOOR", "CEIL", "DOWN", "ROUND_TO_ZERO"]
# The names of QONNX; brevitas says ROUND_TO_ZERO for DOWN.
ROUNDINGS = {
    "ROUND": torch.round, "FLOOR": torch.floor, "CEIL": torch.ceil, "DOWN": torch.trunc, "ROUND_TO_ZERO": torch.trunc,
}  # fmt: skip
MOST_LEVELS = 256


class Form(NamedTuple):
    """How the planes of integer levels are made. odd: levels -1 and +1, or -3, -1, 1, 3, and so on."""

    kind: Literal["odd", "ternary", "unsigned", "signed"]
    bits: int


def form_of(levels: Tensor) -> Form | None:
    """Return the form of the fewest planes of integer levels; None if they take more than 8.

    levels: all that occur, int64.
    """
    low, high = (int(end) for end in levels.aminmax())
    if bool((levels % 2 != 0).all()) and max(-low, high) < MOST_LEVELS:
        return Form("odd", max(-low, high).bit_length())
    if (low, high) in ((-1, 1), (-1, 0)):
        return Form("ternary", 2)
    if low >= 0:
        return Form("unsigned", max(1, high.bit_length())) if high < MOST_LEVELS else None
    bits = 1 + max(max(high, 0).bit_length(), (-low - 1).bit_length())
    return Form("signed", bits) if bits <= 8 else None


def term_of(levels: Tensor, scale: Tensor, form: Form) -> Term:
    """Return the term of integer levels that go with a form."""
    bits = form.bits
    if form.kind == "odd":
        return Term(code_bits(((1 << bits) - 1 - levels) // 2, bits), True, powers_of_two(bits), scale)
    if form.kind == "ternary":
        return Term(ternary_bits(levels), False, (1, -1), scale)
    if form.kind == "unsigned":
        return Term(code_bits(levels, bits), False, powers_of_two(bits), scale)
    return Term(signed_code_bits(levels, bits), False, twos_complement(bits), scale)


class EvenLevels(Quantizer):
    """What QuantizeLinear and DequantizeLinear, or a Quant of QONNX, make of activations.

    Forward: (round(clip(x / s, low, high)) + offset) scale; with a zero point before the rounding, where halves fall
    otherwise if it is odd, (round(clip(x / s + zero, low + zero, high + zero)) - zero) scale.

    step: s > 0. low, high: the lowest and the highest level less the zero point, up to 256 of them. scale: s, unless a
    file multiplies by another number. offset: what differs between two zero points.
    """

    elementwise = True

    def __init__(
        self, step: float, low: int, high: int, zero: int | None = None, rounding: Rounding = "ROUND",
        scale: float | None = None, offset: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.step, self.low, self.high, self.zero, self.rounding = step, low, high, zero, rounding
        self.scale, self.offset = step if scale is None else scale, offset
        self._form = form_of(torch.arange(low, high + 1) + offset)

    def extra_repr(self) -> str:
        return f"{self.scale:.4g} * ({self.low + self.offset} .. {self.high + self.offset})"

    @property
    def same_as(self) -> tuple[object, ...]:
        """What two of the same forward share."""
        return self.step, self.low, self.high, self.zero, self.rounding, self.scale, self.offset

    def scaled(self, scale: float, offset: int) -> "EvenLevels":
        """Return the same levels plus an offset, times another scale."""
        return EvenLevels(self.step, self.low, self.high, self.zero, self.rounding, scale, offset)

    @property
    def uniform(self) -> Uniform | None:
        """Rounding of x / s."""
        if self.rounding != "ROUND":
            return None
        return Uniform(self.step, True, self.low, self.high, self.offset if self._form else -self.low)

    def levels(self, x: Tensor) -> Tensor:
        """Return the levels of floats, integers as floats."""
        y = x / self.step
        if self.zero is None:
            return ROUNDINGS[self.rounding](y.clamp(self.low, self.high)) + self.offset
        bounds = self.low + self.zero, self.high + self.zero
        return ROUNDINGS[self.rounding]((y + self.zero).clamp(*bounds)) - self.zero

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.low * self.step, self.high * self.step
        return straight_through(x, self.levels(x.detach()) * self.scale, (x >= low) & (x <= high))

    def planes(self, x: Tensor) -> Planes:
        levels = self.levels(x.detach()).to(torch.int64)
        scale = torch.tensor(self.scale, dtype=x.dtype)
        if self._form is not None:
            return Planes((term_of(levels, scale, self._form),))
        low, high = self.low + self.offset, self.high + self.offset
        codes = code_bits(levels - low, 8)
        term = Term(codes, False, powers_of_two(8), scale, torch.tensor([-low]), largest=max(-low, high))
        return Planes((term,))


class CountedLevels(Quantizer):
    """The value of a table at the number of thresholds that a number reaches: table[#{i : x >= bounds[i]}].

    bounds: float32 (L - 1, C), or (L - 1, 1) for all channels, rising. table: float32 (L,), rising. axis: that of the
    channels.
    """

    elementwise = True

    def __init__(self, bounds: Tensor, table: Tensor, axis: int = 1):
        super().__init__()
        self.bounds: Tensor
        self.table: Tensor
        self.register_buffer("bounds", bounds)
        self.register_buffer("table", table)
        self.axis = axis
        self.channelwise = bounds.shape[1] > 1
        even = evenly_spaced(table)
        assert even is not None, "an uneven table is no quantizer"
        self._scale, self._levels, self._offset = even
        self._form = form_of(self._levels)

    def extra_repr(self) -> str:
        return f"{len(self.table)} values from {float(self.table[0]):.3g} to {float(self.table[-1]):.3g}"

    def reached(self, x: Tensor) -> Tensor:
        """Return how many thresholds are reached, int64."""
        return count_reached(x, self.bounds, self.axis)

    def forward(self, x: Tensor) -> Tensor:
        inside = (x >= -1) & (x <= 1) if len(self.table) == 2 else None
        return straight_through(x, self.planes(x).value().to(x.dtype), inside)

    def planes(self, x: Tensor) -> Planes:
        levels = self._levels.to(x.device)[self.reached(x.detach())]
        scale = torch.tensor(self._scale, dtype=x.dtype)
        offset = torch.tensor(self._offset, dtype=x.dtype) if self._offset else None
        assert self._form is not None
        return Planes((term_of(levels, scale, self._form),), offset)


def count_reached(x: Tensor, bounds: Tensor, axis: int) -> Tensor:
    """Return how many of the bounds (L - 1, C) each number reaches, int64, the shape of x; axis: of the channels."""
    sides = [1] * x.ndim
    sides[axis] = -1
    total = torch.zeros_like(x, dtype=torch.int64)
    for bound in bounds:
        total += x >= bound.reshape(sides)
    return total


class Table(nn.Module):
    """Any table of the thresholds that a number reaches: the first entry, and at each threshold the step to the next.

    bounds, table, axis: as of `CountedLevels`, but the table need not be even, or rise.
    """

    def __init__(self, bounds: Tensor, table: Tensor, axis: int = 1):
        super().__init__()
        self.first, self.steps = float(table[0]), table.diff().tolist()
        unit = torch.tensor([0.0, 1.0])
        self.reached = nn.ModuleList(CountedLevels(bound[None].clone(), unit, axis) for bound in bounds)

    def forward(self, x: Tensor) -> Tensor:
        """Return the entries, the shape of x."""
        total = torch.full_like(x, self.first)
        for step, reached in zip(self.steps, self.reached, strict=True):
            total = total + step * reached(x)
        return total


def evenly_spaced(table: Tensor) -> tuple[float, Tensor, float] | None:
    """Return (scale, int64 levels, offset) of rising numbers scale * level + offset; None if these are none."""
    values = table.to(torch.float64)
    if len(values) < 2 or len(values) > MOST_LEVELS or not bool((values.diff() > 0).all()):
        return None
    spacing = float((values[-1] - values[0]) / (len(values) - 1))
    places = torch.arange(len(values))
    if bool(((values - values[0] - spacing * places).abs() > 1e-6 * float(values.abs().max())).any()):
        return None
    first = float(values[0]) / spacing
    near = 1e-5 * len(values)
    if len(values) == 2:
        middle = float(values.mean())
        return spacing / 2, 2 * places - 1, middle if abs(middle) > near * spacing else 0.0
    if abs(first - round(first)) < near and form_of(places + round(first)) is not None:
        return spacing, places + round(first), 0.0
    if abs(2 * first - round(2 * first)) < near and form_of(2 * places + round(2 * first)) is not None:
        return spacing / 2, 2 * places + round(2 * first), 0.0
    return spacing, places, float(values[0])


class StoredWeight(Quantizer):
    """Weights that are integers times a scale of each filter.

    Forward: s round(clip(w / s, low, high)), to odd levels if all are odd.

    levels: int64 (O, ...), of which only the range and the kind count. scale: float32 (O,), positive.
    """

    for_weights = True

    def __init__(self, levels: Tensor, scale: Tensor):
        super().__init__()
        self.scale: Tensor
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("scale", scale)
        self._form = form_of(levels)
        ends = levels.flatten(1).aminmax(dim=1) if self._form is None else levels.aminmax()
        for name, end in zip(("low", "high"), ends, strict=True):
            self.register_buffer(name, end)
        if int((self.high - self.low).max()) >= MOST_LEVELS:
            raise ValueError(f"the weights of a filter have up to {MOST_LEVELS} levels")

    def extra_repr(self) -> str:
        return f"{int(self.low.min())} .. {int(self.high.max())}"

    def levels(self, w: Tensor) -> Tensor:
        """Return the levels of weights, int64."""
        y = w / _by_filter(self.scale.to(w.dtype), w)
        if self._form is not None and self._form.kind == "odd":  # the nearest of those
            y = 2 * ((y - 1) / 2).round() + 1
        low, high = (_by_filter(end.to(w.dtype), w) for end in (self.low, self.high))
        return torch.clamp(y, low, high).round().to(torch.int64)

    def forward(self, w: Tensor) -> Tensor:
        low, high = (_by_filter(self.scale * end, w) for end in (self.low, self.high))
        return straight_through(w, self.planes(w).value(), (w >= low) & (w <= high))

    def planes(self, w: Tensor) -> Planes:
        levels, scale = self.levels(w.detach()), self.scale.to(w.dtype)
        if self._form is not None:
            return Planes((term_of(levels, scale, self._form),))
        codes = code_bits(levels - _by_filter(self.low, w), 8)
        return Planes((Term(codes, False, powers_of_two(8), scale),), scale * self.low)


def _by_filter(values: Tensor, w: Tensor) -> Tensor:
    """Return numbers of filters (O,), or one of all, shaped to meet a weight."""
    return values.reshape(-1, *[1] * (w.ndim - 1)) if values.ndim else values
