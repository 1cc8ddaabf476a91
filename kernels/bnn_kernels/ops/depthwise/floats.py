"""Depthwise FP32 convolution, channels last, with its epilogue.

A tile is six positions by sixteen filters with all sums in registers: each tap loads the weights of sixteen filters and
multiplies them with sixteen channels of each position, which the multiply-add reads from memory. Sums have the order of
`float_conv`'s, and so the same values.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.compile.simd import float32x8, float32x16
from bnn_kernels.ops.depthwise.windows import BLOCK, Filter, Windows, by_block, gathered, moved, six_of, windows_of
from bnn_kernels.ops.finishing import KEEP, EpilogueOutput, addresses, finisher
from bnn_kernels.runtime.arrays import aligned
from bnn_kernels.runtime.threads import run_rows


class Sizes(NamedTuple):
    """image: numbers of one; positions and tiles: of an image; filters: in all; rows: of weights, see `by_block`."""

    image: int
    positions: int
    tiles: int
    filters: int
    rows: int


def _tile(simd: Any) -> tuple[Any, Any]:
    """Return what writes the sums of six positions, and of one, each with a vector of filters."""

    @inline
    def six(x, at, taps, rows, begin, end, w, j, out, to):
        a0, a1, a2, a3, a4, a5 = at
        s0 = s1 = s2 = s3 = s4 = s5 = simd.zero()
        for k in range(begin, end):
            o = taps[k]
            v = simd.load(w, j + rows[k] * np.uint64(16))
            s0 = simd.multiply_add(simd.load(x, a0 + o), v, s0)
            s1 = simd.multiply_add(simd.load(x, a1 + o), v, s1)
            s2 = simd.multiply_add(simd.load(x, a2 + o), v, s2)
            s3 = simd.multiply_add(simd.load(x, a3 + o), v, s3)
            s4 = simd.multiply_add(simd.load(x, a4 + o), v, s4)
            s5 = simd.multiply_add(simd.load(x, a5 + o), v, s5)
        simd.store(out, to[0], s0)
        simd.store(out, to[1], s1)
        simd.store(out, to[2], s2)
        simd.store(out, to[3], s3)
        simd.store(out, to[4], s4)
        simd.store(out, to[5], s5)

    @inline
    def one(x, at, taps, rows, begin, end, w, j, out, to):
        total = simd.zero()
        for k in range(begin, end):
            v = simd.load(w, j + rows[k] * np.uint64(16))
            total = simd.multiply_add(simd.load(x, at[0] + taps[k]), v, total)
        simd.store(out, to[0], total)

    return six, one


_six_by_sixteen, _one_by_sixteen = _tile(float32x16)
_six_by_eight, _one_by_eight = _tile(float32x8)


@functools.cache
def depthwise_kernel(kind: type) -> Any:
    """Return the kernel for a kind of output, see `ops.finishing`."""
    finish = finisher(kind)

    def depthwise(x, weights, windows, size, output, first, last):
        """Tiles first..last of all images; x float32 flat (N, H, W, lanes); weights flat, see `windows.by_block`.

        Sums that nothing follows go straight to where they belong, those of positions that the tile before had too once
        more; else all those of a tile are finished together, when none is on its way from a register any more.
        """
        size, windows = Sizes(*size), Windows(*windows)
        ready, floats = addresses(output), EpilogueOutput(*output).out
        taps, rows, filters = windows.offsets, windows.rows, size.filters
        lanes = (filters + 15) // 16 * 16
        straight = ready.parts == KEEP and lanes == filters
        sums = np.zeros(6 * lanes, np.float32)
        target, every = floats if straight else sums, np.uint64(lanes)
        scratch = (
            np.uint64(0),
            every,
            np.uint64(2) * every,
            np.uint64(3) * every,
            np.uint64(4) * every,
            np.uint64(5) * every,
        )
        for share in range(first, last):
            n = share // size.tiles
            tile = share - n * size.tiles
            kind = windows.kinds[tile]
            begin, end = np.uint64(windows.first_taps[kind]), np.uint64(windows.first_taps[kind + 1])
            lowest, highest = windows.ends[2 * tile], windows.ends[2 * tile + 1]
            at = moved(six_of(windows.starts, tile), np.uint64(n * size.image))
            to = scratch
            if straight:
                p0, p1, p2, p3, p4, p5 = moved(six_of(windows.places, tile), np.uint64(n * size.positions))
                to = p0 * every, p1 * every, p2 * every, p3 * every, p4 * every, p5 * every
            for c in range(0, filters, 16):
                j = np.uint64(c * size.rows)
                a, t = moved(at, np.uint64(c)), moved(to, np.uint64(c))
                if filters - c > 8:
                    if highest > 1:
                        _six_by_sixteen(x, a, taps, rows, begin, end, weights, j, target, t)
                    else:
                        _one_by_sixteen(x, a, taps, rows, begin, end, weights, j, target, t)
                elif highest > 1:
                    _six_by_eight(x, a, taps, rows, begin, end, weights, j, target, t)
                else:
                    _one_by_eight(x, a, taps, rows, begin, end, weights, j, target, t)
            for k in range(0 if straight else lowest, 0 if straight else highest):
                position = n * size.positions + np.int64(windows.places[6 * tile + k])
                for c in range(0, filters, 8):
                    finish(float32x8.load(sums, np.uint64(k * lanes + c)), position, c, filters - c, ready)

    depthwise.__name__ = depthwise.__qualname__ = f"depthwise_float32_{finish.py_func.__name__}"
    return jit(depthwise)


class FloatDepthwise:
    """Sums of weight float32 (O, C/groups, kh, kw) with maps float32 (N, H, W, C), zeros outside them."""

    def __init__(self, weight: np.ndarray, groups: int):
        self._filters, self._channels = weight.shape[0], weight.shape[1]
        self._lanes = -(-self._filters // 8) * 8
        self._sizes = (groups, self._channels, self._filters // groups, self._lanes)
        self._taps = weight[0].size
        self._weights = aligned(by_block(weight, -(-self._filters // BLOCK) * BLOCK)).reshape(-1)

    def run(self, x: np.ndarray, out: tuple[int, int], filter_: Filter, output: EpilogueOutput, kind: Any) -> None:
        """Compute all positions of a contiguous map into an output of this kind."""
        n, h, w, c = x.shape
        flat = x.reshape(-1)
        if self._channels > 1 or self._lanes != c:
            flat = gathered(flat, n * h * w, self._sizes, 0)
        pixel = self._channels * self._lanes
        windows = windows_of((h, w), out, filter_, pixel, self._channels, self._lanes)
        tiles, positions = len(windows.kinds), out[0] * out[1]
        size = (h * w * pixel, positions, tiles, self._filters, self._taps + 1)
        work = n * positions * self._taps * self._lanes // 4
        run_rows(depthwise_kernel(kind), n * tiles, work, flat, self._weights, tuple(windows), size, tuple(output))
