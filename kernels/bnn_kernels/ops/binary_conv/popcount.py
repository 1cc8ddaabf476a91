"""The convolution kernel: lanes are filters, the inner step is a population count of eight words at once.

A chunk of output positions at a time: the bits under the filter are gathered into windows (a few words each), then
every block of eight filters, or two of them, runs over the windows, four or eight at a time. One step loads eight
weight words, xors (or ands) them with a window's word in all lanes, counts and adds. LLVM makes vpopcntq of it where
the CPU has AVX-512 VPOPCNTDQ (512 products in three instructions), byte shuffles on AVX2 and cnt on NEON. No sum runs
across lanes.

Ternary weights are a sign and a mask: (window ^ sign) & mask is one instruction with AVX-512 (vpternlogq), so that they
take one count, as binary ones do, rather than one for each of two planes.

With AVX-512 a carry-save adder that joins its words itself takes five instructions for two of them, where two xors, two
counts and two additions are six: `count_tiles.count_tile`. Without its functions of three bits it would take more.

Every way out, each join, and one pair of planes or several, is a kernel of its own, made from the one below: with a
branch between them inside the loop the sums no longer stay in registers, and it takes two to three times as long.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.compile.isa import isa
from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.compile.simd import int32x8, uint64x8
from bnn_kernels.compile.simd.count_tiles import count_tile
from bnn_kernels.ops.binary_conv.bit_path import POSITIONS, BitPath, is_ternary
from bnn_kernels.ops.binary_conv.windows import Kinds, Sizes, Taps, begin_chunk, fill_chunk, window_words, word_offsets
from bnn_kernels.ops.geometry import Geometry, Maps
from bnn_kernels.ops.outputs import Constants, Output, kind_of, prepare_of, rows_writer
from bnn_kernels.ops.weights import Weights
from bnn_kernels.runtime.cache_lines import numbers_at_line
from bnn_kernels.runtime.threads import run_rows


class Shares(NamedTuple):
    """All positions (n, oy, ox), with the filters in so many shares."""

    positions: int
    splits: int


# Where the bits of a window are: gathered, in the rows of the map, which are whole words, or in the order of positions.
GATHERED, IN_ROWS, IN_ORDER = range(3)
# Positions of a chunk: windows stay in the L1 cache up to about 100 words each.
CHUNK = 32
# Fewer positions than this are split by their filters too.
FEW = 16
# Windows of a tile where there are not enough for a large one.
FEWER = 4
# Words of a window from which on two are counted at once: fewer do not make up for what that takes around the loop.
FEWEST_SAVED = 6


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


def tile_shape() -> tuple[int, int]:
    """Return (windows, blocks of eight filters) of a large tile: as many counts as the registers hold.

    With AVX-512 half of them would be enough to keep the counters busy; what surrounds a tile is then done twice.
    """
    return (8, 2) if isa() == "avx512" else (FEWER, 1)


def _counting(windows_of: int, most: int, join: str, adds: bool, saves: bool) -> Any:
    """Return what writes or adds the counts of a tile.

    count(few, windows, rows, offsets, begin, i, plane, w, j, apart, mask, factor, sums): of windows_of, FEWER or 1
    windows and `most` blocks of eight filters, or of FEWER windows and one block (few).
    """
    large, one = count_tile(windows_of, most, join, adds, saves), count_tile(1, most, join, adds, False)
    if most == 1:

        @inline
        def count_one_block(few, windows, rows, offsets, begin, i, plane, w, j, apart, mask, factor, sums):
            if windows == 1:
                one(rows, offsets, begin, i, plane, w, j, apart, mask, factor, sums)
            else:
                large(rows, offsets, begin, i, plane, w, j, apart, mask, factor, sums)

        return count_one_block
    fewer, narrow = count_tile(FEWER, most, join, adds, saves), count_tile(FEWER, 1, join, adds, saves)

    @inline
    def count(few, windows, rows, offsets, begin, i, plane, w, j, apart, mask, factor, sums):
        if few:
            narrow(rows, offsets, begin, i, plane, w, j, apart, mask, factor, sums)
        elif windows == 1:
            one(rows, offsets, begin, i, plane, w, j, apart, mask, factor, sums)
        elif windows == FEWER:
            fewer(rows, offsets, begin, i, plane, w, j, apart, mask, factor, sums)
        else:
            large(rows, offsets, begin, i, plane, w, j, apart, mask, factor, sums)

    return count


@functools.cache
def popcount_kernel(kind: type, join: str, single: bool, saves: bool) -> Any:
    """Return the kernel with a kind of output, a join ("xor", "and" or "masked"), one pair of planes or more.

    saves: whether it counts two words at once, see `count_tiles.count_tile`.

    kernel(rows, plane_size, where, offsets, w, shares, kinds, pairs, size, taps, constants, output, first, last)
    computes first..last of shares, see `Shares`: all positions with the first share of the filters, then all with the
    second and so on;
    rows uint64 flat (P, N, rows, G, row words), each plane of plane_size words, see `bit_rows`;
    where: one of GATHERED, IN_ROWS, IN_ORDER; offsets: `windows.word_offsets`;
    w uint64 flat (Q, G, blocks, words, 8), "masked": signs and masks; kinds: `Kinds`;
    pairs int32 (P * Q,): factor of each pair's count, used if there are several;
    size: `Sizes`; taps: `Taps`; constants, output: see `ops.outputs`.
    """
    (prepare, name), write_rows = prepare_of(kind), rows_writer(kind)
    windows_of, most = tile_shape()
    count = _counting(windows_of, most, join, not single, saves)

    def convolve(rows, plane_size, where, offsets, w, shares, kinds, pairs, size, taps, constants, output, first, last):
        kinds, size, taps, constants = Kinds(*kinds), Sizes(*size), Taps(*taps), Constants(*constants)
        shares = Shares(*shares)
        groups, filters, planes = size.groups, size.filters, size.planes
        positions, splits = shares.positions, shares.splits
        weight_planes = len(pairs) // planes
        blocks = (filters + 7) // 8
        words = len(offsets)
        block_size = words * 8
        weight_plane = groups * blocks * block_size
        ready = prepare(output)
        scratch = np.empty(8, np.int32)
        sums = numbers_at_line(windows_of * most * 8, np.int32)
        begin, kind_at = np.empty(CHUNK + FEWER, np.uint64), np.zeros(CHUNK, np.int64)
        windows = np.empty(window_words(planes, CHUNK, words), np.uint64) if where == GATHERED else rows
        plane_words = np.uint64(CHUNK * words if where == GATHERED else plane_size)
        apart, mask = np.uint64(block_size), np.uint64(weight_plane)
        row = first
        while row < last:
            split = row // positions
            start = row - split * positions
            here = min(CHUNK, last - row, positions - start)
            row += here
            for g in range(groups):
                if where == GATHERED:
                    fill_chunk(rows, plane_size, kinds, size, taps, g, start, here, CHUNK, windows, kind_at)
                    for i in range(here):
                        begin[i] = np.uint64(i * words)
                elif where == IN_ROWS:
                    begin_chunk(kinds, size, taps, g, start, here, begin, kind_at)
                else:
                    for i in range(here):
                        begin[i] = np.uint64((start + i) * words)
                # A tile of a single block has FEWER windows, however many there are.
                begin[here : here + FEWER] = begin[here - 1]
                # Whole tiles of blocks.
                b = (blocks + most - 1) // most * split // splits * most
                end = min((blocks + most - 1) // most * (split + 1) // splits * most, blocks)
                while b < end:
                    few = most > 1 and b + most > end
                    width = 8 if few else most * 8
                    j = np.uint64((g * blocks + b) * block_size)
                    left = filters - b * 8
                    channel = g * filters + b * 8
                    i = 0
                    while i < here:
                        done = windows_of
                        if few:
                            done = min(FEWER, here)
                        elif i == here - 1 or here < FEWER:
                            done = 1
                        elif i + FEWER >= here or here < windows_of:
                            done = FEWER
                        # A last tile of fewer positions begins earlier and writes some sums again.
                        tile = min(i, here - done)
                        at = np.uint64(tile)
                        if not single:
                            sums[:] = 0
                        for pair in range(len(pairs)):
                            p = pair // weight_planes
                            plane = plane_words * np.uint64(p)
                            w_at = j + np.uint64((pair - p * weight_planes) * weight_plane)
                            factor = pairs[pair]
                            count(few, done, windows, offsets, begin, at, plane, w, w_at, apart, mask, factor, sums)
                        write_rows(
                            sums, width, done, width, kind_at, tile, b * 8, start + tile, channel, left, constants,
                            ready, scratch,
                        )  # fmt: skip
                        i = tile + done
                    b += width >> 3

    counting = f"popcount{'_of_pairs' * saves}_{join}_{'one' if single else 'many'}"
    full_name = f"{counting}_{windows_of}x{most}_{name}"
    convolve.__name__ = convolve.__qualname__ = full_name
    return jit(convolve)


class PopcountPath(BitPath):
    """Population counts; any planes, any geometry."""

    def __init__(self, weights: Weights, geometry: Geometry, maps: Maps):
        super().__init__(weights, geometry, maps, masked=is_ternary(weights))
        # The input's own words are the windows of a 1x1 convolution.
        plain = (1, 1), (1, 1), (0, 0), (1, 1), 1
        whole = weights.channels % 64 == 0
        in_order = whole and geometry._replace(dilation=(1, 1))[:5] == plain
        self._where = IN_ORDER if in_order else IN_ROWS if whole else GATHERED
        self._offsets_of_words = word_offsets(self.size, self.taps, self._where == IN_ROWS)
        words = weights.masked_words() if self.join == "masked" else weights.words()
        self._words, self._blocks = words.reshape(-1), words.shape[2]
        self._saves = isa() == "avx512" and self.join != "masked" and len(self._offsets_of_words) >= FEWEST_SAVED

    def take(self, words: np.ndarray) -> tuple[Any, ...]:
        """Return (rows, words of a plane)."""
        if self._where != IN_ORDER:
            return super().take(words)
        return (words if words.flags.writeable else words.copy()).reshape(-1), words[0].size

    def run(self, taken: tuple[Any, ...], positions: int, output: Output) -> None:
        """Compute all positions into an output."""
        # Few positions, as in a linear layer, are shared among threads by their filters.
        splits = 1 if positions >= FEW else max(1, min(FEW, self._blocks // 2))
        given = (*taken, self._where, self._offsets_of_words, self._words, (positions, splits), *self._last(output))
        kernel = popcount_kernel(kind_of(output), self.join, self.single, self._saves)
        # Where each word of the weights is read for one position, memory takes as long as for two.
        work = (2 if positions == 1 else positions) * self._work
        run_rows(kernel, positions * splits, work, *given, multiple=POSITIONS if splits == 1 else 1)
