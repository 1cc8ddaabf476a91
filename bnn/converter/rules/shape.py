"""Rules of everything that moves numbers without computing: views, slices, shuffles, padding; and of resizing."""

import math
from typing import Any

import numpy as np
import torch
from bnn_kernels.steps.resize import Resize, taps_of
from torch import Tensor

from bnn.converter.capture.record import leaves, part_of, written
from bnn.converter.graph.builder import Builder, to_numpy
from bnn.converter.graph.values import Padding, Value
from bnn.converter.registry import register_rule, rule_of_recorder

aten = torch.ops.aten

# -- moving -----------------------------------------------------------------------------------------------------------

_MOVES = (
    aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.transpose, aten.t, aten.permute, aten.squeeze,
    aten.unsqueeze, aten.slice, aten.select, aten.chunk, aten.split, aten.split_with_sizes, aten.unbind, aten.expand,
    aten.unsafe_split, aten.unsafe_chunk,
    aten.repeat, aten.repeat_interleave, aten.index_select, aten.flip, aten.roll, aten.as_strided, aten.unfold,
    aten.channel_shuffle, aten.native_channel_shuffle, aten.pixel_shuffle, aten.pixel_unshuffle, aten.im2col,
)  # fmt: skip


def _register_move(operator: Any) -> None:
    @register_rule(operator)
    def move(build: Builder, x: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(part, Value) for part in (*args, *kwargs.values())):
            build.fail("places that depend on the input cannot be converted")
        return build.move(x, lambda places: operator(places, *args, **kwargs))


for _operator in _MOVES:
    _register_move(_operator)


@register_rule(aten.pad)
def pad(build: Builder, x: Value, around: Any, mode: str = "constant", value: float | None = None) -> Any:
    """Numbers of the value's own, or one number, around a value."""
    if mode != "constant" or not value:
        return build.move(x, lambda places: aten.pad(places, around, mode, value))
    zeros: Value = build.move(x, lambda places: aten.pad(places, around))
    inside = build.aligned(zeros, aten.pad(torch.zeros(1, *x.shape), around, mode, value))
    y = build.affine(zeros, shift=inside)
    y.padded = Padding(x, tuple(zip(around[::2], around[1::2], strict=True)), float(value))
    return y


@register_rule(aten.index)
def index(build: Builder, x: Any, indices: Any) -> Any:
    """Places that a constant tells."""
    if any(isinstance(part, Value) for part in indices):
        build.fail("places that depend on the input cannot be converted")
    return build.move(x, lambda places: aten.index(places, indices))


# -- writing in place -------------------------------------------------------------------------------------------------


@rule_of_recorder(part_of)
def part(build: Builder, base: Any, *view: Any) -> Any:
    """The numbers that a view reads."""
    return build.move(base, lambda places: part_of(places, *view))


@rule_of_recorder(written)
def overwritten(build: Builder, base: Any, new: Any, *view: Any) -> Any:
    """A tensor with the numbers that a view reads exchanged for others."""
    shape = base.shape if isinstance(base, Value) else base.shape[1:]
    if not isinstance(new, Value):  # zeros in their place, to which the constant is added
        zeros = torch.zeros(new.shape, dtype=torch.float64)
        left = build.move(base, lambda p: written(p, zeros, *view), compose=False)
        return build.affine(left, shift=build.aligned(left, written(torch.zeros(2, *shape), new.float(), *view)))
    if not isinstance(base, Value):
        mask = written(torch.ones(2, *shape, dtype=torch.bool), torch.zeros(1, dtype=torch.bool), *view)
        constant = torch.where(mask, base, 0)
        places = build.move(new, lambda p: written(torch.zeros(2, *shape, dtype=p.dtype), p, *view), compose=False)
        return build.affine(places, shift=build.aligned(places, constant)) if constant.any() else places
    counts = math.prod(shape), math.prod(new.shape)
    flat = [build.move(x, lambda p: p.reshape(2, -1)) for x in (base, new)]

    def choose(places: Tensor) -> Tensor:
        before, after = places.split(counts, 1)
        return written(before.reshape(2, *shape), after.reshape(2, *new.shape), *view)

    return build.move(build.concat(flat), choose)


