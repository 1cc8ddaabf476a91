"""Rules of pooling, over windows of one size and of several."""

import math
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from bnn_kernels.steps.windows import WindowPool
from torch import nn

from bnn.converter.builder import Builder
from bnn.converter.errors import ConversionError
from bnn.converter.graph import Refused, Value
from bnn.converter.registry import register_rule


class _Side:
    """The windows of pooling along one side: starts and ends, which may lie in the padding."""

    def __init__(self, extent: int, kernel: int, stride: int, padding: int, ceil: bool):
        span = extent + 2 * padding - kernel
        count = (-(-span // stride) if ceil else span // stride) + 1
        # With ceil_mode the last window must not begin behind the map.
        if ceil and (count - 1) * stride >= extent + padding:
            count -= 1
        self.starts = np.arange(count) * stride - padding
        self.ends = np.minimum(self.starts + kernel, extent + padding)
        self.inside = np.stack([self.starts.clip(0), self.ends.clip(None, extent)], 1)
        # Whether plain pooling has the same windows.
        self.is_plain = count == span // stride + 1

    @property
    def sizes(self) -> np.ndarray:
        """Numbers in each window, pads among them."""
        return self.ends - self.starts

    @property
    def sizes_inside(self) -> np.ndarray:
        """Numbers of the map in each window."""
        return self.inside[:, 1] - self.inside[:, 0]


def _sides(build: Builder, x: Value, kernel: Any, stride: Any, padding: Any, ceil: bool) -> list[_Side]:
    extents = x.shape[1:] if len(x.shape) == 3 else (1, x.shape[-1])
    kernels = build.sides(x, kernel, 1)
    strides = build.sides(x, kernel if stride is None or stride == [] else stride, 1)
    paddings = build.sides(x, padding, 0)
    return [_Side(*side, ceil) for side in zip(extents, kernels, strides, paddings, strict=True)]


def _windows(
    build: Builder, x: Value, kind: Literal["max", "avg"], windows: list[np.ndarray], sizes: list[np.ndarray]
) -> Value:
    """Return the pooling of windows (y, x), each int (count, 2), first and behind the last number."""
    counts = tuple(len(side) for side in windows)
    rows, columns = (side.astype(np.int32) for side in windows)
    row_sizes, column_sizes = (side.astype(np.int32) for side in sizes) if kind == "avg" else (None, None)
    pool = WindowPool.Fields(kind=kind, rows=rows, columns=columns, row_sizes=row_sizes, column_sizes=column_sizes)
    shape = (x.shape[0], *(counts if len(x.shape) == 3 else counts[1:]))
    return build.step(x, shape, pool)


def _max(build: Builder, x: Value, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> Value:
    if dilation not in (1, (1, 1), (1,), [1, 1]):
        build.fail("max pooling with dilation cannot be converted")
    sides = _sides(build, x, kernel, stride, padding, ceil)
    if all(side.is_plain for side in sides):
        return build.pool(x, "max", kernel, stride, padding)
    return _windows(build, x, "max", [side.inside for side in sides], [])


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
    sides = _sides(build, x, kernel, stride, padding, ceil)
    kernels = build.sides(x, kernel, 1)
    sizes = [side.sizes if counts else side.sizes_inside for side in sides]
    if divisor is not None:
        sizes = [np.full_like(sizes[0], divisor), np.ones_like(sizes[1])]
    elif all(side.is_plain and (size == k).all() for side, size, k in zip(sides, sizes, kernels, strict=True)):
        return build.pool(x, "avg", kernel, stride, padding)
    return _windows(build, x, "avg", [side.inside for side in sides], sizes)


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


def _adaptive(build: Builder, x: Value, size: Any, kind: Literal["max", "avg"]) -> Value:
    extents = x.shape[1:]
    wanted = [size] * len(extents) if isinstance(size, int) else list(size)
    wanted = [e if w is None else w for e, w in zip(extents, wanted, strict=True)]
    if all(e % w == 0 for e, w in zip(extents, wanted, strict=True)):
        kernel = [e // w for e, w in zip(extents, wanted, strict=True)]
        return build.pool(x, kind, kernel, kernel, [0] * len(extents))
    windows = []
    for extent, count in zip(extents, wanted, strict=True):
        place = np.arange(count)
        windows.append(np.stack([place * extent // count, -(-(place + 1) * extent // count)], 1))
    if len(windows) == 1:
        windows.insert(0, np.array([[0, 1]]))
    return _windows(build, x, kind, windows, [side[:, 1] - side[:, 0] for side in windows])


@register_rule(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
def adaptive_avg_pool(build: Builder, module: Any, x: Value) -> Value:
    """Mean over parts of the map that are as equal as can be."""
    return _adaptive(build, x, module.output_size, "avg")


@register_rule(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
def adaptive_max_pool(build: Builder, module: Any, x: Value) -> Value:
    """Maximum over parts of the map that are as equal as can be."""
    if module.return_indices:
        build.fail("max pooling that returns indices cannot be converted")
    return _adaptive(build, x, module.output_size, "max")


@register_rule(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d)
def functional_adaptive_avg_pool(build: Builder, x: Value, output_size: Any) -> Value:
    """Mean over parts of the map that are as equal as can be."""
    return _adaptive(build, x, output_size, "avg")


@register_rule(F.adaptive_max_pool1d, F.adaptive_max_pool2d)
def functional_adaptive_max_pool(build: Builder, x: Value, output_size: Any, return_indices: bool = False) -> Value:
    """Maximum over parts of the map that are as equal as can be."""
    return _adaptive(build, x, output_size, "max")


def _over_axes(build: Builder, x: Value, kind: str, dim: Any, keepdim: bool) -> Value:
    rank = len(x.shape) + 1
    axes = sorted(a % rank for a in ([dim] if isinstance(dim, int) else list(dim if dim is not None else range(rank))))
    if 0 in axes:
        build.fail(f"a reduction over axes {dim} cannot be converted: it goes over the batch")
    kept = [axis for axis in range(1, rank) if axis not in axes]
    shape = [1 if axis in axes else side for axis, side in enumerate(x.shape, 1) if keepdim or axis not in axes]
    if not shape:
        build.fail("a reduction to one number an image must keep its axes: give keepdim=True")
    if axes != list(range(2, rank)):
        # What is left become the channels of a sequence, along which goes what is reduced.
        x = build.move(x, lambda p: p.permute(0, *kept, *axes).reshape(2, -1, math.prod(p.shape[a] for a in axes)))
    kernel = list(x.shape[1:])
    if kind == "sum":
        whole = [np.array([[0, side]]) for side in (kernel if len(kernel) == 2 else [1, *kernel])]
        pooled = _windows(build, x, "avg", whole, [np.ones(1)] * 2)
    else:
        pooled = build.pool(x, kind, kernel, kernel, [0] * len(kernel))
    return build.move(pooled, lambda p: p.reshape(2, *shape))


@register_rule("sum", torch.sum)
def total(build: Builder, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """Sum over any axes but the batch's."""
    return _over_axes(build, x, "sum", dim, keepdim)


@register_rule("max", torch.max)
def maximum(build: Builder, x: Value, dim: Any = None, keepdim: bool = False) -> Any:
    """Maximum over an axis, of which the places cannot be converted, or the larger of two values."""
    if isinstance(dim, Value):
        return build.extreme(x, dim, "maximum")
    if not isinstance(dim, int):
        build.fail("a maximum over everything cannot be converted; give it an axis")
    y = _over_axes(build, x, "max", dim, keepdim)
    return y, Refused(y.shape, error=ConversionError(f"{build.place}: the places of a maximum cannot be converted"))


@register_rule("mean", torch.mean)
def mean(build: Builder, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """Mean over any axes but the batch's."""
    return _over_axes(build, x, "avg", dim, keepdim)


@register_rule("amax", torch.amax)
def amax(build: Builder, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """Maximum over any axes but the batch's."""
    return _over_axes(build, x, "max", dim, keepdim)
