"""Q/DQ nodes and the quantizers of QONNX."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from bnn.onnx_file.builder import Builder
from bnn.onnx_file.operators.elementwise import present
from bnn.onnx_file.quantizers import MOST_LEVELS, ROUNDINGS, CountedLevels, EvenLevels
from bnn.onnx_file.registry import operator
from bnn.onnx_file.values import Const, Counted, Quantized, Real, Value

_UINT8 = (0, 255)
# Numbers of the integer types in ONNX, as attributes name them.
_TYPES = {
    2: (0, 255), 3: (-128, 127), 4: (0, 65535), 5: (-32768, 32767), 21: (0, 15), 22: (-8, 7), 25: (0, 3), 26: (-2, 1),
}  # fmt: skip


def constant_of(build: Builder, value: Value | None, what: str) -> Const:
    """Return an input that must be constant."""
    if not isinstance(value, Const):
        build.fail(f"its {what} must be constant")
    return value


def _range(build: Builder, zero: Value | None) -> tuple[int, int]:
    """Return the range of the integers that QuantizeLinear makes."""
    kind = build.node.attributes.get("output_dtype", 0)
    if zero is None:
        build.need(kind in _TYPES or kind == 0, "it makes numbers that are no integers")
        return _TYPES.get(kind, _UINT8)
    ends = constant_of(build, zero, "zero point").range
    if ends is None:
        build.fail("it makes numbers that are no integers")
    return ends


def _along_axis(build: Builder, values: Tensor, like: Tensor) -> Tensor:
    """Return scales or zero points in the shape of a tensor: one, one of each along an axis, or one of each block."""
    if values.numel() == 1:
        return values.reshape(()).expand(like.shape)
    axis = build.node.attributes.get("axis", 1) % like.ndim
    block = build.node.attributes.get("block_size", 0)
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, like.shape[axis])
    sides = [1] * like.ndim
    sides[axis] = -1
    build.need(values.numel() == like.shape[axis], f"it has {values.numel()} scales for axis {axis} of {like.shape}")
    return values.reshape(sides).expand(like.shape)


def _input_and_steps(build: Builder, values: Sequence[Value | None]) -> tuple[Value, torch.Tensor, torch.Tensor]:
    """Return an operator's input, its scale and its zero point, 0 where it has none."""
    x, scale, zero = (*values, None)[:3]
    build.need(x is not None, "its input is missing")
    assert x is not None
    point = torch.tensor(0) if zero is None else constant_of(build, zero, "zero point").tensor
    return x, constant_of(build, scale, "scale").tensor, point


@operator("QuantizeLinear")
def quantize_linear(build: Builder, values: Sequence[Value | None]) -> Value:
    """Integers round(x / scale) + zero point, within their type."""
    x, scale, zero = _input_and_steps(build, values)
    low, high = _range(build, (*values, None)[2])
    if isinstance(x, Const):
        wide, at = (_along_axis(build, part, x.tensor) for part in (scale, zero))
        return Const(((x.tensor / wide).round() + at).clamp(low, high).to(torch.int64), (low, high))
    build.need(bool((scale > 0).all()), "its scale is not positive")
    return quantized(build, x, scale, zero, low, high)


def quantized(build: Builder, x: Value, scale: Tensor, zero: Tensor, low: int, high: int) -> Value:
    """Return levels of a value that stand for integers from low to high, of which `zero` is 0."""
    codes = scale, zero
    if isinstance(x, Counted) and scale.numel() == 1:
        table = ((x.table / scale.reshape(())).round() + zero.reshape(())).clamp(low, high).to(torch.int64)
        return Counted(x.before, x.bounds, x.flip, x.axis, table, x.place)
    if scale.numel() > 1 or zero.numel() > 1 or high - low >= MOST_LEVELS:
        real = build.real(x)
        wide, at = (_one_of_each(build, part, real.example.ndim) for part in (scale, zero))
        return build.add(_FakeQuantize(wide, at, low, high), real)
    point = int(zero)
    return Quantized(*_narrowed(build.real(x), float(scale), low - point, high - point), build.place(), codes)


