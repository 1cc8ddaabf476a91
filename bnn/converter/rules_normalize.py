"""Rules of what looks at all channels of a place: layer, group and instance normalization, softmax."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from bnn_kernels.steps.normalize import Normalize, Softmax
from torch import Tensor, nn

from bnn.converter.builder import Builder
from bnn.converter.graph import Value
from bnn.converter.registry import register_rule
from bnn.layers import PixelNormalize


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


@register_rule(nn.LayerNorm)
def layer_norm(build: Builder, module: Any, x: Value) -> Value:
    """(x - mean) / sqrt(var + eps) over the last axes."""
    return _layer_norm(build, x, module.normalized_shape, module.weight, module.bias, module.eps)


@register_rule(F.layer_norm)
def functional_layer_norm(
    build: Builder, x: Value, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Value:
    """(x - mean) / sqrt(var + eps) over the last axes."""
    return _layer_norm(build, x, normalized_shape, weight, bias, eps)


@register_rule(nn.RMSNorm)
def rms_norm(build: Builder, module: Any, x: Value) -> Value:
    """x / sqrt(mean x^2 + eps) over the last axes."""
    eps = torch.finfo(torch.float32).eps if module.eps is None else module.eps
    return _layer_norm(build, x, module.normalized_shape, module.weight, None, eps, center=False)


def _group_norm(build: Builder, x: Value, groups: int, weight: Any, bias: Any, eps: float) -> Value:
    flat = build.move(x, lambda p: p.reshape(2, groups, -1))
    normal = build.channels_last(_normalize(build, build.channels_first(flat), eps))
    y = build.move(normal, lambda p: p.reshape(2, *x.shape))
    return y if weight is None else build.affine(y, weight, bias)


@register_rule(nn.GroupNorm)
def group_norm(build: Builder, module: Any, x: Value) -> Value:
    """(x - mean) / sqrt(var + eps) over each group of channels, then a scale and shift a channel."""
    return _group_norm(build, x, module.num_groups, module.weight, module.bias, module.eps)


@register_rule(nn.InstanceNorm1d, nn.InstanceNorm2d)
def instance_norm(build: Builder, module: Any, x: Value) -> Value:
    """(x - mean) / sqrt(var + eps) over each channel, then a scale and shift a channel."""
    if module.track_running_stats:
        build.fail("instance norm with running statistics is batch norm in evaluation: use that")
    return _group_norm(build, x, x.shape[0], module.weight, module.bias, module.eps)


# -- softmax ----------------------------------------------------------------------------------------------------------


def softmax_of(build: Builder, x: Value, dim: Any, log: bool) -> Value:
    """Return exp(x) over its sum along an axis, or the logarithm of that."""
    if dim is None:
        build.fail("softmax needs its axis: give dim=1")
    axis = dim % (len(x.shape) + 1)
    if axis == 0:
        build.fail("softmax over the batch cannot be converted")
    first = build.move(x, lambda p: p.movedim(axis, 1))
    made = build.step(first, first.shape, Softmax.Fields(log=log))
    moved: Value = build.move(made, lambda p: p.movedim(1, axis))
    return moved


@register_rule(nn.Softmax, nn.LogSoftmax)
def softmax(build: Builder, module: Any, x: Value) -> Value:
    """exp(x) over its sum along an axis, or the logarithm of that."""
    return softmax_of(build, x, module.dim, isinstance(module, nn.LogSoftmax))


@register_rule(nn.Softmax2d)
def softmax_2d(build: Builder, module: Any, x: Value) -> Value:
    """exp(x) over its sum along the channels."""
    return softmax_of(build, x, 1, False)


def _register(log: bool, *targets: Any) -> None:
    @register_rule(*targets)
    def of_function(build: Builder, x: Value, dim: Any = None, *args: Any, **kwargs: Any) -> Value:
        return softmax_of(build, x, dim, log)


_register(False, F.softmax, torch.softmax, "softmax")
_register(True, F.log_softmax, torch.log_softmax, "log_softmax")


@register_rule(PixelNormalize)
def pixel_normalize(build: Builder, module: Any, x: Value) -> Value:
    """Mean and deviation of pixels: with bytes as the input, a table of 256 numbers for each channel."""
    mean, std = module.mean.double(), module.std.double()

    def compute(y: Tensor) -> Tensor:
        return module(y)

    return build.affine(x, 1 / (float(module.max_value) * std), -mean / std, function=compute)
