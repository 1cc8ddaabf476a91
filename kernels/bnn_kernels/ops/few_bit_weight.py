"""Weights of few bits for float inputs: held as bits, made into float32 for sixteen filters at a time, or looked up.

A weight is a sum of scaled terms, each a sum of bit planes, and an offset:
    w[o, k] = sum_t scale[t, o] * level[t, o, k]  (+ offset[o]),     level = sum_p multiplier[p] * plane[p]

With many positions `expand` writes a block's float32 weights, which all positions then read from the cache. With few,
such as a linear layer's at batch 1, nothing is expanded. A group of g inputs x has only 2**g sums with the bits of one
plane. They are a table, made once for all filters, and the bits of sixteen filters choose from it:
    sum_k x[k] plane[o, k] = sum over groups of table[group][g bits of filter o]
which takes a shift, a permutation and an addition for 16 g products, and reads g bits where FP32 reads 32 g.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.compile.isa import isa
from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.compile.simd import float32x8, float32x16
from bnn_kernels.compile.simd.float_tables import (
    TABLE_BITS,
    chosen,
    codes,
    load_words,
    look_up,
    lowest_chooses,
    shifted,
)
from bnn_kernels.ops.finishing import EpilogueOutput, addresses, finisher
from bnn_kernels.runtime.cache_lines import zeros_at_line
from bnn_kernels.runtime.mapped import release
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty

BLOCK = float32x16.LANES
# Look-ups take fewer steps than expansion and multiplication up to so many positions, by planes: a plane's look-ups
# take 3 instructions for 16 g products, its expansion about 4 for 16, and a position's products 1 for 16.
POSITIONS_TO_LOOK_UP = {1: 16, 2: 8, 3: 5}
FEWEST_POSITIONS_TO_LOOK_UP = 4


class ScaledTerm(NamedTuple):
    """Planes as a file holds them, uint8 (P, bytes), what they stand for, and float32 (O,): the filters' scales."""

    dense: np.ndarray
    multipliers: tuple[int, ...]
    signed: bool
    scale: np.ndarray


class Packed(NamedTuple):
    """What the kernels read.

    words: uint32 flat (P, blocks of all groups, words of a filter, 16), `word_bits` weights to a word, in the order
    (kh, kw, C) of a window. values: float32 flat (P, 2), what a clear and a set bit of a plane mean. ends: int64 (T,),
    the planes before the end of each term. scales: float32 flat (T + 1, blocks * 16), the offset last.
    """

    words: np.ndarray
    values: np.ndarray
    ends: np.ndarray
    scales: np.ndarray


class Sizes(NamedTuple):
    """Sizes of a product by look-up; groups: of inputs that share a table."""

    positions: int
    inputs: int
    filters: int
    groups: int


def word_bits() -> int:
    """Return how many weights of a filter share a word: as many as fill whole groups of a table's inputs."""
    bits = TABLE_BITS.get(isa(), 4)
    return 32 // bits * bits


@inline
def value_of(packed, block, lanes, code):
    """Return float32 (16,): the weights of a block's filters whose bits are those of `code`, the first plane lowest."""
    terms = len(packed.ends)
    lane = np.uint64(block * 16)
    first, second = np.zeros(16, np.float32), np.zeros(16, np.float32)
    weight = float32x16.zero()
    plane = 0
    for t in range(terms):
        first[:] = 0
        while plane < packed.ends[t]:
            second[:] = packed.values[2 * plane + (code >> plane & 1)]
            first += second
            plane += 1
        scale = float32x16.load(packed.scales, np.uint64(t * lanes) + lane)
        level = float32x16.load(first, np.uint64(0))
        weight = float32x16.add(weight, float32x16.multiply(level, scale))
    return float32x16.add(weight, float32x16.load(packed.scales, np.uint64(terms * lanes) + lane))


_, next_bit = codes(1)