class _FakeQuantize(torch.nn.Module):
    """Levels with a scale of each channel, as plain operations; `zero` and `scale` tell DequantizeLinear."""

    def __init__(self, scale: Tensor, zero: Tensor, low: int, high: int):
        super().__init__()
        self.scale: Tensor
        self.zero: Tensor
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return ((x / self.scale).round() + self.zero).clamp(self.low, self.high)


def _one_of_each(build: Builder, values: Tensor, rank: int) -> Tensor:
    build.need(not build.node.attributes.get("block_size", 0), "it has blocks along an input")
    if values.numel() == 1:
        return values.reshape(()).to(torch.float32)
    sides = [1] * rank
    sides[build.node.attributes.get("axis", 1)] = -1
    return values.reshape(sides).to(torch.float32)


def _narrowed(x: Real, step: float, low: int, high: int) -> tuple[Real, EvenLevels]:
    """Return what is quantized and how: what a clamp leaves of the levels is known, so that it is needless."""
    if x.before is None:
        return x, EvenLevels(step, low, high)
    ends = torch.tensor([x.low, x.high]) / step
    least, most = (int(end) for end in ends.clamp(low, high).round())
    if least >= most:
        return x, EvenLevels(step, low, high)
    return x.before, EvenLevels(step, least, most)


@operator("DequantizeLinear")
def dequantize_linear(build: Builder, values: Sequence[Value | None]) -> Value:
    """(x - zero point) * scale."""
    x, scale, zero = _input_and_steps(build, values)
    if isinstance(x, Const):
        wide, at = (_along_axis(build, part, x.tensor) for part in (scale, zero))
        levels = x.tensor - at
        return Const(levels.to(torch.float32) * wide, None, levels, wide)
    if isinstance(x, Quantized):
        if x.codes is None:
            build.fail("it reads floats, where the integers of QuantizeLinear are expected")
        if isinstance(x.quantizer, CountedLevels) and scale.numel() == 1:
            table = (x.quantizer.table - zero.reshape(())) * scale.reshape(())
            return Quantized(x.before, CountedLevels(x.quantizer.bounds, table, x.quantizer.axis), x.place)
        if all(torch.equal(a.reshape(-1), b.reshape(-1)) for a, b in zip(x.codes, (scale, zero), strict=True)):
            return Quantized(x.before, x.quantizer, x.place)
        one = scale.numel() == zero.numel() == 1 and isinstance(x.quantizer, EvenLevels)
        build.need(one, "it has scales of each channel, which the QuantizeLinear before it has not")
        assert isinstance(x.quantizer, EvenLevels)
        other = x.quantizer.scaled(float(scale), int(x.codes[1]) - int(zero))
        return Quantized(x.before, other, build.place())
    if isinstance(x, Counted) and scale.numel() == 1:
        table = (x.table.to(torch.float32) - zero.reshape(())) * scale.reshape(())
        return Counted(x.before, x.bounds, x.flip, x.axis, table, x.place)
    real = build.real(x)
    wide, at = (_one_of_each(build, part, real.example.ndim) for part in (scale, zero))
    plain = not bool(at.any()), bool((wide == 1).all())
    return build.call(_dequantized, real, *(() if all(plain) else (Const(wide), Const(at))))


def _dequantized(x: Tensor, scale: Tensor | None = None, zero: Tensor | None = None) -> Tensor:
    x = x.to(torch.float32)
    return x if scale is None or zero is None else (x - zero) * scale


