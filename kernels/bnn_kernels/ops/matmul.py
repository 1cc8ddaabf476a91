"""Matrix products of two channels-last maps, channel by channel, in the caller's threads.

NumPy's matmul would use the threads of its BLAS, which know nothing of `set_num_threads`. Here the maps are copied
channel by channel, so that each is a matrix in one piece, and a block of output rows is summed in registers.
"""

from typing import NamedTuple

import numpy as np

from bnn_kernels.compile.jit import jit
from bnn_kernels.compile.simd import float32x16
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty

LANES = float32x16.LANES
# Output rows that are summed at a time: four by sixteen columns are eight of AVX2's sixteen registers.
BLOCK = 4
# Numbers that are copied at a time from one order into the other.
TILE = 64


class Sizes(NamedTuple):
    """a (C, rows, inner), b (C, inner, columns); stride: of a row of b and of the output, in whole vectors."""

    rows: int
    inner: int
    columns: int
    stride: int
    blocks: int


@jit
def _split(x, out, size, first, last):
    """Rows (n, y) of out flat (N, C, Y, stride) from x flat (N, Y, X, C), zeros behind X. size: (C, Y, X, stride)."""
    channels, height, width, stride = size
    for row in range(first, last):
        n = row // height
        y = row - n * height
        at = row * width * channels
        for start in range(0, width, TILE):
            stop = min(start + TILE, width)
            for c in range(channels):
                to = ((n * channels + c) * height + y) * stride
                for i in range(start, stop):
                    out[to + i] = x[at + i * channels + c]
        for c in range(channels):
            to = ((n * channels + c) * height + y) * stride
            for i in range(width, stride):
                out[to + i] = 0


@jit
def _join(x, out, size, first, last):
    """Rows (n, y) of out flat (N, Y, X, C) from x flat (N, C, Y, stride)."""
    channels, height, width, stride = size
    for row in range(first, last):
        n = row // height
        y = row - n * height
        to = row * width * channels
        for start in range(0, width, TILE):
            stop = min(start + TILE, width)
            for c in range(channels):
                at = ((n * channels + c) * height + y) * stride
                for i in range(start, stop):
                    out[to + i * channels + c] = x[at + i]


@jit
def _products(a, b, out, size, first, last):
    """Blocks of rows (n, c, block) of out flat (N, C, rows, stride): a flat (N, C, rows, inner) by b (.., stride).

    Each sum goes over the inner axis in order, whatever block it is in.
    """
    size = Sizes(*size)
    for share in range(first, last):
        matrix = share // size.blocks
        row = (share - matrix * size.blocks) * BLOCK
        here = min(BLOCK, size.rows - row)
        a0 = (matrix * size.rows + row) * size.inner
        # Rows that a block lacks are the first one once more.
        a1 = a0 + (size.inner if here > 1 else 0)
        a2 = a0 + (2 * size.inner if here > 2 else 0)
        a3 = a0 + (3 * size.inner if here > 3 else 0)
        to = (matrix * size.rows + row) * size.stride
        for column in range(0, size.stride, LANES):
            at = np.uint64(matrix * size.inner * size.stride + column)
            s0, s1, s2, s3 = float32x16.zero(), float32x16.zero(), float32x16.zero(), float32x16.zero()
            for k in range(size.inner):
                line = float32x16.load(b, at)
                s0 = float32x16.multiply_add(float32x16.broadcast(a, np.uint64(a0 + k)), line, s0)
                s1 = float32x16.multiply_add(float32x16.broadcast(a, np.uint64(a1 + k)), line, s1)
                s2 = float32x16.multiply_add(float32x16.broadcast(a, np.uint64(a2 + k)), line, s2)
                s3 = float32x16.multiply_add(float32x16.broadcast(a, np.uint64(a3 + k)), line, s3)
                at += np.uint64(size.stride)
            place = to + column
            float32x16.store(out, np.uint64(place), s0)
            if here > 1:
                float32x16.store(out, np.uint64(place + size.stride), s1)
            if here > 2:
                float32x16.store(out, np.uint64(place + 2 * size.stride), s2)
            if here > 3:
                float32x16.store(out, np.uint64(place + 3 * size.stride), s3)


def _by_channel(x: np.ndarray, stride: int) -> np.ndarray:
    """Return contiguous float32 (N, C, Y, stride) of (N, Y, X, C), with zeros behind X."""
    n, height, width, channels = x.shape
    if channels == 1 and stride == width:
        return x.reshape(n, 1, height, width)
    out = empty((n, channels, height, stride), np.float32)
    size = (channels, height, width, stride)
    run_rows(_split, n * height, x.size, x.reshape(-1), out.reshape(-1), size)
    return out


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return float32 (N, Y, X, C), for each channel a (N, Y, K, C) by b (N, K, X, C), contiguous float32."""
    n, rows, inner, channels = a.shape
    columns = b.shape[2]
    stride = -(-columns // LANES) * LANES
    first, second = _by_channel(a, inner), _by_channel(b, stride)
    made = empty((n, channels, rows, stride), np.float32)
    blocks = -(-rows // BLOCK)
    work = made.size * inner // LANES
    size = Sizes(rows, inner, columns, stride, blocks)
    shares = n * channels * blocks
    run_rows(_products, shares, work, first.reshape(-1), second.reshape(-1), made.reshape(-1), tuple(size))
    if channels == 1 and stride == columns:
        return made.reshape(n, rows, columns, 1)
    out = empty((n, rows, columns, channels), np.float32)
    run_rows(_join, n * rows, out.size, made.reshape(-1), out.reshape(-1), (channels, rows, columns, stride))
    return out
