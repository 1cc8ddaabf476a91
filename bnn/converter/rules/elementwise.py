"""Rules of what treats every number by itself: batch norm, activations, sums and products, what does nothing."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bnn.converter.graph.builder import Builder
from bnn.converter.graph.values import Add, Affine, Channelwise, Curve, Moved, Refused, Value
from bnn.converter.recognize.whole import is_whole
from bnn.converter.registry import register_rule
from bnn.layers.rprelu import RPReLU

aten = torch.ops.aten

# -- nothing to do in evaluation --------------------------------------------------------------------------------------


@register_rule(aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout)
def dropout(build: Builder, x: Value, p: float, train: bool) -> Value:
    """Dropout that knows that this is evaluation."""
    if train:
        build.fail("dropout that drops in evaluation too: call it with training=self.training")
    return x


@register_rule(aten._to_copy)
def cast(build: Builder, x: Value, dtype: Any = None, **options: Any) -> Value:
    """A cast: floats to floats, of a network that was made float32, or to integers that are known to fit."""
    if dtype is None or dtype.is_floating_point or is_whole(x):
        return x  # the converter refuses what does not hold the numbers
    return build.curve(x, "trunc", torch.trunc, monotone=True)


# -- batch norm -------------------------------------------------------------------------------------------------------


@register_rule(aten.batch_norm)
def batch_norm(
    build: Builder, x: Value, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float,
    cudnn: bool = False,
) -> Value:  # fmt: skip
    """Batch norm in evaluation: one scale and shift a channel."""
    if training or not all(isinstance(part, Tensor) for part in (mean, var)):
        build.fail("batch norm without running statistics depends on the batch; track them")
    if any(isinstance(part, Value) for part in (weight, bias)):
        build.fail("batch norm whose scale depends on the input cannot be converted")
    # PyTorch's own float32 numbers, to the bit: the sum is rounded once.
    scale = (var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean.double() * scale.double()
    if bias is not None:
        shift = shift + bias.double()
    sides = (None,) * (len(x.shape) - 1) if len(x.shape) > 2 else ()

    def function(y: Tensor) -> Tensor:
        made = F.batch_norm(y[(..., *sides)], mean, var, weight, bias, False, 0.0, eps)
        return made.reshape(y.shape)

    return build.affine(x, scale, shift.float(), function, is_norm=True)


# -- activations ------------------------------------------------------------------------------------------------------


@register_rule(aten.relu)
def relu(build: Builder, x: Value) -> Value:
    """max(x, 0)."""
    return build.clamp(x, 0.0)


@register_rule(aten.hardtanh)
def hardtanh(build: Builder, x: Value, low: float = -1.0, high: float = 1.0) -> Value:
    """min(max(x, low), high)."""
    return build.clamp(x, low, high)


@register_rule(aten.clamp, aten.clamp_min)
def clamp(build: Builder, x: Any, min: Any = None, max: Any = None) -> Value:
    """min(max(x, low), high) with numbers, constants of each channel or values."""
    varies = any(isinstance(end, Value) or (isinstance(end, Tensor) and end.numel() > 1) for end in (min, max))
    if varies or not isinstance(x, Value):
        x = x if min is None else _extreme(build, x, min, "maximum")
        return x if max is None else _extreme(build, x, max, "minimum")
    return build.clamp(x, -math.inf if min is None else float(min), math.inf if max is None else float(max))


@register_rule(aten.clamp_max)
def clamp_max(build: Builder, x: Value, max: Any) -> Value:
    """min(x, high)."""
    return clamp(build, x, None, max)


@register_rule(aten.leaky_relu)
def leaky_relu(build: Builder, x: Value, negative_slope: float = 0.01) -> Value:
    """x, or slope * x below 0."""
    return build.bend(x, negative_slope)


@register_rule(aten.prelu)
def prelu(build: Builder, x: Value, weight: Tensor) -> Value:
    """x, or a learned slope times x below 0."""
    return build.bend(x, weight)


@register_rule(RPReLU)
def rprelu(build: Builder, module: Any, x: Value) -> Value:
    """PReLU between learned shifts (ReActNet)."""
    return build.bend(x, module.beta, module.gamma, module.zeta, module)


_CURVES: tuple[tuple[str, Any, Any, bool], ...] = (
    ("sigmoid", aten.sigmoid, torch.sigmoid, True),
    ("tanh", aten.tanh, torch.tanh, True),
    ("hard_sigmoid", aten.hardsigmoid, F.hardsigmoid, True),
    ("silu", aten.silu, F.silu, False),
    ("hard_swish", aten.hardswish, F.hardswish, False),
    ("log_sigmoid", aten.log_sigmoid, F.logsigmoid, True),
    ("mish", aten.mish, F.mish, False),
    ("abs", aten.abs, torch.abs, False),
    ("exp", aten.exp, torch.exp, False),
    ("sqrt", aten.sqrt, torch.sqrt, False),
    ("rsqrt", aten.rsqrt, torch.rsqrt, False),
    ("reciprocal", aten.reciprocal, torch.reciprocal, False),
    ("floor", aten.floor, torch.floor, True),
    ("ceil", aten.ceil, torch.ceil, True),
    ("trunc", aten.trunc, torch.trunc, True),
)


def _register_curve(kind: str, operator: Any, function: Any, monotone: bool) -> None:
    @register_rule(operator)
    def curve(build: Builder, x: Value) -> Value:
        return build.curve(x, kind, function, monotone)


for _curve in _CURVES:
    _register_curve(*_curve)


def _estimated(a: Value, b: Value) -> Value | None:
    """Return the value q of a = q - b and b, as straight-through estimators write it; else None.

    PyTorch's q - b + b is q but for rounding.
    """
    if not isinstance(a, Add):
        return None
    return next((q for q, other in (a.inputs, a.inputs[::-1]) if _is_negative(other, b)), None)


def _is_negative(a: Value, b: Value) -> bool:
    """Whether a is -b."""
    if isinstance(a, Moved) and isinstance(b, Moved) and np.array_equal(a.index, b.index):
        return _is_negative(a.inputs[0], b.inputs[0])
    if not isinstance(a, Channelwise) or a.inputs != (b,) or not isinstance(a.form, Affine):
        return False
    return a.form.shift is None and a.form.scale is not None and bool((a.form.scale == -1).all())


@register_rule(aten.gelu)
def gelu(build: Builder, x: Value, approximate: str = "none") -> Value:
    """x times the normal distribution function of x."""
    kind = "gelu" if approximate == "none" else "gelu_tanh"
    return build.curve(x, kind, lambda y: F.gelu(y, approximate=approximate), monotone=False)


@register_rule(aten.elu)
def elu(build: Builder, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Value:
    """x, or exp(x) - 1 below 0."""
    if (alpha, scale, input_scale) != (1, 1, 1):
        build.fail(f"ELU can be converted with alpha 1, got {alpha}")
    return build.curve(x, "elu", F.elu, monotone=True)


@register_rule(aten.softplus)
def softplus(build: Builder, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    """log(1 + exp(x))."""
    if beta != 1 or threshold < 20:
        build.fail(f"softplus can be converted with beta 1 and a threshold of at least 20, got {beta} and {threshold}")
    return build.curve(x, "softplus", F.softplus, monotone=True)


# -- sums and products ------------------------------------------------------------------------------------------------


def _stretched(build: Builder, x: Value, constant: Any) -> Value:
    """Return a value repeated along the axes where a constant is longer, as in x[:, None] - centres[:, None]."""
    sides = torch.as_tensor(constant).shape
    rank = len(x.shape)
    if isinstance(x, Refused) or len(sides) > rank + 1:
        return x
    try:
        shape = torch.broadcast_shapes(x.shape, sides[max(0, len(sides) - rank) :])
    except RuntimeError:  # what is wrong is told where the two meet
        return x
    repeated: Value = x if shape == x.shape else build.move(x, lambda places: places.expand(len(places), *shape))
    return repeated


@register_rule(aten.add)
def add(build: Builder, a: Any, b: Any, alpha: float = 1) -> Value:
    """a + alpha * b of two values, or of one and a constant."""
    if isinstance(a, Value) and isinstance(b, Value):
        estimated = (_estimated(a, b) or _estimated(b, a)) if alpha == 1 else None
        return estimated or build.add(a, b if alpha == 1 else build.affine(b, scale=alpha))
    value, constant = (a, b * alpha) if isinstance(a, Value) else (build.affine(b, scale=alpha) if alpha != 1 else b, a)
    value = _stretched(build, value, constant)
    aligned = build.aligned(value, constant)
    return build.affine(value, shift=aligned) if bool(aligned.any()) else value


@register_rule(aten.sub)
def subtract(build: Builder, a: Any, b: Any, alpha: float = 1) -> Any:
    """a - alpha * b."""
    if not isinstance(b, Value):
        a = _stretched(build, a, b)
        return build.affine(a, shift=build.aligned(a, -(b * alpha)))
    if a is b and alpha == 1:
        return torch.zeros(2, *b.shape)
    if isinstance(a, Add) and alpha == 1 and b in a.inputs:  # q + y - y
        return a.inputs[1 - a.inputs.index(b)]
    negative = build.affine(b if isinstance(a, Value) else _stretched(build, b, a), scale=-alpha)
    return build.add(a, negative) if isinstance(a, Value) else build.affine(negative, shift=build.aligned(negative, a))


@register_rule(aten.rsub)
def subtract_from(build: Builder, a: Any, b: Any, alpha: float = 1) -> Any:
    """b - alpha * a."""
    return subtract(build, b, a, alpha)


@register_rule(aten.mul)
def multiply(build: Builder, a: Any, b: Any) -> Value:
    """a * b of two values, or of one and a constant."""
    if isinstance(a, Value) and isinstance(b, Value):
        if a is b:
            return build.curve(a, "square", torch.square, monotone=False)
        return build.multiply(a, b)
    value, constant = (a, b) if isinstance(a, Value) else (b, a)
    value = _stretched(build, value, constant)
    return build.affine(value, scale=build.aligned(value, constant))


@register_rule(aten.div)
def divide(build: Builder, a: Any, b: Any, rounding_mode: str | None = None) -> Value:
    """a / b of two values, or of one by a constant."""
    if rounding_mode is not None:
        build.fail("a division that rounds cannot be converted")
    if isinstance(a, Value) and isinstance(b, Value):
        if _is_one_and_size(b, a):
            return build.curve(a, "softsign", F.softsign, monotone=True)
        return build.divide(a, b)
    if isinstance(b, Value):
        return multiply(build, build.curve(b, "reciprocal", torch.reciprocal, monotone=False), a)
    a = _stretched(build, a, b)
    divisor = build.aligned(a, b).to(torch.float64)
    if (divisor == 0).any():
        build.fail("a division by zero")
    if divisor.numel() > 1:
        return build.affine(a, scale=1 / divisor)
    by = torch.from_numpy(build.channel_vector(a, divisor)).to(torch.float32)
    return build.affine(a, scale=1 / divisor, function=lambda y: y / by)


def _is_one_and_size(b: Value, a: Value) -> bool:
    """Whether b is 1 + |a|, by which softsign divides."""
    form = b.form if isinstance(b, Channelwise) else None
    if (
        not isinstance(form, Affine)
        or form.scale is not None
        or form.shift is None
        or not bool((form.shift == 1).all())
    ):
        return False
    size = b.inputs[0]
    return isinstance(size, Channelwise) and size.form == Curve("abs") and size.inputs == (a,)


@register_rule(aten.maximum)
def maximum(build: Builder, a: Any, b: Any) -> Value:
    """The larger of two values."""
    return _extreme(build, a, b, "maximum")


@register_rule(aten.minimum)
def minimum(build: Builder, a: Any, b: Any) -> Value:
    """The smaller of two values."""
    return _extreme(build, a, b, "minimum")


def _extreme(build: Builder, a: Any, b: Any, kind: str) -> Value:
    if isinstance(a, Value) and isinstance(b, Value):
        return build.extreme(a, b, kind)
    value, constant = (a, b) if isinstance(a, Value) else (b, a)
    if isinstance(constant, Tensor) and constant.numel() != 1:
        return _extreme_of_channels(build, value, constant, kind)
    end = float(constant)
    return build.clamp(value, end) if kind == "maximum" else build.clamp(value, high=end)


def _extreme_of_channels(build: Builder, x: Value, constant: Tensor, kind: str) -> Value:
    """Return max(x - c, 0) + c, or of the other sign, with a constant of each channel."""
    ends = torch.from_numpy(build.channel_vector(x, build.aligned(x, constant)))
    if kind == "minimum":
        return build.affine(_extreme_of_channels(build, build.affine(x, scale=-1.0), -constant, "maximum"), scale=-1.0)
    return build.bend(x, 0.0, ends, ends, lambda y: torch.maximum(y, ends.to(y.dtype)))


@register_rule(aten.round)
def round_to_even(build: Builder, x: Value, decimals: int = 0) -> Value:
    """The nearest whole number, halves to even."""
    if decimals:
        build.fail(f"rounding can be converted to whole numbers alone, got decimals={decimals}")
    return build.curve(x, "round", torch.round, monotone=True)


_POWERS = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}


@register_rule(aten.pow)
def power(build: Builder, x: Any, exponent: Any) -> Value:
    """A power that is a function with a name of its own."""
    kind = _POWERS.get(exponent) if isinstance(exponent, int | float) else None
    if not isinstance(x, Value) or kind is None:
        build.fail(f"a power can be converted with exponents {', '.join(map(str, _POWERS))} alone, got {exponent}")
    return build.curve(x, kind, getattr(torch, kind), monotone=False)


@register_rule(aten.neg)
def negate(build: Builder, x: Value) -> Value:
    """-x."""
    return build.affine(x, scale=-1.0)


@register_rule(aten.cat)
def concat(build: Builder, tensors: Any, dim: int = 0) -> Value:
    """Values, and constants among them, one after the other along any axis but the batch's."""
    first = next(value for value in tensors if isinstance(value, Value))
    axis = dim % (len(first.shape) + 1)
    if axis == 0:
        build.fail("a concatenation along the batch cannot be converted")
    values = [build.move(v, lambda p: p.movedim(axis, 1)) for v in tensors if isinstance(v, Value)]
    y = build.concat(values)
    if len(values) < len(tensors):
        y = _with_constants(build, y, tensors, axis)
    moved: Value = build.move(y, lambda p: p.movedim(1, axis))
    return moved


