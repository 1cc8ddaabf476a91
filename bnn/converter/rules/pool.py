"""Rules of pooling, over windows of one size and of several, along one, two or three axes."""

import math
from typing import Any, Literal

import numpy as np
import torch
from bnn_kernels.steps.windows import WindowPool

from bnn.converter.errors import ConversionError
from bnn.converter.graph.builder import Builder
from bnn.converter.graph.values import Refused, Value
from bnn.converter.registry import register_rule

aten = torch.ops.aten


class Side:
    """The windows of pooling along one side: starts and ends, which may lie in the padding."""

    def __init__(self, extent: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool):
        reach = dilation * (kernel - 1) + 1
        span = extent + 2 * padding - reach
        count = (-(-span // stride) if ceil else span // stride) + 1
        # With ceil_mode the last window must not begin behind the map.
        if ceil and (count - 1) * stride >= extent + padding:
            count -= 1
        self.starts = np.arange(count) * stride - padding
        self.ends = np.minimum(self.starts + reach, extent + padding)
        first = np.where(self.starts < 0, self.starts % dilation, self.starts)
        self.inside = np.stack([first, self.ends.clip(None, extent)], 1)
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


def sides_of(build: Builder, x: Value, value: Any, missing: int) -> list[int]:
    """Return [z, y, x] of an argument for volumes, [y, x] for maps and sequences."""
    volume = len(x.shape) == 4
    sides = [int(v) for v in (value if not isinstance(value, int) else [value])]
    found = (sides * 3 if len(sides) == 1 else sides) if volume else build.sides(x, value, missing)
    _need_axes(build, x, len(found), 3 if volume else 2)
    return found


def _need_axes(build: Builder, x: Value, given: int, wanted: int) -> None:
    if given != wanted:
        build.fail(f"takes windows over {given} axes, got {('N', *x.shape)}: put the batch and the channels first")


def _sides(
    build: Builder, x: Value, kernel: Any, stride: Any, padding: Any, ceil: bool, dilation: Any = 1
) -> list[Side]:
    extents = (1, x.shape[-1]) if len(x.shape) == 2 else x.shape[1:]
    kernels = sides_of(build, x, kernel, 1)
    strides = sides_of(build, x, kernel if stride is None or stride == [] else stride, 1)
    paddings = sides_of(build, x, padding, 0)
    dilations = sides_of(build, x, dilation, 1)
    return [Side(*side, ceil) for side in zip(extents, kernels, strides, paddings, dilations, strict=True)]


def pool_windows(
    build: Builder, x: Value, kind: Literal["max", "avg"], windows: list[np.ndarray], sizes: list[np.ndarray],
    dilation: list[int] | None = None,
) -> Value:  # fmt: skip
    """Return the pooling of windows (y, x), of volumes (z, y, x), each int (count, 2): first and behind the last."""
    if len(windows) == 3:
        return _pool_volume(build, x, kind, windows, sizes, dilation)
    counts = tuple(len(side) for side in windows)
    rows, columns = (side.astype(np.int32) for side in windows)
    row_sizes, column_sizes = (side.astype(np.int32) for side in sizes) if kind == "avg" else (None, None)
    pool = WindowPool.Fields(
        kind=kind, rows=rows, columns=columns, row_sizes=row_sizes, column_sizes=column_sizes, dilation=dilation
    )
    shape = (x.shape[0], *(counts if len(x.shape) == 3 else counts[1:]))
    return build.step(x, shape, pool)


def _pool_volume(
    build: Builder, x: Value, kind: Literal["max", "avg"], windows: list[np.ndarray], sizes: list[np.ndarray],
    dilation: list[int] | None,
) -> Value:  # fmt: skip
    """Return the pooling of a volume: within the slices, which lie below one another, then over them."""
    channels, depth, height, _ = x.shape
    slices, rows, columns = windows
    of_slices, of_rows, of_columns = sizes if kind == "avg" else [np.empty(0, int)] * 3
    below = (np.arange(depth)[:, None, None] * height + rows).reshape(-1, 2)
    within = build.move(x, lambda p: p.flatten(2, 3))
    y = pool_windows(
        build, within, kind, [below, columns], [np.tile(of_rows, depth), of_columns], dilation and dilation[1:]
    )
    area = len(rows) * len(columns)
    y = build.move(y, lambda p: p.reshape(2, channels, depth, area))
    alone = np.stack([np.arange(area), np.arange(1, area + 1)], 1)
    y = pool_windows(build, y, kind, [slices, alone], [of_slices, np.ones(area)], dilation and [dilation[0], 1])
    volume: Value = build.move(y, lambda p: p.reshape(2, channels, len(slices), len(rows), len(columns)))
    return volume


def _max(build: Builder, x: Value, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> Value:
    sides = _sides(build, x, kernel, stride, padding, ceil, dilation)
    if any((side.inside[:, 0] >= side.inside[:, 1]).any() for side in sides):
        build.fail("a window of max pooling lies outside the map: its maximum would be -inf")
    if len(sides) == 2 and all(side.is_plain for side in sides):
        return build.pool(x, "max", kernel, stride, padding, dilation)
    spread = sides_of(build, x, dilation, 1)
    return pool_windows(build, x, "max", [side.inside for side in sides], [], None if set(spread) == {1} else spread)


@register_rule(aten.max_pool1d, aten.max_pool2d, aten.max_pool3d)
def max_pool(
    build: Builder, x: Value, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> Value:
    """Maximum over windows."""
    return _max(build, x, kernel, stride, padding, dilation, ceil)


@register_rule(aten.max_pool1d_with_indices, aten.max_pool2d_with_indices, aten.max_pool3d_with_indices)
def max_pool_with_places(build: Builder, x: Value, *args: Any) -> Any:
    """Maximum over windows, of which the places cannot be converted."""
    return indices_refused(build, _max(build, x, *(*args, *_MAX_DEFAULTS[len(args) - 1 :])))


_MAX_DEFAULTS = (None, 0, 1, False)


def indices_refused(build: Builder, y: Value) -> tuple[Value, Value]:
    """Return a maximum, and its places as a value that is refused where it is used."""
    error = ConversionError(f"{build.place}: the places (indices) of a maximum cannot be converted")
    return y, Refused(y.shape, error=error)


def _avg(
    build: Builder, x: Value, kernel: Any, stride: Any, padding: Any, ceil: bool, counts: bool, divisor: Any
) -> Value:
    sides = _sides(build, x, kernel, stride, padding, ceil)
    kernels = sides_of(build, x, kernel, 1)
    sizes = [side.sizes if counts else side.sizes_inside for side in sides]
    if divisor is not None:
        sizes = [np.full_like(sizes[0], divisor), *map(np.ones_like, sizes[1:])]
    elif len(sides) == 2 and all(
        side.is_plain and (size == k).all() for side, size, k in zip(sides, sizes, kernels, strict=True)
    ):
        return build.pool(x, "avg", kernel, stride, padding)
    return pool_windows(build, x, "avg", [side.inside for side in sides], sizes)


@register_rule(aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d)
def avg_pool(
    build: Builder, x: Value, kernel: Any, stride: Any = None, padding: Any = 0, ceil: bool = False,
    counts: bool = True, divisor: Any = None,
) -> Value:  # fmt: skip
    """Mean over windows."""
    return _avg(build, x, kernel, stride, padding, ceil, counts, divisor)


def _adaptive(build: Builder, x: Value, size: Any, kind: Literal["max", "avg"]) -> Value:
    extents = x.shape[1:]
    wanted = [size] * len(extents) if isinstance(size, int) else list(size)
    _need_axes(build, x, len(wanted), len(extents))
    wanted = [e if w is None else w for e, w in zip(extents, wanted, strict=True)]
    if len(extents) < 3 and all(e % w == 0 for e, w in zip(extents, wanted, strict=True)):
        kernel = [e // w for e, w in zip(extents, wanted, strict=True)]
        return build.pool(x, kind, kernel, kernel, [0] * len(extents))
    windows = []
    for extent, count in zip(extents, wanted, strict=True):
        place = np.arange(count)
        windows.append(np.stack([place * extent // count, -(-(place + 1) * extent // count)], 1))
    if len(windows) == 1:
        windows.insert(0, np.array([[0, 1]]))
    return pool_windows(build, x, kind, windows, [side[:, 1] - side[:, 0] for side in windows])


@register_rule(aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d)
def adaptive_avg_pool(build: Builder, x: Value, size: Any) -> Value:
    """Mean over parts of the map that are as equal as can be."""
    return _adaptive(build, x, size, "avg")


@register_rule(aten.adaptive_max_pool1d, aten.adaptive_max_pool2d, aten.adaptive_max_pool3d)
def adaptive_max_pool(build: Builder, x: Value, size: Any) -> Any:
    """Maximum over parts of the map that are as equal as can be."""
    return indices_refused(build, _adaptive(build, x, size, "max"))


def _axes(build: Builder, x: Value, dim: Any) -> list[int]:
    """Return the axes of a reduction, rising; none given are all of them."""
    rank = len(x.shape) + 1
    axes = sorted(a % rank for a in ([dim] if isinstance(dim, int) else list(dim or range(rank))))
    if 0 in axes:
        others = ", ".join(map(str, range(1, rank)))
        build.fail(
            f"a reduction over axes {dim or axes} goes over the batch, so that what comes of an image depends on the "
            f"others; reduce each image by itself, over dim=({others},) with keepdim=True"
        )
    return axes


def over_axes(build: Builder, x: Value, kind: str, dim: Any, keepdim: bool) -> Value:
    """Return the "sum", mean ("avg") or maximum ("max") over axes, counted with the batch's; None is all but that."""
    rank = len(x.shape) + 1
    axes = _axes(build, x, dim)
    kept = [axis for axis in range(1, rank) if axis not in axes]
    shape = [1 if axis in axes else side for axis, side in enumerate(x.shape, 1) if keepdim or axis not in axes]
    if axes != list(range(2, rank)) or rank > 4:
        # What is left become the channels of a sequence, along which goes what is reduced.
        x = build.move(x, lambda p: p.permute(0, *kept, *axes).reshape(2, -1, math.prod(p.shape[a] for a in axes)))
    kernel = list(x.shape[1:])
    if kind == "sum":
        whole = [np.array([[0, side]]) for side in (kernel if len(kernel) == 2 else [1, *kernel])]
        pooled = pool_windows(build, x, "avg", whole, [np.ones(1)] * 2)
    else:
        pooled = build.pool(x, kind, kernel, kernel, [0] * len(kernel))
    return build.move(pooled, lambda p: p.reshape(2, *shape))


@register_rule(aten.sum)
def total(build: Builder, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    """Sum over any axes but the batch's."""
    return over_axes(build, x, "sum", dim, keepdim)


@register_rule(aten.max.dim)
def maximum(build: Builder, x: Value, dim: int, keepdim: bool = False) -> Any:
    """Maximum over an axis, of which the places cannot be converted."""
    return indices_refused(build, over_axes(build, x, "max", dim, keepdim))


@register_rule(aten.mean)
def mean(build: Builder, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    """Mean over any axes but the batch's."""
    return over_axes(build, x, "avg", dim, keepdim)


@register_rule(aten.amax)
def amax(build: Builder, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """Maximum over any axes but the batch's."""
    return over_axes(build, x, "max", dim, keepdim)


@register_rule(aten.max.default)
def largest(build: Builder, x: Value) -> Value:
    """The maximum of all images, which is refused."""
    return over_axes(build, x, "max", None, False)


@register_rule(aten.amin)
def amin(build: Builder, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """Minimum over any axes but the batch's."""
    return build.affine(over_axes(build, build.affine(x, scale=-1.0), "max", dim, keepdim), scale=-1.0)


@register_rule(aten.min.default)
def smallest(build: Builder, x: Value) -> Value:
    """The minimum of all images, which is refused."""
    return amin(build, x)


@register_rule(aten.min.dim)
def minimum(build: Builder, x: Value, dim: int, keepdim: bool = False) -> Any:
    """Minimum over an axis, of which the places cannot be converted."""
    return indices_refused(build, amin(build, x, dim, keepdim))


@register_rule(aten.aminmax)
def both_ends(build: Builder, x: Value, *, dim: Any = None, keepdim: bool = False) -> Any:
    """Minimum and maximum over an axis."""
    return amin(build, x, dim, keepdim), amax(build, x, dim, keepdim)


# -- spread and size --------------------------------------------------------------------------------------------------


def _spread(build: Builder, x: Value, dim: Any, correction: Any, keepdim: bool) -> tuple[Value, Value]:
    """Return variance and mean over axes; correction: what the count is reduced by, 1 if None."""
    axes = _axes(build, x, dim)
    count = math.prod(x.shape[axis - 1] for axis in axes)
    left = count - (1 if correction is None else correction)
    if left <= 0:
        build.fail(f"the variance of {count} numbers with correction {correction} is no number")
    middle = over_axes(build, x, "avg", axes, True)
    apart = build.add(x, build.affine(middle, scale=-1.0))
    squares = build.curve(apart, "square", torch.square, monotone=False)
    var = build.affine(over_axes(build, squares, "avg", axes, keepdim), scale=count / left)
    return var, build.move(middle, lambda p: p.reshape(2, *var.shape))


@register_rule(aten.var.correction)
def variance(build: Builder, x: Value, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Value:
    """Variance over any axes but the batch's."""
    return _spread(build, x, dim, correction, keepdim)[0]


@register_rule(aten.std.correction)
def deviation(build: Builder, x: Value, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Value:
    """Standard deviation over any axes but the batch's."""
    return build.curve(_spread(build, x, dim, correction, keepdim)[0], "sqrt", torch.sqrt, monotone=False)


@register_rule(aten.var_mean.correction)
def variance_and_mean(
    build: Builder, x: Value, dim: Any = None, *, correction: Any = None, keepdim: bool = False
) -> Any:
    """Variance and mean over any axes but the batch's."""
    return _spread(build, x, dim, correction, keepdim)


@register_rule(aten.std_mean.correction)
def deviation_and_mean(
    build: Builder, x: Value, dim: Any = None, *, correction: Any = None, keepdim: bool = False
) -> Any:
    """Standard deviation and mean over any axes but the batch's."""
    var, middle = _spread(build, x, dim, correction, keepdim)
    return build.curve(var, "sqrt", torch.sqrt, monotone=False), middle


@register_rule(aten.linalg_vector_norm)
def vector_norm(
    build: Builder, x: Value, order: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Value:
    """Sum of sizes, root of the sum of squares, or largest size, over any axes but the batch's."""
    sizes = build.curve(x, "abs", torch.abs, monotone=False)
    if order == math.inf:
        return over_axes(build, sizes, "max", dim, keepdim)
    if order == 1:
        return over_axes(build, sizes, "sum", dim, keepdim)
    if order != 2:
        build.fail(f"a norm can be converted of order 1, 2 and infinity, got {order}")
    squares = build.curve(x, "square", torch.square, monotone=False)
    return build.curve(over_axes(build, squares, "sum", dim, keepdim), "sqrt", torch.sqrt, monotone=False)
