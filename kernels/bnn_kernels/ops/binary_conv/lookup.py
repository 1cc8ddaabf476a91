"""The convolution kernel of AVX2: table lookups instead of population counts.

AVX2 has no vector popcount; emulating one takes about eight instructions for 256 products. But four bits of an input
against four bits of a weight have only 16 x 16 outcomes, popcounts 0 .. 4. So

1. one row of a table (16 bytes, chosen by the input's four bits) shuffled by the weight bits of 32 filters (vpshufb) is
   the counts of 128 products;
2. a byte has room for two counts: a table row for each *pair* of inputs, of two output positions, holds the first
   one's count in its low half and the second one's in its high half, 256 rows in all: 256 products a lookup;
3. three lookups may be added before a half can pass 15 (3 * 4 = 12): p = low + 16 high;
4. p is added to one byte sum as it is, and its high half (shifted and masked) to another. The first is low + 16 high
   modulo 256 and the second gives high, so low is known as well while it is at most 255: twenty such steps
   (20 * 12 = 240). Then both are added to 16-bit sums. Nine instructions for three lookups, 85 products each.

A tile is two pairs of positions by two vectors of filters: eight byte sums in registers. The weights of a tile are
spread, some steps at a time, to four bits a byte as the shuffle takes them, and stay in the L1 cache for all positions
of a chunk; the input's pairs are addresses of table rows.
"""

import functools
from typing import Any

import numpy as np

from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.compile.simd import int32x8
from bnn_kernels.compile.simd import uint8x32 as simd
from bnn_kernels.ops.binary_conv.bit_path import POSITIONS, BitPath
from bnn_kernels.ops.binary_conv.windows import Kinds, Sizes, Taps, fill_chunk, window_words
from bnn_kernels.ops.filters import Filters
from bnn_kernels.ops.geometry import Geometry, Maps
from bnn_kernels.ops.outputs import Constants, Output, counts_writer, kind_of, prepare_of
from bnn_kernels.ops.weights import Weights
from bnn_kernels.runtime.arrays import aligned
from bnn_kernels.runtime.cache_lines import zeros_at_line
from bnn_kernels.runtime.threads import run_rows

LANES = simd.LANES
TILE = 2 * LANES
# Most positions of a chunk. Weights are spread once for each chunk, which takes about six of the instructions that four
# positions take for the same weights.
CHUNK = 96
# Steps whose weights are spread at a time: a round of byte sums. Those of two vectors take 4 kB, the places of the
# input's table rows 6 kB, the sums 12 kB, the table 4 kB.
STEPS_AT_A_TIME = 60
# 16-bit sums hold popcounts of windows up to here.
MOST_BITS = 65_535


@functools.cache
def pair_table(xor: bool) -> np.ndarray:
    """Return uint8 (256 * 16,): byte w of row a | b << 4 is popcount(a ^ w) | popcount(b ^ w) << 4, or with & for ^."""
    ones = np.array([[(a ^ w if xor else a & w).bit_count() for w in range(16)] for a in range(16)], np.uint8)
    rows = np.arange(256)
    return aligned((ones[rows & 15] | ones[rows >> 4] << 4).reshape(-1))


def filter_bytes(weights: Weights) -> np.ndarray:
    """Return uint8 flat (P, G, vectors, bytes, 32): eight bits of 32 filters side by side, zeros behind.

    Each filter row is a run of bits that is made whole bytes; a byte is two steps, the first one its low half.
    """
    return weights.layout("bytes", lambda: _filter_bytes(weights))


