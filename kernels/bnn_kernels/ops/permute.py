"""Copies between orders of axes: what views, transpositions and channels-last maps make together.

The axes that both orders have in common become one list of (side, stride in x, stride in y). Along one of them y has
neighbours: if they are neighbours in x too, runs are copied. If not, squares of sixteen by sixteen are transposed in
registers: of numbers that are neighbours in x, and of numbers that are neighbours in y, each along as few axes as have
sixteen of them.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.compile.simd.transpose import transpose
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty

LANES = 16
# Numbers along one side of a square's axes: their places are a table.
MOST_BEGINS = 1 << 13


class Axis(NamedTuple):
    """An axis of both arrays: its side, and how far apart neighbours along it are in x and in y."""

    side: int
    x: int
    y: int


@inline
def _starts(outer, place):
    """Where the outer axes (axes, 3) of a place begin in x and in y."""
    x = y = 0
    for axis in range(len(outer) - 1, -1, -1):
        whole = place // outer[axis, 0]
        index = place - whole * outer[axis, 0]
        place = whole
        x += index * outer[axis, 1]
        y += index * outer[axis, 2]
    return x, y


@jit
def _copy_runs(x, y, outer, length, first, last):
    """Runs of y flat from x flat; outer int64 (axes, 3): sides and strides."""
    for place in range(first, last):
        at, to = _starts(outer, place)
        source = x[at : at + length]
        target = y[to : to + length]
        for i in range(len(target)):
            target[i] = source[i]


@jit
def _transpose_squares(x, y, outer, x_begin, y_begin, first, last):
    """Blocks of sixteen x-neighbours of y flat, from x flat.

    outer: int64 (axes, 3), sides and strides. x_begin: int64, where the x-neighbours of each y-neighbour begin in x;
    y_begin: int64, where the y-neighbours of each x-neighbour begin in y.
    """
    along, across = len(x_begin), len(y_begin)
    blocks = (across + LANES - 1) // LANES
    for row in range(first, last):
        place = row // blocks
        begin = (row - place * blocks) * LANES
        end = min(begin + LANES, across)
        at, to = _starts(outer, place)
        source, target = np.uint64(at + begin), np.uint64(to)
        whole = along - along % LANES if end - begin == LANES else 0
        for j in range(0, whole, LANES):
            transpose(x, source, x_begin, np.uint64(j), y, target + np.uint64(j), y_begin, np.uint64(begin))
        for j in range(whole, along):
            for i in range(begin, end):
                y[to + y_begin[i] + j] = x[at + x_begin[j] + i]


def _common_sides(*shapes: Sequence[int]) -> list[int] | None:
    """Return sides that are parts of the sides of all shapes, which have one size; None if they cross."""
    counts = {1}
    for shape in shapes:
        counts.update(math.prod(shape[axis:]) for axis in range(len(shape)))
    ordered = sorted(counts, reverse=True)
    if any(large % small for large, small in pairwise(ordered)):
        return None
    return [large // small for large, small in pairwise(ordered)]


def _strides(sides: Sequence[int], shape: Sequence[int]) -> list[int]:
    """Return the strides of parts of the axes (C, H, W), or (K,), of a channels-last map."""
    channels, positions = shape[0], math.prod(shape[1:])
    strides, count = [], math.prod(sides)
    for side in sides:
        count //= side
        strides.append(count // positions if count >= positions else count * channels)
    return strides


def common_axes(shape: Sequence[int], split: Sequence[int], order: Sequence[int], to: Sequence[int]) -> list[Axis]:
    """Return the axes, by descending stride in y, of a map permuted as `steps.shape.Permute` says; [] if they cross.

    shape, to: (C, H, W) or (K,) of x and y, which have equal strides along an axis that only the batch has.
    """
    sides = _common_sides(shape, split)
    if sides is None:
        return []
    parts: list[list[tuple[int, int]]] = []  # for each side of split: its parts, and their strides in x
    strides = iter(zip(sides, _strides(sides, shape), strict=True))
    for side in split:
        parts.append([])
        while side > 1:
            parts[-1].append(next(strides))
            side //= parts[-1][-1][0]
    ordered = [part for axis in order for part in parts[axis]]
    sides = _common_sides([side for side, _ in ordered], to)
    if sides is None:
        return []
    axes, there = [], iter(zip(sides, _strides(sides, to), strict=True))
    for whole, stride in ordered:
        while whole > 1:
            side, y = next(there)
            whole //= side
            axes.append(Axis(side, stride * whole, y))
    merged: list[Axis] = []
    for axis in sorted(axes, key=lambda axis: -axis.y):
        if merged and (merged[-1].x, merged[-1].y) == (axis.x * axis.side, axis.y * axis.side):
            axis = Axis(merged.pop().side * axis.side, axis.x, axis.y)
        merged.append(axis)
    return merged or [Axis(1, 1, 1)]


def permuted(x: np.ndarray, split: Sequence[int], order: Sequence[int], to: Sequence[int]) -> np.ndarray:
    """Return contiguous float32 (N, ...) as a map of shape `to`, as `steps.shape.Permute` says; x itself if it can be.

    split, order, to: as in `common_axes`. If axes cross, the numbers go through a vector in C, H, W order.
    """
    shape = x.shape[-1], *x.shape[1:-1]
    axes = common_axes(shape, split, order, to)
    if not axes and len(to) > 1:
        return permuted(permuted(x, split, order, (math.prod(to),)), (math.prod(to),), (0,), to)
    if not axes:
        return permuted(permuted(x, shape, range(len(shape)), to), split, order, to)
    if len(axes) == 1:
        return x.reshape(len(x), *to[1:], to[0])
    y = empty((len(x), *to[1:], to[0]), np.float32)
    _copy(x, y, axes)
    return y


def _begins(axes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return int64: where the numbers along (side, stride) axes lie, the first axis the fastest."""
    begins = np.zeros(1, np.int64)
    for side, stride in axes:
        begins = (np.arange(side)[:, None] * stride + begins).reshape(-1)
    return begins