@operator("Quant", "IntQuant")
def quant(build: Builder, values: Sequence[Value | None]) -> Value:
    """QONNX: (round(clip(x / scale + zero point)) - zero point) * scale, of so many bits."""
    x, *parts = present(build, values)
    build.need(len(parts) == 3, "it needs a scale, a zero point and a number of bits")
    scale, zero, width = (constant_of(build, part, "scale, zero point and number of bits").tensor for part in parts)
    given = build.node.attributes
    signed, narrow = bool(given.get("signed", 1)), bool(given.get("narrow", 0))
    mode = str(given.get("rounding_mode", "ROUND")).upper()
    build.need(mode in ROUNDINGS, f"rounding_mode {mode!r} has no form here: use one of {', '.join(ROUNDINGS)}")
    build.need(width.numel() == 1 and float(width) == round(float(width)), "its number of bits is not one integer")
    right = bool((scale > 0).all()) and bool((zero == zero.round()).all())
    build.need(right, "its scale must be positive and its zero point an integer")
    bits = int(width)
    low = -(1 << (bits - 1)) + narrow if signed else 0
    high = (1 << (bits - 1)) - 1 if signed else (1 << bits) - 1 - narrow

    def rounded(t: Tensor) -> Tensor:
        return ROUNDINGS[mode]((t / scale + zero).clamp(low, high)) - zero

    if isinstance(x, Const):
        levels = rounded(x.tensor)
        return Const(levels * scale, None, levels.to(torch.int64), scale.expand(levels.shape))
    if isinstance(x, Counted) and scale.numel() == zero.numel() == 1:
        scale, zero = scale.reshape(()), zero.reshape(())
        return Counted(x.before, x.bounds, x.flip, x.axis, rounded(x.table.to(torch.float32)) * scale, x.place)
    real = build.real(x)
    if scale.numel() > 1 or zero.numel() > 1 or high - low >= MOST_LEVELS:
        return build.call(_quantized, real, Const(scale), Const(zero), low=low, high=high, mode=mode)
    point, step = int(zero), float(scale)
    if point == 0 and mode == "ROUND":
        return Quantized(*_narrowed(real, step, low, high), build.place())
    quantizer = EvenLevels(step, low - point, high - point, point or None, mode)  # type: ignore[arg-type]
    return Quantized(real, quantizer, build.place())


def _quantized(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int, mode: Any) -> Tensor:
    return (ROUNDINGS[mode]((x / scale + zero).clamp(low, high)) - zero) * scale


@operator("BipolarQuant")
def bipolar_quant(build: Builder, values: Sequence[Value | None]) -> Value:
    """QONNX: scale where x >= 0, -scale elsewhere."""
    x, scale_of = present(build, values)
    scale = constant_of(build, scale_of, "scale").tensor
    if isinstance(x, Const):
        levels = torch.where(x.tensor >= 0, 1, -1)
        return Const(levels * scale, None, levels, scale.expand(levels.shape))
    build.need(scale.numel() == 1 and float(scale) > 0, "its scale is not one positive number")
    if isinstance(x, Counted):
        table = torch.where(x.table >= 0, scale.reshape(()), -scale.reshape(()))
        return Counted(x.before, x.bounds, x.flip, x.axis, table, x.place)
    table = torch.stack([-scale.reshape(()), scale.reshape(())])
    return Quantized(build.real(x), CountedLevels(torch.zeros(1, 1), table), build.place())


@operator("MultiThreshold")
def multi_threshold(build: Builder, values: Sequence[Value | None]) -> Value:
    """QONNX: out_scale times the number of thresholds (C, L) that are reached, plus out_bias."""
    x, bounds_of = present(build, values)
    bounds, given = constant_of(build, bounds_of, "thresholds").tensor, build.node.attributes
    layout = given.get("data_layout", "NCHW")
    build.need(layout in ("NCHW", "NC"), f"its data_layout is {layout!r}: NCHW is read")
    table = torch.arange(bounds.shape[1] + 1.0) * given.get("out_scale", 1.0) + given.get("out_bias", 0.0)
    real, rows = build.real(x), bounds.T.contiguous()
    return Counted(real, rows, torch.zeros(rows.shape[1], dtype=torch.bool), 1, table, build.place())


@operator("Trunc", "FloatQuant", "TruncAvgPool2D", "QuantAvgPool2d")
def refused(build: Builder, values: Sequence[Value | None]) -> NoReturn:
    """Quantizers that have no form here."""
    build.fail(
        "this quantizer cannot be read; those of QONNX that can are Quant, IntQuant, BipolarQuant, MultiThreshold"
    )
