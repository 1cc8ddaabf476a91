"""Rules of pooling, and of everything that moves numbers without computing: views, slices, shuffles, padding."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bnn.converter.builder import Builder, two
from bnn.converter.graph import Value
from bnn.converter.registry import register_rule

# -- pooling ----------------------------------------------------------------------------------------------------------


def _max(build: Builder, x: Value, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> Value:
    if ceil:
        build.fail("pooling with ceil_mode=True cannot be converted; pad explicitly")
    if dilation not in (1, (1, 1), (1,), [1, 1]):
        build.fail("max pooling with dilation cannot be converted")
    return build.pool(x, "max", kernel, stride, padding)


@register_rule(nn.MaxPool1d, nn.MaxPool2d)
def max_pool(build: Builder, module: Any, x: Value) -> Value:
    """Maximum over windows."""
    if module.return_indices:
        build.fail("max pooling that returns indices cannot be converted")
    return _max(build, x, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)


def functional_max_pool(
    build: Builder, x: Value, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Value:  # fmt: skip
    """Maximum over windows."""
    if return_indices:
        build.fail("max pooling that returns indices cannot be converted")
    return _max(build, x, kernel_size, stride, padding, dilation, ceil_mode)


register_rule(F.max_pool1d, F.max_pool2d, torch.max_pool1d, torch.max_pool2d)(functional_max_pool)


def _avg(
    build: Builder, x: Value, kernel: Any, stride: Any, padding: Any, ceil: bool, counts: bool, divisor: Any
) -> Value:
    pads = any(two(padding) if not isinstance(padding, tuple | list) else padding)
    sides = build.sides(x, kernel, 1)
    steps = build.sides(x, kernel if stride is None or stride == [] else stride, 1)
    extents = x.shape[1:] if len(x.shape) == 3 else (1, x.shape[1])
    fits = all((e - k) % s == 0 for e, k, s in zip(extents, sides, steps, strict=True))
    if ceil and not (fits and not pads):
        build.fail("pooling with ceil_mode=True, where it matters, cannot be converted; pad explicitly")
    if divisor is not None or (pads and not counts):
        build.fail("average pooling must count its padding and divide by the window")
    return build.pool(x, "avg", kernel, stride, padding)


@register_rule(nn.AvgPool1d, nn.AvgPool2d)
def avg_pool(build: Builder, module: Any, x: Value) -> Value:
    """Mean over windows."""
    divisor = getattr(module, "divisor_override", None)
    return _avg(
        build, x, module.kernel_size, module.stride, module.padding, module.ceil_mode, module.count_include_pad, divisor
    )


@register_rule(F.avg_pool1d, F.avg_pool2d)
def functional_avg_pool(
    build: Builder, x: Value, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: Any = None,
) -> Value:  # fmt: skip
    """Mean over windows."""
    return _avg(build, x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _adaptive(build: Builder, x: Value, size: Any, kind: str, name: str) -> Value:
    extents = x.shape[1:]
    wanted = [size] * len(extents) if isinstance(size, int) else list(size)
    wanted = [e if w is None else w for e, w in zip(extents, wanted, strict=True)]
    if any(e % w for e, w in zip(extents, wanted, strict=True)):
        build.fail(f"{name} of {extents} to {tuple(wanted)} has windows of several sizes; use sizes that divide")
    kernel = [e // w for e, w in zip(extents, wanted, strict=True)]
    return build.pool(x, kind, kernel, kernel, [0] * len(extents))


@register_rule(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
def adaptive_avg_pool(build: Builder, module: Any, x: Value) -> Value:
    """Mean over equal parts of the map."""
    return _adaptive(build, x, module.output_size, "avg", type(module).__name__)


@register_rule(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
def adaptive_max_pool(build: Builder, module: Any, x: Value) -> Value:
    """Maximum over equal parts of the map."""
    if module.return_indices:
        build.fail("max pooling that returns indices cannot be converted")
    return _adaptive(build, x, module.output_size, "max", type(module).__name__)


@register_rule(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d)
def functional_adaptive_avg_pool(build: Builder, x: Value, output_size: Any) -> Value:
    """Mean over equal parts of the map."""
    return _adaptive(build, x, output_size, "avg", "adaptive average pooling")


@register_rule(F.adaptive_max_pool1d, F.adaptive_max_pool2d)
def functional_adaptive_max_pool(build: Builder, x: Value, output_size: Any, return_indices: bool = False) -> Value:
    """Maximum over equal parts of the map."""
    return _adaptive(build, x, output_size, "max", "adaptive max pooling")


def _over_pixels(build: Builder, x: Value, kind: str, dim: Any, keepdim: bool) -> Value:
    rank = len(x.shape) + 1
    axes = sorted(a % rank for a in ([dim] if isinstance(dim, int) else list(dim if dim is not None else range(rank))))
    if rank < 3 or axes != list(range(2, rank)):
        build.fail(f"a reduction over axes {dim} cannot be converted, only one over all pixels")
    kernel = list(x.shape[1:])
    pooled = build.pool(x, kind, kernel, kernel, [0] * len(kernel))
    return pooled if keepdim else build.move(pooled, lambda p: p.flatten(1))


@register_rule("mean", torch.mean)
def mean(build: Builder, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """Mean over all pixels."""
    return _over_pixels(build, x, "avg", dim, keepdim)


@register_rule("amax", torch.amax)
def amax(build: Builder, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """Maximum over all pixels."""
    return _over_pixels(build, x, "max", dim, keepdim)


# -- moving -----------------------------------------------------------------------------------------------------------


@register_rule(nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad2d)
def moving_module(build: Builder, module: Any, x: Value) -> Any:
    """Modules that only move numbers: called on the places of the numbers, they show where each goes."""
    return build.move(x, module)


def _method(name: str) -> Any:
    return lambda build, x, *args, **kwargs: build.move(x, lambda places: getattr(places, name)(*args, **kwargs))


def _function(function: Any) -> Any:
    return lambda build, x, *args, **kwargs: build.move(x, lambda places: function(places, *args, **kwargs))


_METHODS = (
    "view", "reshape", "flatten", "unflatten", "transpose", "permute", "squeeze", "unsqueeze", "chunk", "split",
    "narrow", "flip", "roll", "swapaxes", "movedim", "unbind",
)  # fmt: skip
for _name in _METHODS:
    register_rule(_name)(_method(_name))
    if hasattr(torch, _name):
        register_rule(getattr(torch, _name))(_function(getattr(torch, _name)))
for _target in (F.pad, F.channel_shuffle, torch.channel_shuffle, torch.reshape):
    register_rule(_target)(_function(_target))


@register_rule(operator.getitem)
def item(build: Builder, x: Any, index: Any) -> Any:
    """One of several values, or a slice of a value."""
    return x[index] if isinstance(x, tuple) else build.move(x, lambda places: places[index])