@register_rule(aten.stack)
def stack(build: Builder, tensors: Any, dim: int = 0) -> Value:
    """Values, and constants among them, one after the other along a new axis."""
    first = next(value for value in tensors if isinstance(value, Value))
    axis = dim % (len(first.shape) + 2)
    if axis == 0:
        build.fail("a stack along the batch cannot be converted")
    spread = [
        build.move(v, lambda p: p.unsqueeze(axis)) if isinstance(v, Value) else v.unsqueeze(axis) for v in tensors
    ]
    return concat(build, spread, axis)


def _with_constants(build: Builder, y: Value, tensors: Any, axis: int) -> Value:
    """Return y, the values of a concatenation, with the constants in their places."""
    spread: list[Tensor | None] = []  # the constants; None for a channel of y
    count = 0
    for part in tensors:
        if isinstance(part, Value):
            count += part.shape[axis - 1]
            spread += [None] * part.shape[axis - 1]
        elif part.ndim == len(y.shape) + 1 and bool((part == part[:1]).all()):
            spread += list(part[0].detach().movedim(axis - 1, 0))
        else:
            build.fail("a concatenation with a constant that differs from image to image cannot be converted")
    order = iter(range(count))
    places = [next(order) if part is None else -1 for part in spread]

    def make_room(p: Tensor) -> Tensor:
        # Behind the channels comes one of zeros, which -1 takes.
        return torch.cat([p, torch.zeros_like(p[:, :1])], 1)[:, places]

    zero = torch.zeros(y.shape[1:])
    constant = torch.stack([zero if part is None else part for part in spread])[None]
    room: Value = build.move(y, make_room, compose=False)
    return build.by_place(room, "add", build.aligned(room, constant))
