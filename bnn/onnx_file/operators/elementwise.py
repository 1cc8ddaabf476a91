"""Operators of each number by itself, alone or with another."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnn.onnx_file.builder import Builder
from bnn.onnx_file.quantizers import CountedLevels
from bnn.onnx_file.registry import operator
from bnn.onnx_file.values import Const, Counted, Quantized, Real, Value

# Functions of one number, those that are layers of PyTorch too, and their options.
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs, "Ceil": torch.ceil, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "Log": torch.log,
    "Neg": torch.neg, "Not": torch.logical_not, "Reciprocal": torch.reciprocal, "Round": torch.round,
    "Sign": torch.sign, "Sin": torch.sin, "Cos": torch.cos, "Sqrt": torch.sqrt,
}  # fmt: skip
_LAYERS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "Elu": lambda a: nn.ELU(a.get("alpha", 1.0)),
    "Gelu": lambda a: nn.GELU(a.get("approximate", "none")),
    "HardSwish": lambda a: nn.Hardswish(),
    "LeakyRelu": lambda a: nn.LeakyReLU(a.get("alpha", 0.01)),
    "Mish": lambda a: nn.Mish(),
    "Sigmoid": lambda a: nn.Sigmoid(),
    "Softplus": lambda a: nn.Softplus(threshold=80),
    "Softsign": lambda a: nn.Softsign(),
    "Tanh": lambda a: nn.Tanh(),
}
_PAIRS: dict[str, Callable[..., Tensor]] = {
    "And": torch.logical_and, "BitShift": torch.bitwise_left_shift, "Mul": torch.mul, "Or": torch.logical_or,
    "Pow": torch.pow, "Sub": torch.sub, "Add": torch.add, "Equal": torch.eq,
}  # fmt: skip
_OF_MANY: dict[str, Callable[..., Tensor]] = {"Max": torch.maximum, "Min": torch.minimum, "Sum": torch.add}
# Whether the threshold itself counts, and whether the comparison holds above it.
_COMPARISONS: dict[str, tuple[Callable[..., Tensor], bool, bool]] = {
    "GreaterOrEqual": (torch.ge, True, True), "Greater": (torch.gt, False, True),
    "Less": (torch.lt, True, False), "LessOrEqual": (torch.le, False, False),
}  # fmt: skip


def present(build: Builder, values: Sequence[Value | None]) -> list[Value]:
    """Return inputs of which none is optional."""
    found = [value for value in values if value is not None]
    build.need(bool(found) and len(found) == len(values), "an input is missing")
    return found


@operator(*_FUNCTIONS)
def function(build: Builder, values: Sequence[Value | None]) -> Value:
    """A function of one number."""
    (x,) = present(build, values)
    return build.number_by_number(_FUNCTIONS[build.node.op], x)


@operator(*_LAYERS)
def activation(build: Builder, values: Sequence[Value | None]) -> Value:
    """A function of one number that is a layer of PyTorch."""
    (x,) = present(build, values)
    module = _LAYERS[build.node.op](build.node.attributes)
    return Const(module(x.tensor)) if isinstance(x, Const) else build.add(module, build.real(x))


@operator("Identity", "Dropout")
def identity(build: Builder, values: Sequence[Value | None]) -> Value:
    """The same, in evaluation."""
    build.need(values[0] is not None, "an input is missing")
    if len(build.node.outputs) > 1 and build.node.outputs[1]:
        build.fail("its mask cannot be had in evaluation")
    assert values[0] is not None
    return values[0]


@operator("Relu")
def relu(build: Builder, values: Sequence[Value | None]) -> Value:
    """No number below 0."""
    (x,) = present(build, values)
    if isinstance(x, Const | Counted):
        return build.number_by_number(torch.relu, x)
    before = build.real(x)
    made = build.add(nn.ReLU(), before)
    return Real(made.name, made.example, before, 0.0)


@operator("Clip")
def clip(build: Builder, values: Sequence[Value | None]) -> Value:
    """Numbers between two."""
    x, *ends = values
    assert x is not None
    low, high = -torch.inf, torch.inf
    if build.node.opset < 11:
        low, high = build.node.attributes.get("min", low), build.node.attributes.get("max", high)
    found = [low, high]
    for i, end in enumerate(ends[:2]):
        if end is not None:
            build.need(isinstance(end, Const) and end.tensor.numel() == 1, "its bounds must be constants")
            assert isinstance(end, Const)
            found[i] = float(end.tensor)
    low, high = found
    if isinstance(x, Const | Counted):
        return build.number_by_number(torch.clamp, x, min=low, max=high)
    before = build.real(x)
    module = nn.ReLU6() if (low, high) == (0, 6) else nn.Hardtanh(low, high)
    made = build.add(module, before)
    return Real(made.name, made.example, before, low, high)


@operator("HardSigmoid")
def hard_sigmoid(build: Builder, values: Sequence[Value | None]) -> Value:
    """clip(alpha x + beta, 0, 1)."""
    (x,) = present(build, values)
    alpha, beta = build.node.attributes.get("alpha", 0.2), build.node.attributes.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return build.add(nn.Hardsigmoid(), build.real(x))
    return build.call(_hard_sigmoid, x, alpha=alpha, beta=beta)


def _hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return (x * alpha + beta).clamp(0, 1)


@operator("PRelu")
def prelu(build: Builder, values: Sequence[Value | None]) -> Value:
    """A slope below 0, of each channel or one."""
    x, slope = present(build, values)
    build.need(isinstance(slope, Const), "its slope must be constant")
    assert isinstance(slope, Const)
    real = build.real(x)
    channels = real.example.shape[1] if real.example.ndim > 1 else 1
    per_channel = slope.tensor.ndim == real.example.ndim - 1 and slope.tensor.shape[0] == slope.tensor.numel()
    if slope.tensor.numel() not in (1, channels) or not (slope.tensor.numel() == 1 or per_channel):
        return build.call(_sloped, x, slope)
    module = nn.PReLU(slope.tensor.numel())
    module.weight.data = slope.tensor.reshape(-1).clone()
    return build.add(module, real)


def _sloped(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@operator(*_PAIRS)
def pair(build: Builder, values: Sequence[Value | None]) -> Value:
    """A function of two numbers."""
    a, b = present(build, values)
    if build.node.op == "Mul" and (found := _turned(build, a, b)) is not None:
        return found
    return build.number_by_number(_PAIRS[build.node.op], a, b)


def _turned(build: Builder, a: Value, b: Value) -> Value | None:
    """Return signs times +-1 of each channel as signs; None if it is none."""
    x, other = (a, b) if isinstance(b, Const) else (b, a)
    if isinstance(x, Quantized) and x.codes is None and not x.made and isinstance(x.quantizer, CountedLevels):
        bounds, table = x.quantizer.bounds, x.quantizer.table
        if bounds.shape == (1, 1):
            x = Counted(x.before, bounds, torch.zeros(1, dtype=torch.bool), 1, table, x.place)
    if not isinstance(x, Counted) or not isinstance(other, Const) or x.stacked or len(x.table) != 2:
        return None
    factor = other.tensor
    one_axis = channel_axis(factor, x.before.example.ndim)
    if one_axis is None or bool((factor.abs() != 1).any()) or float(x.table.sum()) != 0:
        return None
    flip = factor.reshape(-1) < 0
    if len(flip) > 1 and len(x.flip) > 1 and one_axis != x.axis:
        return None
    axis = one_axis if len(flip) > 1 else x.axis
    return _with_flip(Counted(x.before, x.bounds, x.flip, axis, x.table, x.place), flip)


def _with_flip(x: Counted, flip: Tensor) -> Counted:
    channels = max(x.bounds.shape[1], len(x.flip), len(flip))
    bounds = x.bounds.expand(-1, channels)
    return Counted(
        x.before, bounds, x.flip.expand(channels) ^ flip.expand(channels), x.axis, x.table, x.place, x.stacked
    )


@operator("Xor")
def xor(build: Builder, values: Sequence[Value | None]) -> Value:
    """Whether one of two holds: of comparisons and a constant, the comparisons the other way round."""
    a, b = present(build, values)
    x, other = (a, b) if isinstance(b, Const) else (b, a)
    if isinstance(x, Counted) and isinstance(other, Const) and x.table.tolist() == [False, True]:
        flip = other.tensor
        if x.stacked and flip.ndim:
            flip = flip[..., 0]
        axis = channel_axis(flip, x.before.example.ndim)
        if axis is not None and (flip.numel() == 1 or axis == x.axis or x.bounds.shape[1] == 1):
            return _with_flip(Counted(x.before, x.bounds, x.flip, axis, x.table, x.place, x.stacked), flip.reshape(-1))
    return build.call(torch.logical_xor, a, b)


def channel_axis(constant: Tensor, rank: int) -> int | None:
    """Return the axis of a tensor of so many axes along which a constant varies, 1 if it is one number; else None."""
    sides = [1] * (rank - constant.ndim) + list(constant.shape)
    wide = [axis for axis, side in enumerate(sides) if side > 1]
    if constant.ndim > rank or len(wide) > 1 or wide == [0]:
        return None
    return wide[0] if wide else min(1, rank - 1)


@operator(*_COMPARISONS)
def compare(build: Builder, values: Sequence[Value | None]) -> Value:
    """A comparison: with a constant of each channel it may become levels."""
    a, b = present(build, values)
    run, includes, above = _COMPARISONS[build.node.op]
    if isinstance(a, Const) and not isinstance(b, Const):  # c >= x is x <= c
        a, b, includes, above = b, a, not includes, not above
    if isinstance(a, Const | Counted) or not isinstance(b, Const):
        return build.call(run, *present(build, values))
    found = _counted(build, a, b, includes, above)
    return build.call(run, *present(build, values)) if found is None else found


def _counted(build: Builder, a: Value, b: Const, includes: bool, above: bool) -> Counted | None:
    x = build.real(a)
    bounds, rank = b.tensor, x.example.ndim
    if not x.example.is_floating_point() or bounds.dtype != torch.float32:
        return None
    stacked = x.name in build.stacked and bounds.ndim > 0 and bounds.shape[-1] > 1
    of_one = bounds[..., 0] if stacked else bounds
    axis = channel_axis(of_one, rank - stacked)
    if axis is None:
        return None
    rows = bounds.reshape(-1, bounds.shape[-1]).T if stacked else bounds.reshape(1, -1)
    x = build.stacked[x.name] if stacked else x
    # x > t is x >= the float after t.
    rows = rows if includes else torch.nextafter(rows, torch.tensor(torch.inf))
    flip = torch.full((rows.shape[1],), not above)
    return Counted(x, rows, flip, axis, torch.tensor([False, True]), build.place(), stacked)


@operator("Div")
def divide(build: Builder, values: Sequence[Value | None]) -> Value:
    """A quotient, of integers without what is left over."""
    a, b = present(build, values)
    return build.number_by_number(_divided, a, b)


def _divided(a: Tensor, b: Tensor) -> Tensor:
    whole = not a.is_floating_point() and not b.is_floating_point()
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


@operator(*_OF_MANY)
def of_many(build: Builder, values: Sequence[Value | None]) -> Value:
    """The largest, smallest or sum of several."""
    first, *rest = present(build, values)
    for value in rest:
        first = build.number_by_number(_OF_MANY[build.node.op], first, value)
    return first


@operator("Where")
def where(build: Builder, values: Sequence[Value | None]) -> Value:
    """One of two, as a condition says."""
    return build.number_by_number(torch.where, *present(build, values))


@operator("Cast", "CastLike")
def cast(build: Builder, values: Sequence[Value | None]) -> Value:
    """Another type: floats stay float32, integers become int64."""
    x = values[0]
    build.need(x is not None, "an input is missing")
    assert x is not None
    build.need(build.node.op == "Cast", "give the type itself, with Cast")
    to = build.node.attributes["to"]
    if to in (1, 10, 11, 16):  # FLOAT, FLOAT16, DOUBLE, BFLOAT16
        if isinstance(x, Real | Quantized) and build.real(x).example.dtype == torch.float32:
            return x
        return build.number_by_number(_to, x, dtype=torch.float32)
    if to == 9:
        return build.number_by_number(_to, x, dtype=torch.bool)
    return build.number_by_number(_to, x, dtype=torch.int64)


def _to(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype)


@operator("Softmax", "LogSoftmax")
def softmax(build: Builder, values: Sequence[Value | None]) -> Value:
    """A softmax over one axis; of old files over all from an axis on."""
    (x,) = present(build, values)
    old = build.node.opset < 13
    axis = build.node.attributes.get("axis", 1 if old else -1)
    real = build.real(x)
    build.need(not old or axis % real.example.ndim == real.example.ndim - 1, "it goes over several axes")
    return build.add((nn.LogSoftmax if build.node.op == "LogSoftmax" else nn.Softmax)(axis), real)
