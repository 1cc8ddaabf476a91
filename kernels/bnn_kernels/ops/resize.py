"""Resizing channels-last maps by weighted sums of neighbouring columns, then of neighbouring rows.

A row of the input is resized once, when the first row of the output needs it, and kept in a ring of as many rows as an
output row is a sum of. Columns come first and taps rise, as in PyTorch, so results differ in the last digit at most.
"""

from typing import NamedTuple

import numpy as np

from bnn_kernels.compile.jit import jit
from bnn_kernels.compile.simd import float32x16
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty


class Taps(NamedTuple):
    """The neighbours along one axis: output i is the sum over t of weights[i, t] * input[starts[i] + t].

    starts int32 (outputs,), weights float32 (outputs, taps).
    """

    starts: np.ndarray
    weights: np.ndarray

    def is_copy(self, extent: int) -> bool:
        """Whether the outputs are the inputs, one by one."""
        same = self.weights.shape == (extent, 1) and bool((self.weights == 1).all())
        return same and bool((self.starts == np.arange(extent)).all())


class Sizes(NamedTuple):
    """Sizes of a channels-last map and of its output; copies: whether columns stay as they are."""

    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    copies: int


@jit
def _resize_columns(x, at, starts, weights, line, to, size):
    """line[to :] (Wo, C) = weighted sums of columns of the row of x that begins at `at`; both flat."""
    channels = size.channels
    vectors = channels - channels % 16
    flat = weights.reshape(-1)
    for ox in range(size.out_width):
        source = at + starts[ox] * channels
        target = to + ox * channels
        first_weight = ox * weights.shape[1]
        for c in range(0, vectors, 16):
            total = float32x16.multiply(
                float32x16.load(x, np.uint64(source + c)), float32x16.broadcast(flat, np.uint64(first_weight))
            )
            for t in range(1, weights.shape[1]):
                part = float32x16.load(x, np.uint64(source + t * channels + c))
                weight = float32x16.broadcast(flat, np.uint64(first_weight + t))
                total = float32x16.multiply_add(part, weight, total)
            float32x16.store(line, np.uint64(target + c), total)
        for c in range(vectors, channels):
            sum_ = x[source + c] * weights[ox, 0]
            for t in range(1, weights.shape[1]):
                sum_ += x[source + t * channels + c] * weights[ox, t]
            line[target + c] = sum_


@jit
def _resize(x, columns, column_weights, rows, row_weights, out, size, first, last):
    """Rows (n, oy) of out flat (N, Ho, Wo, C) from x flat (N, H, W, C).

    columns, rows: starts, see `Taps`; size: `Sizes`.
    """
    size = Sizes(*size)
    taps = row_weights.shape[1]
    length = size.out_width * size.channels
    vectors = length - length % 16
    weights = row_weights.reshape(-1)
    ring = np.empty(taps * length, np.float32)
    held = np.full(taps, -1, np.int64)
    places = np.empty(taps, np.int64)
    for row in range(first, last):
        n = row // size.out_height
        oy = row - n * size.out_height
        for t in range(taps):
            y = n * size.height + rows[oy] + t
            at = y * size.width * size.channels
            if size.copies:
                places[t] = at
                continue
            slot = y % taps  # neighbours, so no two of them share a slot
            places[t] = slot * length
            if held[slot] != y:
                _resize_columns(x, at, columns, column_weights, ring, slot * length, size)
                held[slot] = y
        lines = x if size.copies else ring
        to = row * length
        for i in range(0, vectors, 16):
            total = float32x16.multiply(
                float32x16.load(lines, np.uint64(places[0] + i)), float32x16.broadcast(weights, np.uint64(oy * taps))
            )
            for t in range(1, taps):
                part = float32x16.load(lines, np.uint64(places[t] + i))
                total = float32x16.multiply_add(part, float32x16.broadcast(weights, np.uint64(oy * taps + t)), total)
            float32x16.store(out, np.uint64(to + i), total)
        for i in range(vectors, length):
            sum_ = lines[places[0] + i] * row_weights[oy, 0]
            for t in range(1, taps):
                sum_ += lines[places[t] + i] * row_weights[oy, t]
            out[to + i] = sum_


def resize(x: np.ndarray, rows: Taps, columns: Taps) -> np.ndarray:
    """Return float32 (N, Ho, Wo, C) of contiguous float32 (N, H, W, C); the taps must lie inside the map."""
    n, height, width, channels = x.shape
    out = empty((n, len(rows.starts), len(columns.starts), channels), np.float32)
    size = Sizes(height, width, channels, out.shape[1], out.shape[2], int(columns.is_copy(width)))
    work = out.size * (rows.weights.shape[1] + columns.weights.shape[1]) // float32x16.LANES
    arguments = (x.reshape(-1), columns.starts, columns.weights, rows.starts, rows.weights, out.reshape(-1))
    run_rows(_resize, n * len(rows.starts), work, *arguments, tuple(size))
    return out