@inline
def expand_1_plane(packed, block, length, per_word, to):
    """Write what `expand` writes, of one plane: a choice of two values a weight."""
    packed = Packed(*packed)
    word_count = (length + per_word - 1) // per_word
    lanes = len(packed.words) // word_count
    clear, is_set = value_of(packed, block, lanes, 0), value_of(packed, block, lanes, 1)
    at, j = np.uint64(0), np.uint64(block * word_count * 16)
    for word in range(word_count):
        bits = load_words(packed.words, j)
        j += np.uint64(16)
        for _ in range(min(per_word, length - word * per_word)):
            float32x16.store(to, at, lowest_chooses(bits, clear, is_set))
            bits = next_bit(bits)
            at += np.uint64(16)


@inline
def expand_2_planes(packed, block, length, per_word, to):
    """Write what `expand` writes, of two planes: a choice of four values a weight."""
    packed = Packed(*packed)
    word_count = (length + per_word - 1) // per_word
    lanes = len(packed.words) // (2 * word_count)
    v0, v1 = value_of(packed, block, lanes, 0), value_of(packed, block, lanes, 1)
    v2, v3 = value_of(packed, block, lanes, 2), value_of(packed, block, lanes, 3)
    at, j = np.uint64(0), np.uint64(block * word_count * 16)
    plane = np.uint64(len(packed.words) // 2)
    for word in range(word_count):
        bits, second = load_words(packed.words, j), load_words(packed.words, j + plane)
        j += np.uint64(16)
        for _ in range(min(per_word, length - word * per_word)):
            low, high = lowest_chooses(bits, v0, v1), lowest_chooses(bits, v2, v3)
            float32x16.store(to, at, lowest_chooses(second, low, high))
            bits, second = next_bit(bits), next_bit(second)
            at += np.uint64(16)


@inline
def expand(packed, block, length, per_word, to):
    """Write float32 (length, 16) of a block to `to`, flat: every weight as one product and sum a term."""
    packed = Packed(*packed)
    terms, planes = len(packed.ends), len(packed.values) // 2
    word_count = (length + per_word - 1) // per_word
    blocks = len(packed.words) // (planes * word_count * 16)
    lane, lanes = np.uint64(block * 16), blocks * 16
    offset = float32x16.load(packed.scales, np.uint64(terms * lanes) + lane)
    for word in range(word_count):
        first = word * per_word
        for bit in range(min(per_word, length - first)):
            weight = float32x16.zero()
            plane = 0
            for t in range(terms):
                level = float32x16.zero()
                while plane < packed.ends[t]:
                    at = np.uint64(((plane * blocks + block) * word_count + word) * 16)
                    clear, is_set = packed.values[2 * plane], packed.values[2 * plane + 1]
                    bits = load_words(packed.words, at)
                    level = float32x16.add(level, chosen(bits, np.uint64(bit), clear, is_set))
                    plane += 1
                scale = float32x16.load(packed.scales, np.uint64(t * lanes) + lane)
                weight = float32x16.add(weight, float32x16.multiply(level, scale))
            float32x16.store(to, np.uint64((first + bit) * 16), float32x16.add(weight, offset))


@functools.cache
def look_up_kernels(table_bits: int, kind: type) -> tuple[Any, Any]:
    """Return (fill_tables, look_up_blocks) for tables that so many bits choose from, and a kind of output."""
    finish = finisher(kind)
    table, groups_of_a_word = 1 << table_bits, 32 // table_bits
    step = np.uint64(table)

    def fill_tables(x, tables, sums, size, first, last):
        """Positions first..last: tables float32 flat (positions, 2, groups, table), of planes {0,1} and {-1,+1}.

        x flat (positions, inputs); sums float32 (positions,): of all inputs.
        """
        size = Sizes(*size)
        both = size.groups * table
        for position in range(first, last):
            total = np.float32(0)
            for group in range(size.groups):
                at = 2 * position * both + group * table
                tables[at] = 0
                tables[at + both] = 0
                for i in range(table_bits):
                    k = group * table_bits + i
                    value = x[position * size.inputs + k] if k < size.inputs else np.float32(0)
                    total += value
                    half = 1 << i
                    for entry in range(half):
                        tables[at + half + entry] = tables[at + entry] + value
                        tables[at + both + half + entry] = tables[at + both + entry] - value
                        tables[at + both + entry] += value
            sums[position] = total

    def look_up_blocks(tables, sums, packed, signed, size, output, first, last):
        """Blocks of sixteen filters; signed uint8 (P,): which planes are {-1,+1}."""
        size, packed = Sizes(*size), Packed(*packed)
        ready = addresses(output)
        terms, planes = len(packed.ends), len(packed.values) // 2
        blocks = (size.filters + 15) // 16
        word_count = len(packed.words) // (planes * blocks * 16)
        lanes = blocks * 16
        both = size.groups * table
        out, same = np.zeros(16, np.float32), np.zeros(16, np.float32)
        for block in range(first, last):
            lane = np.uint64(block * 16)
            for position in range(size.positions):
                total = float32x16.zero()
                plane = 0
                for t in range(terms):
                    level = float32x16.zero()
                    while plane < packed.ends[t]:
                        s0 = s1 = s2 = s3 = float32x16.zero()
                        at = np.uint64((2 * position + signed[plane]) * both)
                        j = np.uint64((plane * blocks + block) * word_count * 16)
                        group = 0
                        for _ in range(word_count):
                            bits = load_words(packed.words, j)
                            j += np.uint64(16)
                            here = min(groups_of_a_word, size.groups - group)
                            group += here
                            for _ in range(here // 4):
                                s0 = float32x16.add(s0, look_up(tables, at, bits))
                                bits = shifted(bits)
                                s1 = float32x16.add(s1, look_up(tables, at + step, bits))
                                bits = shifted(bits)
                                s2 = float32x16.add(s2, look_up(tables, at + step + step, bits))
                                bits = shifted(bits)
                                s3 = float32x16.add(s3, look_up(tables, at + step + step + step, bits))
                                bits = shifted(bits)
                                at += step + step + step + step
                            for _ in range(here % 4):
                                s0 = float32x16.add(s0, look_up(tables, at, bits))
                                bits = shifted(bits)
                                at += step
                        plane_sum = float32x16.add(float32x16.add(s0, s1), float32x16.add(s2, s3))
                        same[:] = packed.values[2 * plane + 1 - signed[plane]]
                        level = float32x16.multiply_add(plane_sum, float32x16.load(same, np.uint64(0)), level)
                        plane += 1
                    scale = float32x16.load(packed.scales, np.uint64(t * lanes) + lane)
                    total = float32x16.multiply_add(level, scale, total)
                same[:] = sums[position]
                offset = float32x16.load(packed.scales, np.uint64(terms * lanes) + lane)
                total = float32x16.multiply_add(float32x16.load(same, np.uint64(0)), offset, total)
                float32x16.store(out, np.uint64(0), total)
                for half in range(min(2, (size.filters - block * 16 + 7) // 8)):
                    channel = block * 16 + half * 8
                    value = float32x8.load(out, np.uint64(half * 8))
                    finish(value, position, channel, size.filters - channel, ready)

    look_up_blocks.__name__ = look_up_blocks.__qualname__ = f"look_up_blocks{table_bits}_{finish.py_func.__name__}"
    fill_tables.__name__ = fill_tables.__qualname__ = f"fill_tables{table_bits}"
    return jit(fill_tables), jit(look_up_blocks)


class FewBitWeight:
    """A weight (O, C/groups, kh, kw) of terms whose dense bits are in that order, and offset float32 (O,) or None."""

    def __init__(self, shape: tuple[int, ...], groups: int, terms: Sequence[ScaledTerm], offset: np.ndarray | None):
        self.shape, self.groups = shape, groups
        filters = shape[0] // groups
        self.length = math.prod(shape[1:])
        self.per_word = word_bits()
        blocks = -(-filters // BLOCK)
        values = [(m, -m) if term.signed else (0, m) for term in terms for m in term.multipliers]
        self.signed = np.array([term.signed for term in terms for _ in term.multipliers], np.uint8)
        words = zeros_at_line((len(values), groups * blocks, -(-self.length // self.per_word), BLOCK), np.uint32)
        planes = (plane for term in terms for plane in term.dense)
        for to, plane in zip(words, planes, strict=True):
            self._lay_out(plane, to.reshape(groups, blocks, -1, BLOCK))
            release(plane)
        scales = np.zeros((len(terms) + 1, groups, blocks * BLOCK), np.float32)
        last = np.zeros(shape[0], np.float32) if offset is None else offset
        for row, scale in zip(scales, (*(term.scale for term in terms), last), strict=True):
            row[:, :filters] = scale.reshape(groups, filters)
        ends = np.cumsum([len(term.multipliers) for term in terms])
        self.expand = {1: expand_1_plane, 2: expand_2_planes}.get(len(values), expand)
        self.packed = Packed(
            words.reshape(-1),
            np.array(values, np.float32).reshape(-1),
            ends.astype(np.int64),
            scales.reshape(-1),
        )

    def _lay_out(self, plane: np.ndarray, to: np.ndarray) -> None:
        """Write a plane, uint8 dense bits, to (G, blocks, words, 16); a block of filters at a time."""
        o, channels, kh, kw = self.shape
        filters, size = o // self.groups, self.length
        for first in range(0, o, BLOCK if filters % BLOCK == 0 else 1):
            count = BLOCK if filters % BLOCK == 0 else 1
            begin, end = first * size, (first + count) * size
            bits = np.unpackbits(plane[begin // 8 : -(-end // 8)], bitorder="little")[begin % 8 :][: end - begin]
            in_order = bits.reshape(count, channels, kh * kw).swapaxes(1, 2).reshape(count, size)
            padded = np.zeros((count, to.shape[2] * self.per_word), np.uint8)
            padded[:, :size] = in_order
            by_word = np.zeros((count, to.shape[2], 32), np.uint8)
            by_word[..., : self.per_word] = padded.reshape(count, to.shape[2], self.per_word)
            packed = np.packbits(by_word, axis=-1, bitorder="little").view("<u4")[..., 0]
            group, f = divmod(first, filters)
            to[group, f // BLOCK, :, f % BLOCK : f % BLOCK + count] = packed.T

    def takes_few(self, positions: int) -> bool:
        """Whether so many positions of a product of matrices take less time by look-up than expanded."""
        if self.groups > 1 or isa() not in TABLE_BITS:
            return False
        return positions <= POSITIONS_TO_LOOK_UP.get(len(self.signed), FEWEST_POSITIONS_TO_LOOK_UP)

    def multiply(self, x: np.ndarray, positions: int, output: EpilogueOutput, kind: type) -> None:
        """Compute the products of x float32 flat (positions, C) with all filters by look-up."""
        fill_tables, look_up_blocks = look_up_kernels(TABLE_BITS[isa()], kind)
        bits = TABLE_BITS[isa()]
        groups = -(-self.length // bits)
        tables, sums = empty((positions * 2 * groups << bits,), np.float32), empty((positions,), np.float32)
        size = (positions, self.length, self.shape[0], groups)
        run_rows(fill_tables, positions, tables.size, x, tables, sums, size)
        blocks = -(-self.shape[0] // BLOCK)
        work = positions * len(self.signed) * blocks * groups * 4
        run_rows(look_up_blocks, blocks, work, tables, sums, tuple(self.packed), self.signed, size, tuple(output))
