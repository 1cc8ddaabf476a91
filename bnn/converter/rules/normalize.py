"""Rules of what looks at all channels of a place: layer, group and instance normalization, softmax."""

import math
from typing import Any

import torch
from bnn_kernels.steps.normalize import Normalize, Softmax
from torch import Tensor

from bnn.converter.graph.builder import Builder
from bnn.converter.graph.values import Value
from bnn.converter.registry import register_rule
from bnn.converter.rules.elementwise import batch_norm
from bnn.layers import PixelNormalize

aten = torch.ops.aten


def _normalize(build: Builder, x: Value, eps: float, center: bool = True) -> Value:
    return build.step(x, x.shape, Normalize.Fields(eps=float(eps), center=center))


def _layer_norm(build: Builder, x: Value, shape: Any, weight: Any, bias: Any, eps: float, center: bool = True) -> Value:
    """Normalize the last axes, of this shape: all of them or the last one."""
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if len(sizes) == len(x.shape):
        count = math.prod(sizes)
        flat = _normalize(build, build.move(x, lambda p: p.reshape(2, count)), eps, center)
        y = build.move(flat, lambda p: p.reshape(2, *sizes))
    elif len(sizes) == 1:
        y = build.channels_last(_normalize(build, build.channels_first(x), eps, center))
    else:
        build.fail(
            f"a normalization of {sizes} out of {('N', *x.shape)} cannot be converted, only of one axis or of all"
        )
    if weight is not None:
        y = build.affine(y, scale=build.aligned(y, weight))
    return y if bias is None else build.affine(y, shift=build.aligned(y, bias))


@register_rule(aten.layer_norm)
def layer_norm(
    build: Builder, x: Value, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: bool = False
) -> Value:
    """(x - mean) / sqrt(var + eps) over the last axes."""
    return _layer_norm(build, x, shape, weight, bias, eps)


@register_rule(aten.rms_norm)
def rms_norm(build: Builder, x: Value, shape: Any, weight: Any = None, eps: float | None = None) -> Value:
    """x / sqrt(mean x^2 + eps) over the last axes."""
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    return _layer_norm(build, x, shape, weight, None, eps, center=False)


@register_rule(aten.group_norm)
def group_norm(
    build: Builder, x: Value, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: bool = False
) -> Value:
    """(x - mean) / sqrt(var + eps) over each group of channels, then a scale and shift a channel."""
    flat = build.move(x, lambda p: p.reshape(2, groups, -1))
    normal = build.channels_last(_normalize(build, build.channels_first(flat), eps))
    y = build.move(normal, lambda p: p.reshape(2, *x.shape))
    return y if weight is None else build.affine(y, weight, bias)


@register_rule(aten.instance_norm)
def instance_norm(
    build: Builder, x: Value, weight: Any, bias: Any, mean: Any, var: Any, use_input_stats: bool, momentum: float,
    eps: float, cudnn: bool = False,
) -> Value:  # fmt: skip
    """(x - mean) / sqrt(var + eps) over each channel, then a scale and shift a channel."""
    if not use_input_stats:
        return batch_norm(build, x, weight, bias, mean, var, False, momentum, eps)
    return group_norm(build, x, x.shape[0], weight, bias, eps)


# -- softmax ----------------------------------------------------------------------------------------------------------


def softmax_of(build: Builder, x: Value, dim: int, log: bool) -> Value:
    """Return exp(x) over its sum along an axis, or the logarithm of that."""
    axis = dim % (len(x.shape) + 1)
    if axis == 0:
        build.fail("softmax over the batch cannot be converted")
    first = build.move(x, lambda p: p.movedim(axis, 1))
    made = build.step(first, first.shape, Softmax.Fields(log=log))
    moved: Value = build.move(made, lambda p: p.movedim(1, axis))
    return moved


@register_rule(aten.softmax)
def softmax(build: Builder, x: Value, dim: int, dtype: Any = None) -> Value:
    """exp(x) over its sum along an axis."""
    return softmax_of(build, x, dim, False)


@register_rule(aten.log_softmax)
def log_softmax(build: Builder, x: Value, dim: int, dtype: Any = None) -> Value:
    """The logarithm of exp(x) over its sum along an axis."""
    return softmax_of(build, x, dim, True)


@register_rule(PixelNormalize)
def pixel_normalize(build: Builder, module: Any, x: Value) -> Value:
    """Mean and deviation of pixels: with bytes as the input, a table of 256 numbers for each channel."""
    mean, std = module.mean.double(), module.std.double()

    def compute(y: Tensor) -> Tensor:
        return module(y)

    return build.affine(x, 1 / (float(module.max_value) * std), -mean / std, function=compute)