def _filter_bytes(weights: Weights) -> np.ndarray:
    kh, run_bytes = weights.shape[2], -(-weights.shape[3] * weights.channels // 8)
    planes, vectors = len(weights.multipliers), -(-weights.filters // LANES)
    laid = zeros_at_line((planes, weights.groups * vectors, kh * run_bytes, LANES), np.uint8)
    for filters, codes in weights.blocks():
        vector, lane = weights.places(filters, LANES)
        runs = codes.reshape(len(codes), kh, -1)
        for p in range(planes):
            bits = np.packbits((runs >> np.uint8(p)) & 1, axis=-1, bitorder="little")
            laid[p, vector, :, lane] = bits.reshape(len(codes), -1)
    return laid.reshape(-1)


@inline
def chunk_of(positions):
    """Return how many positions to take at a time: in fours, and about as many in the last chunk as in the others."""
    chunks = max(1, (positions + CHUNK - 1) // CHUNK)
    return max(4, (positions + 4 * chunks - 1) // (4 * chunks) * 4)


@inline
def open_steps(w, j, first, steps, count, opened, to):
    """Write steps first .. first + steps of a vector, four bits a byte, to opened[to:], uint8 (steps, 32).

    j: where the vector's bytes begin in w, see `filter_bytes`; count: its steps, zeros behind. first is even.
    """
    low = np.uint64(LANES)
    at, there = j + np.uint64(first // 2 * LANES), min(steps, count - first)
    for _ in range(0, there, 2):
        both = simd.load(w, at)
        simd.store(opened, to, simd.low_halves(both))
        simd.store(opened, to + low, simd.high_halves(both))
        at += low
        to += low + low
    for _ in range(there, steps):
        simd.store(opened, to, simd.zero())
        to += low


@inline
def place_pairs(first, second, places, run_bytes):
    """Write the addresses of the table rows of two runs of bytes: uint16 (2 * run_bytes,)."""
    low, high = np.uint16(15), np.uint16(240)
    for k in range(run_bytes):
        a = np.uint16(first[k])
        b = np.uint16(second[k])
        places[2 * k] = ((a & low) << np.uint16(4)) | ((b & low) << np.uint16(8))
        places[2 * k + 1] = (a & high) | ((b & high) << np.uint16(4))


@inline
def _place_windows(windows, words, run_words, run_bytes, kh, count, places, stride):
    """Write for each pair of windows the addresses of its table rows: uint16 (pairs, stride)."""
    as_bytes = windows.view(np.uint8)
    for pair in range((count + 1) // 2):
        for ky in range(kh):
            at = (2 * pair * words + ky * run_words) * 8
            # Slices that begin at 0: their indices need no test for wrapping around, so LLVM makes vectors of this.
            first = as_bytes[at : at + run_bytes]
            second = as_bytes[at + words * 8 : at + words * 8 + run_bytes]
            to = pair * stride + 2 * ky * run_bytes
            place_pairs(first, second, places[to : to + 2 * run_bytes], run_bytes)


@inline
def _count_tile(places, at0, at1, w, second, steps, table, counts, to):
    """counts[to:] uint16 (4, 64) += popcounts of two pairs of windows against 64 filters, three steps at a time.

    w uint8 (2, steps, 32), the second vector `second` bytes behind the first.
    """
    j0, j1, three = np.uint64(0), second, np.uint64(96)
    done = 0
    while done < steps:
        stop = min(done + 20, steps)
        # s: low + 16 high of a pair of windows and 32 filters, modulo 256; h: high.
        s00 = s01 = s10 = s11 = h00 = h01 = h10 = h11 = simd.zero()
        for _ in range(done, stop):
            x0 = simd.load(w, j0)
            x1 = simd.load(w, j1)
            t0 = simd.load_row(table, simd.load_place(places, at0))
            t1 = simd.load_row(table, simd.load_place(places, at1))
            p00 = simd.look_up(t0, x0)
            p01 = simd.look_up(t0, x1)
            p10 = simd.look_up(t1, x0)
            p11 = simd.look_up(t1, x1)
            for k in range(1, 3):
                x0 = simd.load(w, j0 + np.uint64(32 * k))
                x1 = simd.load(w, j1 + np.uint64(32 * k))
                t0 = simd.load_row(table, simd.load_place(places, at0 + np.uint64(k)))
                t1 = simd.load_row(table, simd.load_place(places, at1 + np.uint64(k)))
                p00 = simd.add(p00, simd.look_up(t0, x0))
                p01 = simd.add(p01, simd.look_up(t0, x1))
                p10 = simd.add(p10, simd.look_up(t1, x0))
                p11 = simd.add(p11, simd.look_up(t1, x1))
            s00 = simd.add(s00, p00)
            h00 = simd.add(h00, simd.high_halves(p00))
            s01 = simd.add(s01, p01)
            h01 = simd.add(h01, simd.high_halves(p01))
            s10 = simd.add(s10, p10)
            h10 = simd.add(h10, simd.high_halves(p10))
            s11 = simd.add(s11, p11)
            h11 = simd.add(h11, simd.high_halves(p11))
            j0 += three
            j1 += three
            at0 += np.uint64(3)
            at1 += np.uint64(3)
        simd.add_to_uint16(counts, to, simd.low_of(s00, h00))
        simd.add_to_uint16(counts, to + np.uint64(32), simd.low_of(s01, h01))
        simd.add_to_uint16(counts, to + np.uint64(64), h00)
        simd.add_to_uint16(counts, to + np.uint64(96), h01)
        simd.add_to_uint16(counts, to + np.uint64(128), simd.low_of(s10, h10))
        simd.add_to_uint16(counts, to + np.uint64(160), simd.low_of(s11, h11))
        simd.add_to_uint16(counts, to + np.uint64(192), h10)
        simd.add_to_uint16(counts, to + np.uint64(224), h11)
        done = stop


@inline
def weigh(counts, sums, length, factor, first):
    """sums[:length] int32 (= or +=) counts uint16 * factor."""
    m = int32x8.splat(factor)
    for v in range(0, length, 8):
        k = np.uint64(v)
        value = int32x8.multiply(int32x8.load_uint16(counts, k), m)
        if not first:
            value = int32x8.add(value, int32x8.load(sums, k))
        int32x8.store(sums, k, value)


@functools.cache
def lookup_kernel(kind: type) -> Any:
    """Return the kernel with a kind of output.

    Its arguments are those of `popcount.popcount_kernel` without shares, and first..last are positions; w is
    `filter_bytes`, and in the place of `direct` comes a table uint8 flat, `pair_table`.
    """
    (prepare, name), write_counts = prepare_of(kind), counts_writer(kind)

    def look_up(rows, plane_size, table, w, kinds, pairs, size, taps, constants, output, first, last):
        kinds, size, taps, constants = Kinds(*kinds), Sizes(*size), Taps(*taps), Constants(*constants)
        groups, channels, filters, planes = size.groups, size.channels, size.filters, size.planes
        kh, kw = taps.kh, taps.kw
        lanes = (filters + 7) // 8 * 8
        tiles = (filters + TILE - 1) // TILE
        run_words = (kw * channels + 63) >> 6
        run_bytes = (kw * channels + 7) >> 3
        words = kh * run_words
        steps = kh * run_bytes * 2
        stride = (steps + 2) // 3 * 3
        vectors = (filters + LANES - 1) // LANES
        vector_size = LANES * kh * run_bytes
        weight_planes = len(pairs) // planes
        ready = prepare(output)
        scratch = np.empty(8, np.int32)
        kind_at = np.zeros(CHUNK, np.int64)
        counts = np.empty(CHUNK * TILE, np.uint16)
        sums = np.empty(CHUNK * TILE if len(pairs) > 1 else 0, np.int32)
        windows = np.zeros(window_words(planes, CHUNK, words), np.uint64)
        plane_places = CHUNK // 2 * stride
        places = np.zeros(planes * plane_places, np.uint16)
        # A second vector that is none has no bits.
        opened = np.zeros(TILE * STEPS_AT_A_TIME, np.uint8)
        second = np.uint64(LANES * STEPS_AT_A_TIME)
        chunk = chunk_of(last - first)
        for start in range(first, last, chunk):
            count = min(chunk, last - start)
            for g in range(groups):
                fill_chunk(rows, plane_size, kinds, size, taps, g, start, count, CHUNK, windows, kind_at)
                for p in range(planes):
                    own = windows[p * CHUNK * words : (p + 1) * CHUNK * words]
                    laid = places[p * plane_places : (p + 1) * plane_places]
                    _place_windows(own, words, run_words, run_bytes, kh, count, laid, stride)
                for tile in range(tiles):
                    f = tile * TILE
                    blocks = min(TILE, lanes - f) // 8
                    two = 2 * tile + 1 < vectors
                    if not two:
                        opened[second:] = 0
                    for pair in range(len(pairs)):
                        p = pair // weight_planes
                        q = pair - p * weight_planes
                        counts[: (count + 3) // 4 * 4 * TILE] = 0
                        j = np.uint64(((q * groups + g) * vectors + 2 * tile) * vector_size)
                        for step in range(0, stride, STEPS_AT_A_TIME):
                            here = min(STEPS_AT_A_TIME, stride - step)
                            open_steps(w, j, step, here, steps, opened, np.uint64(0))
                            if two:
                                open_steps(w, j + np.uint64(vector_size), step, here, steps, opened, second)
                            for i in range(0, count, 4):
                                at = np.uint64(p * plane_places + i // 2 * stride + step)
                                at1, to = at + np.uint64(stride), np.uint64(i * TILE)
                                _count_tile(places, at, at1, opened, second, here // 3, table, counts, to)
                        if len(pairs) > 1:
                            weigh(counts, sums, count * TILE, pairs[pair], pair == 0)
                    write_counts(
                        counts, sums, len(pairs) == 1, TILE, count, 8 * blocks, kind_at, f, start, g * filters + f,
                        filters - f, constants, ready, scratch,
                    )  # fmt: skip

    look_up.__name__ = look_up.__qualname__ = f"lookup_{name}"
    return jit(look_up)


class LookupPath(BitPath):
    """Lookups of the counts of two positions, one pair of planes after the other; while 16-bit sums hold them."""

    def __init__(self, weights: Weights, geometry: Geometry, maps: Maps):
        super().__init__(weights, geometry, maps)
        self._head = (pair_table(self.join == "xor"), filter_bytes(weights))

    @staticmethod
    def fits(weights: Filters) -> bool:
        """Whether 16-bit sums hold the counts of a window."""
        run_bytes = -(-weights.shape[3] * weights.channels // 8)
        return 8 * weights.shape[2] * run_bytes <= MOST_BITS

    def run(self, taken: tuple[Any, ...], positions: int, output: Output) -> None:
        """Compute all positions into an output."""
        given = (*taken, *self._head, *self._last(output))
        run_rows(lookup_kernel(kind_of(output)), positions, positions * self._work, *given, multiple=POSITIONS)
