"""Gathers as steps: a selection of channels, rows and columns of the operand, a reshape, a permutation of its axes."""

import math

import numpy as np
from bnn_kernels.model.program import as_spec_shape
from bnn_kernels.steps.fields import StepFields
from bnn_kernels.steps.shape import MOST_AXES, Permute, Reshape, Select

from bnn.converter.errors import ConversionError
from bnn.converter.graph.values import Moved


def moving_steps(value: Moved) -> list[StepFields]:
    """Return the fields of the steps that move the operand's numbers; ConversionError if none do."""
    (operand,) = value.inputs
    shape, before = value.shape, operand.shape
    if len(shape) > 4:
        raise ConversionError(
            f"{value.source or 'a view'}: a value of shape {('N', *shape)} takes part in a computation; only those of "
            "shape (N, C, D, H, W), (N, C, H, W), (N, C, L) and (N, K) can be converted"
        )
    index = value.index
    if (index.reshape(-1) == np.arange(1, index.size + 1)).all() and index.size == np.prod(before):
        return [Reshape.Fields(shape=list(as_spec_shape(shape)))]
    source, target = as_spec_shape(before), as_spec_shape(shape)
    size = target if len(source) == len(target) else _same_rank(index, source)
    found = _select(index.reshape(size), source)
    if found is not None:
        reshape: list[StepFields] = [] if size == target else [Reshape.Fields(shape=list(target))]
        return [found, *reshape]
    count = int(np.prod(before))
    permutation = _permutation(index.reshape(-1), count)
    if permutation is not None:
        return [_permute(permutation, target)]
    part = _part(index, source)
    if part is not None:
        selection, inside = part
        permutation = _permutation(inside, inside.size)
        if np.array_equal(inside, np.arange(1, inside.size + 1)):
            return [selection, Reshape.Fields(shape=list(target))]
        if permutation is not None:
            return [selection, _permute(permutation, target)]
    # Each number by itself: a place for each in the file.
    flat: list[StepFields] = [] if len(source) == 1 else [Reshape.Fields(shape=[count])]
    back: list[StepFields] = [] if len(target) == 1 else [Reshape.Fields(shape=list(target))]
    return [*flat, Select.Fields(channels=(index.reshape(-1) - 1).astype(np.int32)), *back]


def _part(index: np.ndarray, source: tuple[int, ...]) -> tuple[Select.Fields, np.ndarray] | None:
    """Return the channels, rows and columns that an index uses, and the index into what they leave; None if others."""
    places, inside = np.unique(index, return_inverse=True)
    if len(source) == 1 or places[0] == 0 or len(places) != index.size:
        return None
    axes = [np.unique(axis) for axis in np.unravel_index(places - 1, source)]
    if math.prod(map(len, axes)) != len(places):
        return None
    channels, rows, columns = (
        None if len(axis) == extent else axis.astype(np.int32) for axis, extent in zip(axes, source, strict=True)
    )
    return Select.Fields(channels=channels, rows=rows, columns=columns), 1 + inside.reshape(-1)


def _permute(permutation: tuple[list[int], list[int]], target: tuple[int, ...]) -> StepFields:
    split, order = permutation
    return Permute.Fields(split=split, order=order, shape=list(target))


def _permutation(index: np.ndarray, count: int) -> tuple[list[int], list[int]] | None:
    """Return the sides and the order of the axes of an index that permutes the axes of a view; None if it does not.

    From the innermost axis outwards: an axis is a run of places at one distance, as long as the index allows.
    """
    if index.size != count:
        return None
    places = index - 1
    axes: list[tuple[int, int]] = []  # (distance, extent), innermost first
    while places.size > 1:
        distances = np.diff(places)
        breaks = np.flatnonzero(distances != distances[0]) + 1
        extent = math.gcd(places.size, *breaks.tolist())
        if extent == 1:
            return None
        axes.append((int(distances[0]), extent))
        places = places[::extent]
    axes.reverse()
    # Outer axes of the operand lie further apart.
    split = sorted(range(len(axes)), key=lambda axis: -axes[axis][0])
    sides = [axes[axis][1] for axis in split]
    order = [split.index(axis) for axis in range(len(axes))]
    if math.prod(sides) != count or len(sides) > MOST_AXES:
        return None
    rebuilt = np.arange(1, count + 1).reshape(sides).transpose(order).reshape(-1)
    return (sides, order) if np.array_equal(rebuilt, index) else None


def _same_rank(index: np.ndarray, source: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape of the operand's rank that holds the moved numbers, to be reshaped afterwards."""
    if len(source) == 1:
        return (index.size,)
    pixels = source[1] * source[2]
    return (index.size // pixels, *source[1:]) if index.size % pixels == 0 else (index.size, 1, 1)


def _select(index: np.ndarray, source: tuple[int, ...]) -> Select.Fields | None:
    """Return channels, rows and columns (-1: zeros) of an index into a map or vector, None if it is no such thing."""
    if len(source) == 1:
        return Select.Fields(channels=(index - 1).astype(np.int32))
    _, height, width = source
    there = index > 0
    if not there.any():
        return None
    axes = []
    for axis in range(3):
        other = tuple(a for a in range(3) if a != axis)
        inside = there.any(axis=other)
        place = np.where(there, index - 1, 0).max(axis=other)
        number = (place // (height * width), place // width % height, place % width)[axis]
        axes.append(np.where(inside, number, -1).astype(np.int64))
    # Numbers along an axis come from the largest place; they must reproduce every single one.
    c, y, x = (a.reshape([-1 if i == axis else 1 for i in range(3)]) for axis, a in enumerate(axes))
    rebuilt = np.where((c >= 0) & (y >= 0) & (x >= 0), 1 + (c * height + y) * width + x, 0)
    if rebuilt.shape != index.shape or (rebuilt != index).any():
        return None
    channels, rows, columns = (
        None if np.array_equal(a, np.arange(extent)) else a.astype(np.int32)
        for a, extent in zip(axes, source, strict=True)
    )
    return Select.Fields(channels=channels, rows=rows, columns=columns)