@register_rule(aten.copy)
def copy(build: Builder, x: Any, source: Any, non_blocking: bool = False) -> Any:
    """Numbers written over others."""
    shape = (2, *x.shape) if isinstance(x, Value) else x.shape
    if not isinstance(source, Value):
        return source.expand(shape)
    return build.move(source, lambda p: p.expand(shape))


@register_rule(aten.fill)
def fill(build: Builder, x: Value, value: Any) -> Any:
    """One number written over others."""
    if isinstance(value, Value):
        build.fail("a number that depends on the input is written over others")
    return torch.full((2, *x.shape), float(value))


@register_rule(aten.zero)
def zero(build: Builder, x: Value) -> Any:
    """Zeros written over others."""
    return torch.zeros(2, *x.shape)


# -- resizing ---------------------------------------------------------------------------------------------------------


def _register_nearest(operator: Any) -> None:
    @register_rule(operator)
    def nearest(build: Builder, x: Value, *args: Any, **kwargs: Any) -> Any:
        return build.move(x, lambda places: operator(places, *args, **kwargs))


def _register_weighted(operator: Any) -> None:
    @register_rule(operator)
    def weighted(build: Builder, x: Value, *args: Any, **kwargs: Any) -> Value:
        return _resize(build, x, operator, args, kwargs)


for _operator in (
    aten.upsample_nearest1d, aten.upsample_nearest2d, aten._upsample_nearest_exact1d, aten._upsample_nearest_exact2d,
):  # fmt: skip
    _register_nearest(_operator)
for _operator in (
    aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten._upsample_bilinear2d_aa,
    aten._upsample_bicubic2d_aa,
):  # fmt: skip
    _register_weighted(_operator)


def _resize(build: Builder, x: Value, operator: Any, args: Any, kwargs: Any) -> Value:
    """Return what a resizing operator makes of x: weights of each axis, which the operator itself tells."""
    size = operator(torch.empty(2, *x.shape, device="meta"), *args, **kwargs).shape[2:]
    given = {**dict(zip(("output_size", "align_corners"), args, strict=False)), **kwargs}
    # Factors stand in a list, or one by one: what is left of the arguments, None where the size is given.
    left = [
        *args[2:],
        *(kwargs[name] for name in ("scale_factors", "scales", "scales_h", "scales_w") if name in kwargs),
    ]
    factors = [factor for factor in leaves(left) if factor is not None] or [None] * len(size)
    axes = [
        taps_of(_weights_of_axis(operator, extent, count, given["align_corners"], factor))
        for extent, count, factor in zip(x.shape[1:], size, factors, strict=True)
    ]
    if len(axes) == 1:  # a sequence is a map of one row
        axes.insert(0, taps_of(np.ones((1, 1), np.float32)))
    rows, columns = axes
    fields = Resize.Fields(
        row_starts=rows.starts, row_weights=rows.weights, column_starts=columns.starts, column_weights=columns.weights
    )
    return build.step(x, (x.shape[0], *size), fields)


def _weights_of_axis(operator: Any, extent: int, count: int, align_corners: bool, factor: float | None) -> np.ndarray:
    """Return float32 (count, extent): what each output of one axis takes of each input."""
    # Sequences, or maps of one row, that are 1 at one place: what comes out are the weights of that place.
    rows = () if operator is aten.upsample_linear1d else (1,)
    probe = torch.eye(extent).reshape(extent, 1, *rows, extent)
    made = operator.default(probe, [*rows, count], align_corners, *(None,) * len(rows), factor)
    return to_numpy(made.reshape(extent, count).T)
