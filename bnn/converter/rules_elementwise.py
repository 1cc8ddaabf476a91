"""Rules of what treats every number by itself: batch norm, activations, sums and products, what does nothing."""

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn.converter.builder import Builder
from bnn.converter.graph import Add, Affine, Channelwise, Unpacked, Value
from bnn.converter.registry import register_rule
from bnn.layers.rprelu import RPReLU

# -- nothing to do in evaluation --------------------------------------------------------------------------------------


@register_rule(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
def nothing(build: Builder, module: nn.Module, x: Value) -> Value:
    """What evaluation leaves out."""
    return x


@register_rule(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout)
def functional_dropout(build: Builder, x: Value, p: float = 0.5, training: Any = None, inplace: bool = False) -> Value:
    """Dropout that knows that this is evaluation."""
    if training is not False:
        build.fail("dropout that drops in evaluation too: call it with training=self.training")
    return x


@register_rule("contiguous", "clone", "detach", "float", torch.clone)
def copied(build: Builder, x: Value, *args: Any, **kwargs: Any) -> Value:
    """The same numbers; packed networks compute in float32."""
    return x


@register_rule("to", "type", "type_as")
def cast(build: Builder, x: Value, *args: Any, **kwargs: Any) -> Value:
    """A cast to a float type (or a device), of a network that was made float32."""
    if any(isinstance(a, torch.dtype) and not a.is_floating_point for a in (*args, *kwargs.values())):
        build.fail("a cast to integers cannot be converted")
    return x  # the converter refuses results of other types than float32 and float64


# -- batch norm -------------------------------------------------------------------------------------------------------


@register_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
def batch_norm(build: Builder, module: Any, x: Value) -> Value:
    """Batch norm in evaluation: one scale and shift a channel."""
    if module.running_mean is None:
        build.fail("batch norm without running statistics depends on the batch; track them")
    # PyTorch's own float32 numbers, to the bit: the sum is rounded once.
    scale = (module.running_var + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * module.weight
    shift = -module.running_mean.double() * scale.double()
    if module.bias is not None:
        shift = shift + module.bias.double()

    def function(y: Tensor) -> Tensor:
        return module(y[..., None, None])[..., 0, 0] if isinstance(module, nn.BatchNorm2d) else module(y)

    return build.affine(x, scale, shift.float(), function, is_norm=True)


# -- activations ------------------------------------------------------------------------------------------------------


@register_rule(nn.ReLU)
def relu(build: Builder, module: Any, x: Value) -> Value:
    """max(x, 0)."""
    return build.clamp(x, 0.0)


@register_rule(nn.ReLU6, nn.Hardtanh)
def hardtanh(build: Builder, module: Any, x: Value) -> Value:
    """min(max(x, low), high)."""
    return build.clamp(x, module.min_val, module.max_val)


@register_rule(F.relu, torch.relu, "relu", "relu_", F.relu_, torch.relu_)
def functional_relu(build: Builder, x: Value, inplace: bool = False) -> Value:
    """max(x, 0)."""
    return build.clamp(x, 0.0)


@register_rule(F.relu6)
def functional_relu6(build: Builder, x: Value, inplace: bool = False) -> Value:
    """min(max(x, 0), 6)."""
    return build.clamp(x, 0.0, 6.0)


@register_rule(F.hardtanh)
def functional_hardtanh(
    build: Builder, x: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Value:
    """min(max(x, low), high)."""
    return build.clamp(x, min_val, max_val)


@register_rule(torch.clamp, torch.clip, "clamp", "clip", "clamp_")
def functional_clamp(build: Builder, x: Value, min: Any = None, max: Any = None) -> Value:
    """min(max(x, low), high) with numbers."""
    if any(isinstance(end, Value | Tensor) for end in (min, max)):
        build.fail("clamp can be converted with numbers for ends, not with tensors")
    return build.clamp(x, -math.inf if min is None else min, math.inf if max is None else max)


@register_rule(nn.LeakyReLU)
def leaky_relu(build: Builder, module: Any, x: Value) -> Value:
    """x, or slope * x below 0."""
    return build.bend(x, module.negative_slope)


@register_rule(F.leaky_relu)
def functional_leaky_relu(build: Builder, x: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    """x, or slope * x below 0."""
    return build.bend(x, negative_slope)


@register_rule(nn.PReLU)
def prelu(build: Builder, module: Any, x: Value) -> Value:
    """x, or a learned slope times x below 0."""
    return build.bend(x, module.weight)


@register_rule(F.prelu, torch.prelu)
def functional_prelu(build: Builder, x: Value, weight: Tensor) -> Value:
    """x, or a learned slope times x below 0."""
    return build.bend(x, weight)


@register_rule(RPReLU)
def rprelu(build: Builder, module: Any, x: Value) -> Value:
    """PReLU between learned shifts (ReActNet)."""
    return build.bend(x, module.beta, module.gamma, module.zeta, module)


_CURVES = (
    ("sigmoid", nn.Sigmoid, (torch.sigmoid, F.sigmoid, "sigmoid"), torch.sigmoid, True),
    ("tanh", nn.Tanh, (torch.tanh, F.tanh, "tanh"), torch.tanh, True),
    ("hard_sigmoid", nn.Hardsigmoid, (F.hardsigmoid,), F.hardsigmoid, True),
    ("silu", nn.SiLU, (F.silu,), F.silu, False),
    ("hard_swish", nn.Hardswish, (F.hardswish,), F.hardswish, False),
    ("log_sigmoid", nn.LogSigmoid, (F.logsigmoid,), F.logsigmoid, True),
    ("mish", nn.Mish, (F.mish,), F.mish, False),
    ("softsign", nn.Softsign, (F.softsign,), F.softsign, True),
    ("abs", None, (torch.abs, "abs", operator.abs), torch.abs, False),
    ("exp", None, (torch.exp, "exp"), torch.exp, False),
    ("square", None, (torch.square, "square"), torch.square, False),
)


def _register_curve(kind: str, cls: Any, functions: tuple[Any, ...], function: Any, monotone: bool) -> None:
    def of_module(build: Builder, module: Any, x: Value) -> Value:
        return build.curve(x, kind, function, monotone)

    def of_function(build: Builder, x: Value, inplace: bool = False) -> Value:
        return build.curve(x, kind, function, monotone)

    if cls is not None:
        register_rule(cls)(of_module)
    register_rule(*functions)(of_function)


for _curve in _CURVES:
    _register_curve(*_curve)


def _estimated(a: Value, b: Value) -> Value | None:
    """Return the quantized value q of a = q - b and b, as straight-through estimators write it; else None.

    PyTorch's q - b + b is q but for rounding.
    """
    if not isinstance(a, Add) or not isinstance(a.inputs[0], Unpacked):
        return None
    negative = a.inputs[1]
    form = negative.form if isinstance(negative, Channelwise) else None
    if not isinstance(form, Affine) or form.shift is not None or form.scale is None or negative.inputs != (b,):
        return None
    return a.inputs[0] if bool((form.scale == -1).all()) else None


@register_rule(nn.GELU)
def gelu(build: Builder, module: Any, x: Value) -> Value:
    """x times the normal distribution function of x."""
    return functional_gelu(build, x, module.approximate)


@register_rule(F.gelu)
def functional_gelu(build: Builder, x: Value, approximate: str = "none") -> Value:
    """x times the normal distribution function of x."""
    kind = "gelu" if approximate == "none" else "gelu_tanh"
    return build.curve(x, kind, lambda y: F.gelu(y, approximate=approximate), monotone=False)


@register_rule(nn.ELU)
def elu(build: Builder, module: Any, x: Value) -> Value:
    """x, or exp(x) - 1 below 0."""
    return functional_elu(build, x, module.alpha)


@register_rule(F.elu)
def functional_elu(build: Builder, x: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    """x, or exp(x) - 1 below 0."""
    if alpha != 1:
        build.fail(f"ELU can be converted with alpha 1, got {alpha}")
    return build.curve(x, "elu", F.elu, monotone=True)


@register_rule(nn.Softplus)
def softplus(build: Builder, module: Any, x: Value) -> Value:
    """log(1 + exp(x))."""
    return functional_softplus(build, x, module.beta, module.threshold)


@register_rule(F.softplus)
def functional_softplus(build: Builder, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    """log(1 + exp(x))."""
    if beta != 1 or threshold < 20:
        build.fail(f"softplus can be converted with beta 1 and a threshold of at least 20, got {beta} and {threshold}")
    return build.curve(x, "softplus", F.softplus, monotone=True)


# -- sums and products ------------------------------------------------------------------------------------------------


@register_rule(operator.add, operator.iadd, torch.add, "add", "add_")
def add(build: Builder, a: Any, b: Any, alpha: float = 1) -> Value:
    """a + alpha * b of two values, or of one and a constant."""
    if isinstance(a, Value) and isinstance(b, Value):
        estimated = (_estimated(a, b) or _estimated(b, a)) if alpha == 1 else None
        return estimated or build.add(a, b if alpha == 1 else build.affine(b, scale=alpha))
    if isinstance(a, Value):
        return build.affine(a, shift=build.aligned(a, b * alpha))
    return build.affine(b if alpha == 1 else build.affine(b, scale=alpha), shift=build.aligned(b, a))


@register_rule(operator.sub, operator.isub, torch.sub, "sub", "sub_")
def subtract(build: Builder, a: Any, b: Any, alpha: float = 1) -> Value:
    """a - alpha * b."""
    if not isinstance(b, Value):
        return build.affine(a, shift=build.aligned(a, -(b * alpha)))
    if isinstance(a, Add) and alpha == 1 and b in a.inputs:  # q + y - y
        other = a.inputs[1 - a.inputs.index(b)]
        if isinstance(other, Unpacked):
            return other
    negative = build.affine(b, scale=-alpha)
    return build.add(a, negative) if isinstance(a, Value) else build.affine(negative, shift=build.aligned(b, a))


@register_rule(operator.mul, operator.imul, torch.mul, "mul", "mul_")
def multiply(build: Builder, a: Any, b: Any) -> Value:
    """a * b of two values, or of one and a constant."""
    if isinstance(a, Value) and isinstance(b, Value):
        return build.multiply(a, b)
    value, constant = (a, b) if isinstance(a, Value) else (b, a)
    return build.affine(value, scale=build.aligned(value, constant))


@register_rule(operator.truediv, operator.itruediv, torch.div, "div", "div_")
def divide(build: Builder, a: Any, b: Any) -> Value:
    """a / b of two values, or of one by a constant."""
    if isinstance(a, Value) and isinstance(b, Value):
        return build.divide(a, b)
    if isinstance(b, Value):
        build.fail("a constant divided by something that depends on the input cannot be converted")
    divisor = build.aligned(a, b).to(torch.float64)
    if (divisor == 0).any():
        build.fail("a division by zero")
    if divisor.numel() > 1:
        return build.affine(a, scale=1 / divisor)
    by = torch.from_numpy(build.channel_vector(a, divisor)).to(torch.float32)
    return build.affine(a, scale=1 / divisor, function=lambda y: y / by)


@register_rule(torch.maximum, "maximum")
def maximum(build: Builder, a: Any, b: Any) -> Value:
    """The larger of two values."""
    return _extreme(build, a, b, "maximum")


@register_rule(torch.minimum, "minimum")
def minimum(build: Builder, a: Any, b: Any) -> Value:
    """The smaller of two values."""
    return _extreme(build, a, b, "minimum")


def _extreme(build: Builder, a: Any, b: Any, kind: str) -> Value:
    if not (isinstance(a, Value) and isinstance(b, Value)):
        build.fail(f"{kind} with a constant cannot be converted; use clamp")
    return build.extreme(a, b, kind)


@register_rule(operator.pow, torch.pow, "pow")
def power(build: Builder, x: Any, exponent: Any) -> Value:
    """x * x."""
    if not isinstance(x, Value) or not isinstance(exponent, int | float) or exponent != 2:
        build.fail("a power can be converted with exponent 2 alone")
    return build.curve(x, "square", torch.square, monotone=False)


@register_rule(operator.neg, torch.neg, "neg")
def negate(build: Builder, x: Value) -> Value:
    """-x."""
    return build.affine(x, scale=-1.0)


@register_rule("expand_as", "view_as")
def like_another(build: Builder, x: Any, other: Any) -> Any:
    """A value, or a constant, in the shape of a value."""
    shape = (2, *(other.shape if isinstance(other, Value) else other.shape[1:]))
    if not isinstance(x, Value):  # sums and products spread it by themselves
        return x
    return build.move(x, lambda p: p.reshape(shape) if p.numel() == math.prod(shape) else p.expand(shape))


@register_rule("expand")
def expanded(build: Builder, x: Any, *shape: Any) -> Any:
    """A value spread over sides of 1; a constant is spread by sums and products by themselves."""
    return build.move(x, lambda p: p.expand(*shape)) if isinstance(x, Value) else x


@register_rule(torch.cat, torch.concat)
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