def _neighbours(axes: Sequence[Axis]) -> tuple[list[Axis], list[Axis]]:
    """Return the axes of a square: along which x has neighbours, and along which y has."""
    groups = [next(axis for axis in axes if axis.x == 1)], [axes[-1]]

    def size(which: int) -> int:
        return math.prod(axis.side for axis in groups[which])

    def next_axis(which: int) -> Axis | None:
        count, free = size(which), [axis for axis in axes if axis not in groups[0] + groups[1]]
        fitting = [axis for axis in free if (axis.x, axis.y)[which] == count and count * axis.side <= MOST_BEGINS]
        return fitting[0] if fitting and count % LANES else None

    while True:
        # Who has fewer than sixteen is first to get an axis, then who would leave numbers over.
        for which in sorted((0, 1), key=lambda which: size(which) >= LANES):
            axis = next_axis(which)
            if axis is not None:
                groups[which].append(axis)
                break
        else:
            return groups


def _copy(x: np.ndarray, y: np.ndarray, axes: Sequence[Axis]) -> None:
    """Write x to y, contiguous float32 (N, ...) of one size, whose axes but the first are `common_axes`."""
    images = Axis(len(x), math.prod(x.shape[1:]), math.prod(y.shape[1:]))
    flat = x.reshape(-1), y.reshape(-1)
    along = axes[-1]
    if along.x == 1:
        outer = np.array([images, *axes[:-1]], np.int64)
        run_rows(_copy_runs, len(x) * math.prod(axis.side for axis in axes[:-1]), x.size // 4, *flat, outer, along.side)
        return
    of_x, of_y = _neighbours(axes)
    outer = np.array([images, *(axis for axis in axes if axis not in of_x + of_y)], np.int64)
    x_begin = _begins([(axis.side, axis.x) for axis in of_y])
    y_begin = _begins([(axis.side, axis.y) for axis in of_x])
    rows = -(-len(y_begin) // LANES) * math.prod(int(side) for side in outer[:, 0])
    run_rows(_transpose_squares, rows, x.size // 2, *flat, outer, x_begin, y_begin)
