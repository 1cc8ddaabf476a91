"""Lookups for inputs of several bit planes (AVX2): two planes in one step, at little more than the cost of one.

As in `lookup` a table row is chosen by eight bits of the input and shuffled by four weight bits of 32 filters;
here the eight bits are four of each of two planes of one window, and the row's bytes their weighted sums
m0 * popcount(a0 ^ w) + m1 * popcount(a1 ^ w) (or & for ^). No byte is shared by two windows, so lookups just add up
until a byte is full: 2-bit inputs give 0 .. 12, 21 lookups. Two instructions for 128 products of 2 bits, where two
planes one after the other take three. With negative multipliers a constant keeps the bytes from falling below 0; the
offsets take it back. A tile is four windows by two vectors of filters, or by one.

The same with 64 bytes and six weight bits (vpermb, AVX-512 VBMI) was tried on Zen 4: no better than two vpopcntq.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.compile.simd import uint8x32 as simd
from bnn_kernels.ops.binary_conv.bit_path import POSITIONS, BitPath
from bnn_kernels.ops.binary_conv.lookup import CHUNK, chunk_of, filter_bytes, open_steps, place_pairs, weigh
from bnn_kernels.ops.binary_conv.windows import Kinds, Sizes, Taps, fill_chunk, window_words
from bnn_kernels.ops.filters import Filters
from bnn_kernels.ops.geometry import Geometry, Maps
from bnn_kernels.ops.outputs import Constants, Output, counts_writer, kind_of, prepare_of
from bnn_kernels.ops.weights import Weights
from bnn_kernels.runtime.arrays import aligned
from bnn_kernels.runtime.threads import run_rows

LANES = simd.LANES
WINDOWS = 4
# Steps whose weights are spread at a time, about: 16 kB of two vectors.
STEPS_AT_A_TIME = 256


class PairTables(NamedTuple):
    """The tables of all pairs of planes, uint8 flat (pairs, 256 * 16), and their largest byte."""

    table: np.ndarray
    most: int


class PlanePairs:
    """How the planes of an input are taken two by two: the tables of all pairs, and each pair's factor.

    multipliers: of the planes. `table`: uint8 flat (pairs, 256 * 16); `factors`: int (pairs,); `bias`: what each lookup
    of a pair adds too much, int (pairs,); `most`: the largest byte of the table. Each pair's multipliers are divided by
    their common factor; an odd plane is paired with one that counts for nothing.
    """

    def __init__(self, multipliers: Sequence[int], xor: bool):
        four = np.arange(16, dtype=np.uint8)
        ones = np.bitwise_count(four[:, None] ^ four if xor else four[:, None] & four).astype(np.int64)
        rows = np.arange(256)
        padded = [*multipliers, *[0] * (len(multipliers) % 2)]
        tables, factors = [], []
        for m0, m1 in zip(padded[::2], padded[1::2], strict=True):
            factors.append(math.gcd(m0, m1))
            tables.append((m0 * ones[rows & 15] + m1 * ones[rows >> 4]) // factors[-1])
        self.factors = np.array(factors)
        self.bias = np.array([-int(table.min()) for table in tables])
        raised = np.stack(tables) + self.bias[:, None, None]
        self.most = int(raised.max())
        self.table = aligned(raised.clip(0, 255).astype(np.uint8).reshape(-1))

    def fits(self, lookups: int) -> bool:
        """Whether bytes hold a few lookups, and 16-bit sums this many."""
        return self.most * lookups <= 65_535 and self.most <= 85


@functools.lru_cache(maxsize=64)
def tables_of(multipliers: tuple[int, ...], xor: bool) -> PlanePairs:
    """Return the tables of these planes, made once: `fits` looks at them, and every layer reads the same."""
    return PlanePairs(multipliers, xor)


def lookups_for(kh: int, run_bits: int) -> int:
    """Return how many lookups a window of kh runs takes for each pair of planes."""
    return 2 * kh * -(-run_bits // 8)


@inline
def _place_planes(windows, planes, words, kh, run_bits, count, places, steps):
    """Write the addresses of each window's table rows: uint16 (plane pairs, CHUNK, steps)."""
    as_bytes = windows.view(np.uint8)
    run_words, run_bytes = (run_bits + 63) >> 6, (run_bits + 7) >> 3
    plane_bytes = CHUNK * words * 8
    for pair in range((planes + 1) // 2):
        # A plane without a partner is paired with itself; its second half counts for nothing.
        other = min(2 * pair + 1, planes - 1)
        for i in range(count):
            for ky in range(kh):
                at = (i * words + ky * run_words) * 8
                # Slices that begin at 0: their indices need no test for wrapping around, so LLVM makes vectors of this.
                first = as_bytes[2 * pair * plane_bytes + at : 2 * pair * plane_bytes + at + run_bytes]
                second = as_bytes[other * plane_bytes + at : other * plane_bytes + at + run_bytes]
                to = (pair * CHUNK + i) * steps + 2 * ky * run_bytes
                place_pairs(first, second, places[to : to + 2 * run_bytes], run_bytes)


@inline
def _one(places, at, stride, w, second, steps, room, table, base, counts, to):
    """counts[to:] uint16 (4, 2 * LANES) += sums of four windows against a vector of filters.

    at: the first window's places, the others `stride` apart;
    room: how many lookups a byte holds.
    """
    j = np.uint64(0)
    at1 = at + stride
    at2 = at1 + stride
    at3 = at2 + stride
    done = 0
    while done < steps:
        stop = min(done + room, steps)
        s0 = s1 = s2 = s3 = simd.zero()
        for _ in range(done, stop):
            x = simd.load(w, j)
            s0 = simd.add(s0, simd.look_up(simd.load_row(table, base + simd.load_place(places, at)), x))
            s1 = simd.add(s1, simd.look_up(simd.load_row(table, base + simd.load_place(places, at1)), x))
            s2 = simd.add(s2, simd.look_up(simd.load_row(table, base + simd.load_place(places, at2)), x))
            s3 = simd.add(s3, simd.look_up(simd.load_row(table, base + simd.load_place(places, at3)), x))
            j += np.uint64(LANES)
            at += np.uint64(1)
            at1 += np.uint64(1)
            at2 += np.uint64(1)
            at3 += np.uint64(1)
        simd.add_to_uint16(counts, to, s0)
        simd.add_to_uint16(counts, to + np.uint64(2 * LANES), s1)
        simd.add_to_uint16(counts, to + np.uint64(4 * LANES), s2)
        simd.add_to_uint16(counts, to + np.uint64(6 * LANES), s3)
        done = stop


@inline
def _two(places, at, stride, w, second, steps, room, table, base, counts, to):
    """The same against two vectors of filters, `second` bytes apart."""
    j = np.uint64(0)
    at1 = at + stride
    at2 = at1 + stride
    at3 = at2 + stride
    done = 0
    while done < steps:
        stop = min(done + room, steps)
        s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = simd.zero()
        for _ in range(done, stop):
            x0 = simd.load(w, j)
            x1 = simd.load(w, j + second)
            t = simd.load_row(table, base + simd.load_place(places, at))
            s00 = simd.add(s00, simd.look_up(t, x0))
            s01 = simd.add(s01, simd.look_up(t, x1))
            t = simd.load_row(table, base + simd.load_place(places, at1))
            s10 = simd.add(s10, simd.look_up(t, x0))
            s11 = simd.add(s11, simd.look_up(t, x1))
            t = simd.load_row(table, base + simd.load_place(places, at2))
            s20 = simd.add(s20, simd.look_up(t, x0))
            s21 = simd.add(s21, simd.look_up(t, x1))
            t = simd.load_row(table, base + simd.load_place(places, at3))
            s30 = simd.add(s30, simd.look_up(t, x0))
            s31 = simd.add(s31, simd.look_up(t, x1))
            j += np.uint64(LANES)
            at += np.uint64(1)
            at1 += np.uint64(1)
            at2 += np.uint64(1)
            at3 += np.uint64(1)
        simd.add_to_uint16(counts, to, s00)
        simd.add_to_uint16(counts, to + np.uint64(LANES), s01)
        simd.add_to_uint16(counts, to + np.uint64(2 * LANES), s10)
        simd.add_to_uint16(counts, to + np.uint64(3 * LANES), s11)
        simd.add_to_uint16(counts, to + np.uint64(4 * LANES), s20)
        simd.add_to_uint16(counts, to + np.uint64(5 * LANES), s21)
        simd.add_to_uint16(counts, to + np.uint64(6 * LANES), s30)
        simd.add_to_uint16(counts, to + np.uint64(7 * LANES), s31)
        done = stop


@functools.cache
def level_lookup_kernel(kind: type) -> Any:
    """Return the kernel with a kind of output.

    Its arguments are those of `popcount.popcount_kernel` without shares, and first..last are positions; w is
    `lookup.filter_bytes`, in the place of `direct` comes lookup, see `PairTables`, and pairs is int32
    (plane pairs * Q,).
    """
    (prepare, name), write_counts = prepare_of(kind), counts_writer(kind)

    def look_up(rows, plane_size, lookup, w, kinds, pairs, size, taps, constants, output, first, last):
        kinds, size, taps, constants = Kinds(*kinds), Sizes(*size), Taps(*taps), Constants(*constants)
        lookup = PairTables(*lookup)
        table = lookup.table
        groups, channels, filters, planes = size.groups, size.channels, size.filters, size.planes
        kh, kw = taps.kh, taps.kw
        padded = (filters + 7) // 8 * 8
        vectors = (filters + LANES - 1) // LANES
        run_bits = kw * channels
        words = kh * ((run_bits + 63) >> 6)
        steps = kh * ((run_bits + 7) >> 3) * 2
        vector_size = np.uint64(LANES * steps // 2)
        plane_pairs = (planes + 1) // 2
        weight_planes = len(pairs) // plane_pairs
        room = 255 // lookup.most
        # Steps whose weights are spread at a time: whole rounds of byte sums, and an even number.
        opens = STEPS_AT_A_TIME // (2 * room) * (2 * room) if 2 * room <= STEPS_AT_A_TIME else STEPS_AT_A_TIME
        opened, second = np.empty(2 * LANES * opens, np.uint8), np.uint64(LANES * opens)
        ready = prepare(output)
        scratch = np.empty(8, np.int32)
        kind_at = np.zeros(CHUNK, np.int64)
        counts = np.empty(2 * CHUNK * LANES, np.uint16)
        sums = np.empty(2 * CHUNK * LANES if len(pairs) > 1 else 0, np.int32)
        windows = np.zeros(window_words(planes, CHUNK, words), np.uint64)
        stride = np.uint64(steps)
        places = np.zeros(plane_pairs * CHUNK * steps, np.uint16)
        chunk = chunk_of(last - first)
        for start in range(first, last, chunk):
            count = min(chunk, last - start)
            for g in range(groups):
                fill_chunk(rows, plane_size, kinds, size, taps, g, start, count, CHUNK, windows, kind_at)
                _place_planes(windows, planes, words, kh, run_bits, count, places, steps)
                vector = 0
                while vector < vectors:
                    together = min(2, vectors - vector)
                    f = vector * LANES
                    blocks = min(together * LANES, padded - f) // 8
                    for pair in range(len(pairs)):
                        p = pair // weight_planes
                        q = pair - p * weight_planes
                        counts[: 2 * LANES * ((count + 3) // 4 * 4)] = 0
                        j = np.uint64((q * groups + g) * vectors + vector) * vector_size
                        base = np.uint64(p * 4096)
                        for step in range(0, steps, opens):
                            here = min(opens, steps - step)
                            open_steps(w, j, step, here, steps, opened, np.uint64(0))
                            if together == 2:
                                open_steps(w, j + vector_size, step, here, steps, opened, second)
                            for i in range(0, count, WINDOWS):
                                at, to = np.uint64((p * CHUNK + i) * steps + step), np.uint64(2 * LANES * i)
                                if together == 2:
                                    _two(places, at, stride, opened, second, here, room, table, base, counts, to)
                                else:
                                    _one(places, at, stride, opened, second, here, room, table, base, counts, to)
                        if len(pairs) > 1:
                            weigh(counts, sums, 2 * LANES * count, pairs[pair], pair == 0)
                    write_counts(
                        counts, sums, len(pairs) == 1, 2 * LANES, count, 8 * blocks, kind_at, f, start, g * filters + f,
                        filters - f, constants, ready, scratch,
                    )  # fmt: skip
                    vector += together

    look_up.__name__ = look_up.__qualname__ = f"level_lookup_{name}"
    return jit(look_up)


class LevelLookupPath(BitPath):
    """Lookups of two planes at a time; while bytes and 16-bit sums hold them."""

    def __init__(self, weights: Weights, geometry: Geometry, maps: Maps):
        found = tables_of(maps.multipliers, weights.signed)
        lookups = lookups_for(weights.shape[2], weights.shape[3] * weights.channels)
        excess, factors = lookups * int(found.factors @ found.bias), [int(m) for m in found.factors]
        super().__init__(weights, geometry, maps, factors, excess, lookups * found.most)
        self._head = ((found.table, found.most), filter_bytes(weights))

    @staticmethod
    def fits(weights: Filters, multipliers: tuple[int, ...]) -> bool:
        """Whether the sums of these planes fit."""
        lookups = lookups_for(weights.shape[2], weights.shape[3] * weights.channels)
        return tables_of(multipliers, weights.signed).fits(lookups)

    def run(self, taken: tuple[Any, ...], positions: int, output: Output) -> None:
        """Compute all positions into an output."""
        given = (*taken, *self._head, *self._last(output))
        run_rows(level_lookup_kernel(kind_of(output)), positions, positions * self._work, *given, multiple=POSITIONS)
