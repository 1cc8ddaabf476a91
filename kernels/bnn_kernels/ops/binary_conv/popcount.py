"""The convolution kernel: lanes are filters, the inner step is a population count of eight words at once.

A chunk of output positions at a time: the bits under the filter are gathered into windows (a few words each), then
every block of eight filters runs over the windows, four at a time. One step loads eight weight words, xors (or ands)
them with a window's word in all lanes, counts and adds. LLVM makes vpopcntq of it where the CPU has AVX-512 VPOPCNTDQ
(512 products in three instructions), byte shuffles on AVX2 and cnt on NEON. No sum runs across lanes.

Carry-save adders do not help where there is a vpopcntq: one saves a count and an add, and costs two instructions.

Every way out, xor or and, and one pair of planes or several, is a kernel of its own, made from the one below: with a
branch between them inside the loop the sums no longer stay in registers, and it takes two to three times as long.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.compile.simd import float32x8, int32x8, uint64x8
from bnn_kernels.ops.binary_conv.bit_path import POSITIONS, BitPath
from bnn_kernels.ops.binary_conv.windows import Kinds, Sizes, Taps, fill_chunk, window_words
from bnn_kernels.ops.geometry import Geometry, Maps
from bnn_kernels.ops.outputs import Constants, Output, kind_of, writer
from bnn_kernels.ops.weights import Weights
from bnn_kernels.runtime.threads import run_rows

LANES = float32x8.LANES


class Shares(NamedTuple):
    """All positions (n, oy, ox), with the filters in so many shares."""

    positions: int
    splits: int


# Positions of a chunk: windows stay in the L1 cache up to about 100 words each.
CHUNK = 32
# Fewer positions than this are split by their filters too.
FEW = 16


def counters(join: Callable) -> tuple[Callable, Callable]:
    """Return the inner loops over four windows and over one; join: `xor_popcount` or `and_popcount`."""

    @inline
    def count_4(windows, at, step, words, w, j):
        s0 = s1 = s2 = s3 = uint64x8.zero()
        at1 = at + step
        at2 = at1 + step
        at3 = at2 + step
        for _ in range(words):
            x = uint64x8.load(w, j)
            s0 = uint64x8.add(s0, join(x, uint64x8.broadcast(windows, at)))
            s1 = uint64x8.add(s1, join(x, uint64x8.broadcast(windows, at1)))
            s2 = uint64x8.add(s2, join(x, uint64x8.broadcast(windows, at2)))
            s3 = uint64x8.add(s3, join(x, uint64x8.broadcast(windows, at3)))
            j += np.uint64(8)
            at += np.uint64(1)
            at1 += np.uint64(1)
            at2 += np.uint64(1)
            at3 += np.uint64(1)
        return int32x8.narrow(s0), int32x8.narrow(s1), int32x8.narrow(s2), int32x8.narrow(s3)

    @inline
    def count_1(windows, at, words, w, j):
        s = uint64x8.zero()
        for _ in range(words):
            s = uint64x8.add(s, join(uint64x8.load(w, j), uint64x8.broadcast(windows, at)))
            j += np.uint64(8)
            at += np.uint64(1)
        return int32x8.narrow(s)

    return count_4, count_1


def weighted(count_4: Callable, count_1: Callable) -> tuple[Callable, Callable]:
    """Return the same sums over all pairs of planes, each times its factor."""

    @inline
    def sums_4(windows, i, words, plane_words, w, j, weight_plane, pairs, planes):
        weight_planes = len(pairs) // planes
        t0 = t1 = t2 = t3 = int32x8.splat(np.int32(0))
        for p in range(planes):
            at = np.uint64(p * plane_words + i * words)
            for q in range(weight_planes):
                c0, c1, c2, c3 = count_4(windows, at, np.uint64(words), words, w, np.uint64(j + q * weight_plane))
                m = int32x8.splat(pairs[p * weight_planes + q])
                t0 = int32x8.add(t0, int32x8.multiply(c0, m))
                t1 = int32x8.add(t1, int32x8.multiply(c1, m))
                t2 = int32x8.add(t2, int32x8.multiply(c2, m))
                t3 = int32x8.add(t3, int32x8.multiply(c3, m))
        return t0, t1, t2, t3

    @inline
    def sums_1(windows, i, words, plane_words, w, j, weight_plane, pairs, planes):
        weight_planes = len(pairs) // planes
        t = int32x8.splat(np.int32(0))
        for p in range(planes):
            at = np.uint64(p * plane_words + i * words)
            for q in range(weight_planes):
                c = count_1(windows, at, words, w, np.uint64(j + q * weight_plane))
                t = int32x8.add(t, int32x8.multiply(c, int32x8.splat(pairs[p * weight_planes + q])))
        return t

    return sums_4, sums_1


def bare(count_4: Callable, count_1: Callable) -> tuple[Callable, Callable]:
    """Return the counts themselves: one pair of planes."""

    @inline
    def sums_4(windows, i, words, plane_words, w, j, weight_plane, pairs, planes):
        return count_4(windows, np.uint64(i * words), np.uint64(words), words, w, np.uint64(j))

    @inline
    def sums_1(windows, i, words, plane_words, w, j, weight_plane, pairs, planes):
        return count_1(windows, np.uint64(i * words), words, w, np.uint64(j))

    return sums_4, sums_1


@functools.cache
def popcount_kernel(kind: type, xor: bool, single: bool) -> Any:
    """Return the kernel with a kind of output, xor or and, one pair of planes or more.

    kernel(rows, plane_size, direct, w, shares, kinds, pairs, size, taps, constants, output, first, last) computes
    first..last of shares, see `Shares`: all positions with the first share of the filters, then all with the second
    and so on;
    rows uint64 flat (P, N, rows, G, row words), each plane of plane_size words, see `bit_rows`;
    direct: whether the rows already are the windows of all positions, one behind the other;
    w uint64 flat (Q, G, blocks, words, 8); kinds: `Kinds`;
    pairs int32 (P * Q,): factor of each pair's count, used if there are several;
    size: `Sizes`; taps: `Taps`; constants, output: see `ops.outputs`.
    """
    write, prepare, name = writer(kind)
    counted = counters(uint64x8.xor_popcount if xor else uint64x8.and_popcount)
    sums_4, sums_1 = bare(*counted) if single else weighted(*counted)

    def convolve(rows, plane_size, direct, w, shares, kinds, pairs, size, taps, constants, output, first, last):
        kinds, size, taps, constants = Kinds(*kinds), Sizes(*size), Taps(*taps), Constants(*constants)
        shares = Shares(*shares)
        groups, filters, planes = size.groups, size.filters, size.planes
        positions, splits = shares.positions, shares.splits
        blocks = (filters + 7) // 8
        words = taps.kh * ((taps.kw * size.channels + 63) >> 6)
        block_size = words * 8
        weight_plane = groups * blocks * block_size
        ready = prepare(output)
        scratch = np.empty(8, np.int32)
        kind_at = np.zeros(CHUNK, np.int64)
        windows = rows if direct else np.empty(window_words(planes, CHUNK, words), np.uint64)
        plane_words = plane_size if direct else CHUNK * words
        row = first
        while row < last:
            split = row // positions
            start = row - split * positions
            count = min(CHUNK, last - row, positions - start)
            row += count
            for g in range(groups):
                if not direct:
                    fill_chunk(rows, plane_size, kinds, size, taps, g, start, count, CHUNK, windows, kind_at)
                at = start if direct else 0
                for b in range(blocks * split // splits, blocks * (split + 1) // splits):
                    j = (g * blocks + b) * block_size
                    left = filters - b * 8
                    channel = g * filters + b * 8
                    i = 0
                    while i < count:
                        if i == count - 1 or count < 4:
                            one = sums_1(windows, at + i, words, plane_words, w, j, weight_plane, pairs, planes)
                            write(one, kind_at[i] + b * 8, start + i, channel, left, constants, ready, scratch)
                            i += 1
                            continue
                        # A last tile of two or three positions begins earlier and writes some sums again.
                        tile = min(i, count - 4)
                        t = sums_4(windows, at + tile, words, plane_words, w, j, weight_plane, pairs, planes)
                        for k in range(4):
                            table_at = kind_at[tile + k] + b * 8
                            write(t[k], table_at, start + tile + k, channel, left, constants, ready, scratch)
                        i = tile + 4

    full_name = f"popcount_{'xor' if xor else 'and'}_{'one' if single else 'many'}_{name}"
    convolve.__name__ = convolve.__qualname__ = full_name
    return jit(convolve)


class PopcountPath(BitPath):
    """Population counts; any planes, any geometry."""

    def __init__(self, weights: Weights, geometry: Geometry, maps: Maps):
        super().__init__(weights, geometry, maps)
        # The input's own words are the windows of a 1x1 convolution.
        plain = (1, 1), (1, 1), (0, 0), (1, 1), 1
        self._direct = geometry._replace(dilation=(1, 1))[:5] == plain and weights.channels % 64 == 0
        words = weights.words()
        self._words, self._blocks = words.reshape(-1), words.shape[2]

    def take(self, words: np.ndarray) -> tuple[Any, ...]:
        """Return (rows, words of a plane)."""
        if not self._direct:
            return super().take(words)
        return (words if words.flags.writeable else words.copy()).reshape(-1), words[0].size

    def run(self, taken: tuple[Any, ...], positions: int, output: Output) -> None:
        """Compute all positions into an output."""
        # Few positions, as in a linear layer, are shared among threads by their filters.
        splits = 1 if positions >= FEW else max(1, min(FEW, self._blocks // 2))
        given = (*taken, self._direct, self._words, (positions, splits), *self._last(output))
        kernel = popcount_kernel(kind_of(output), self.xor, self.single)
        run_rows(kernel, positions * splits, positions * self._work, *given, multiple=POSITIONS if splits == 1 else 1)
