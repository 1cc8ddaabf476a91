"""Rules of everything that moves numbers without computing: views, slices, shuffles, padding; and of resizing."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from bnn_kernels.steps.windows import Resample
from torch import nn

from bnn.converter.builder import Builder, to_numpy
from bnn.converter.graph import Value
from bnn.converter.registry import register_rule

# -- moving -----------------------------------------------------------------------------------------------------------

_MODULES = (
    nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad1d, nn.ZeroPad2d,
    nn.ConstantPad1d, nn.ConstantPad2d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d,
    nn.ReplicationPad2d, nn.CircularPad1d, nn.CircularPad2d,
)  # fmt: skip


@register_rule(*_MODULES)
def moving_module(build: Builder, module: Any, x: Value) -> Any:
    """Modules that only move numbers: called on the places of the numbers, they show where each goes."""
    return build.move(x, module)


def _method(name: str) -> Any:
    return lambda build, x, *args, **kwargs: build.move(x, lambda places: getattr(places, name)(*args, **kwargs))


def _function(function: Any) -> Any:
    return lambda build, x, *args, **kwargs: build.move(x, lambda places: function(places, *args, **kwargs))


_METHODS = (
    "view", "reshape", "flatten", "unflatten", "transpose", "permute", "squeeze", "unsqueeze", "chunk", "split",
    "narrow", "flip", "roll", "swapaxes", "movedim", "moveaxis", "unbind", "repeat", "repeat_interleave",
    "index_select", "select", "tensor_split",
)  # fmt: skip
for _name in _METHODS:
    register_rule(_name)(_method(_name))
    if hasattr(torch, _name):
        register_rule(getattr(torch, _name))(_function(getattr(torch, _name)))
for _target in (F.pad, F.channel_shuffle, torch.channel_shuffle, F.pixel_shuffle, F.pixel_unshuffle, torch.tile):
    register_rule(_target)(_function(_target))


@register_rule(operator.getitem)
def item(build: Builder, x: Any, index: Any) -> Any:
    """One of several values, or a slice of a value."""
    return x[index] if isinstance(x, tuple) else build.move(x, lambda places: places[index])


# -- resizing ---------------------------------------------------------------------------------------------------------

_NEAREST = ("nearest", "nearest-exact")
_LINEAR = ("linear", "bilinear", "bicubic", "area")


def _resize(build: Builder, x: Value, function: Any, mode: str) -> Value:
    """Return what a resizing function makes of x, found out by calling it on maps that show where each number goes."""
    if mode in _NEAREST:
        moved: Value = build.move(x, function)
        return moved
    if mode not in _LINEAR:
        build.fail(f"resizing with mode {mode!r} cannot be converted; known are {', '.join(_NEAREST + _LINEAR)}")
    maps = x.shape if len(x.shape) == 3 else (x.shape[0], 1, x.shape[1])
    weights = []
    for axis in (1, 2):
        # One map for each row (column) that is 1 in it alone: what comes out are the weights of that row (column).
        count = maps[axis]
        probe = torch.eye(count, dtype=torch.float32).reshape(count, 1, *((count, 1) if axis == 1 else (1, count)))
        probe = probe.expand(count, 1, *maps[1:])
        if len(x.shape) == 3:
            made = function(probe)
            weights.append((made[:, 0, :, 0] if axis == 1 else made[:, 0, 0]).T)
        else:
            weights.append(torch.ones(1, 1) if axis == 1 else function(probe[:, :, 0])[:, 0].T)
    rows, columns = weights
    size = (len(rows), len(columns)) if len(x.shape) == 3 else (len(columns),)
    return build.step(x, (x.shape[0], *size), Resample.Fields(rows=to_numpy(rows), columns=to_numpy(columns)))


@register_rule(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
def upsample(build: Builder, module: Any, x: Value) -> Value:
    """A larger map, of the nearest numbers or of weighted ones."""
    return _resize(build, x, module, module.mode)


@register_rule(F.interpolate)
def interpolate(
    build: Builder, x: Value, size: Any = None, scale_factor: Any = None, mode: str = "nearest", **options: Any
) -> Value:
    """A larger or smaller map, of the nearest numbers or of weighted ones."""
    return _resize(build, x, lambda p: F.interpolate(p, size, scale_factor, mode, **options), mode)
