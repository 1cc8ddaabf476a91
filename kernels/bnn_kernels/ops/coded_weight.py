"""Weights of 4 to 8 bits for float inputs, held as codes: several side by side in a word, one word for each filter.

One term whose multipliers are powers of two is a whole number u of P bits, scaled:
    w[o, k] = scale[o] * (factor * u[o, k] + shift),     0 <= u < 2**P
A shift, a mask, a conversion and a multiply-add make sixteen filters' levels of it, whatever P is; planes, see
`few_bit_weight`, would take that for every plane. Of 4 bits AVX-512 makes levels by one permutation of a table of all
sixteen. With few positions the levels are multiplied as they are made, and the sums scaled; with many a block's weights
are written to the cache first.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.compile.isa import isa
from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.compile.simd import float32x8, float32x16
from bnn_kernels.compile.simd.float_tables import codes, entry, load_words
from bnn_kernels.ops.few_bit_weight import BLOCK, ScaledTerm
from bnn_kernels.ops.finishing import EpilogueOutput, addresses, finisher
from bnn_kernels.runtime.cache_lines import zeros_at_line
from bnn_kernels.runtime.mapped import release
from bnn_kernels.runtime.threads import run_rows

FEWEST_PLANES = 4
# Up to so many positions levels are made again for each of them: about 5 instructions for 16 products instead of 1.
FEW_POSITIONS = 4


class Coded(NamedTuple):
    """What the kernels read.

    words: uint32 flat (blocks of all groups, words of a filter, 16), in the order (kh, kw, C) of a window, the first
    code lowest. factor, shift: float32 (16,), the same in all lanes. table: float32 (16,), the levels of u = 0 .. 15.
    scales: float32 flat (blocks * 16,).
    """

    words: np.ndarray
    factor: np.ndarray
    shift: np.ndarray
    table: np.ndarray
    scales: np.ndarray


class Sizes(NamedTuple):
    """Sizes of a product of matrices."""

    positions: int
    inputs: int
    filters: int


def _levels(bits: int) -> tuple[Any, Any]:
    """Return (level, rest): level(words, factor, shift, table) of the lowest codes, and the words without them."""
    lowest, rest = codes(bits)
    if bits == 4 and isa() == "avx512":

        @inline
        def looked_up(words, factor, shift, table):
            return entry(table, words)

        return looked_up, rest

    @inline
    def computed(words, factor, shift, table):
        return float32x16.multiply_add(lowest(words), factor, shift)

    return computed, rest


@functools.cache
def expander(bits: int) -> Any:
    """Return the function that writes float32 (length, 16) of a block to `to`, flat."""
    level_of, rest = _levels(bits)
    first, start = np.uint64(0), 0

    def expand_codes(coded, block, length, per_word, to):
        coded = Coded(*coded)
        word_count = (length + per_word - 1) // per_word
        factor, shift = float32x16.load(coded.factor, first), float32x16.load(coded.shift, first)
        table = float32x16.load(coded.table, first)
        scale = float32x16.load(coded.scales, np.uint64(block * 16))
        k = start
        for word in range(word_count):
            words = load_words(coded.words, np.uint64((block * word_count + word) * 16))
            for _ in range(min(per_word, length - k)):
                level = level_of(words, factor, shift, table)
                float32x16.store(to, np.uint64(k * 16), float32x16.multiply(level, scale))
                words = rest(words)
                k += 1

    # The name is part of that of the kernel that it goes into, by which machine code is cached.
    expand_codes.__name__ = expand_codes.__qualname__ = f"expand_codes{bits}_{level_of.py_func.__name__}"
    return inline(expand_codes)


@functools.cache
def product_kernel(bits: int, kind: type) -> Any:
    """Return the kernel over blocks of sixteen filters: x float32 flat (positions, inputs); size: `Sizes`."""
    level_of, rest = _levels(bits)
    finish, per_word = finisher(kind), 32 // bits
    zero, one, two, three, four = (np.uint64(i) for i in range(5))

    @inline
    def step(x, at, words, factor, shift, table, total):
        return float32x16.multiply_add(float32x16.broadcast(x, at), level_of(words, factor, shift, table), total)

    def multiply_codes(x, coded, size, output, first, last):
        size, coded = Sizes(*size), Coded(*coded)
        ready = addresses(output)
        word_count = (size.inputs + per_word - 1) // per_word
        whole = size.inputs // per_word
        factor, shift = float32x16.load(coded.factor, zero), float32x16.load(coded.shift, zero)
        table = float32x16.load(coded.table, zero)
        out = np.zeros(16, np.float32)
        for block in range(first, last):
            scale = float32x16.load(coded.scales, np.uint64(block * 16))
            for position in range(size.positions):
                # Four sums: an addition takes four cycles.
                s0 = s1 = s2 = s3 = float32x16.zero()
                at = np.uint64(position * size.inputs)
                j = np.uint64(block * word_count * 16)
                for _ in range(whole):
                    words = load_words(coded.words, j)
                    j += np.uint64(16)
                    for _ in range(per_word // 4):
                        s0 = step(x, at, words, factor, shift, table, s0)
                        words = rest(words)
                        s1 = step(x, at + one, words, factor, shift, table, s1)
                        words = rest(words)
                        s2 = step(x, at + two, words, factor, shift, table, s2)
                        words = rest(words)
                        s3 = step(x, at + three, words, factor, shift, table, s3)
                        words = rest(words)
                        at += four
                    for _ in range(per_word % 4):
                        s0 = step(x, at, words, factor, shift, table, s0)
                        words = rest(words)
                        at += one
                if whole < word_count:
                    words = load_words(coded.words, j)
                    for _ in range(size.inputs - whole * per_word):
                        s0 = step(x, at, words, factor, shift, table, s0)
                        words = rest(words)
                        at += one
                total = float32x16.add(float32x16.add(s0, s1), float32x16.add(s2, s3))
                float32x16.store(out, zero, float32x16.multiply(total, scale))
                for half in range(min(2, (size.filters - block * 16 + 7) // 8)):
                    channel = block * 16 + half * 8
                    value = float32x8.load(out, np.uint64(half * 8))
                    finish(value, position, channel, size.filters - channel, ready)

    name = f"multiply_codes{bits}_{level_of.py_func.__name__}_{finish.py_func.__name__}"
    multiply_codes.__name__ = multiply_codes.__qualname__ = name
    return jit(multiply_codes)


class CodedWeight:
    """A weight (O, C/groups, kh, kw) of one term whose dense bits are in that order; see `fits`."""

    def __init__(self, shape: tuple[int, ...], groups: int, term: ScaledTerm):
        self.shape, self.groups, self.bits = shape, groups, len(term.multipliers)
        self.length, self.per_word = math.prod(shape[1:]), 32 // self.bits
        filters = shape[0] // groups
        blocks = -(-filters // BLOCK)
        words = zeros_at_line((groups, blocks, -(-self.length // self.per_word), BLOCK), np.uint32)
        base = -sum(m for m in term.multipliers if m < 0)
        for o in range(shape[0]):
            group, f = divmod(o, filters)
            words[group, f // BLOCK, :, f % BLOCK] = self._words(term, o, base)
        release(term.dense)
        scales = np.zeros((groups, blocks * BLOCK), np.float32)
        scales[:, :filters] = term.scale.reshape(groups, filters)
        factor, shift = (-2, sum(term.multipliers) + 2 * base) if term.signed else (1, -base)
        same = functools.partial(np.full, BLOCK, dtype=np.float32)
        table = (factor * np.arange(16) + shift).astype(np.float32)
        self.packed = Coded(words.reshape(-1), same(factor), same(shift), table, scales.reshape(-1))
        self.expand = expander(self.bits)

    def _words(self, term: ScaledTerm, o: int, base: int) -> np.ndarray:
        """Return the words of a filter, uint32."""
        begin, end = o * self.length, (o + 1) * self.length
        u = np.full(self.length, base, np.int64)
        for plane, multiplier in zip(term.dense, term.multipliers, strict=True):
            bits = np.unpackbits(plane[begin // 8 : -(-end // 8)], bitorder="little")[begin % 8 :][: self.length]
            u += multiplier * bits.astype(np.int64)
        in_order = u.reshape(self.shape[1], -1).T.reshape(-1)
        padded = np.zeros(-(-self.length // self.per_word) * self.per_word, np.int64)
        padded[: self.length] = in_order
        shifts = np.arange(self.per_word) * self.bits
        return (padded.reshape(-1, self.per_word) << shifts).sum(1).astype(np.uint32)

    @staticmethod
    def fits(terms: list[ScaledTerm], offset: np.ndarray | None) -> bool:
        """Whether these terms are one whole number of at least `FEWEST_PLANES` bits, scaled."""
        if len(terms) != 1 or offset is not None:
            return False
        magnitudes = sorted(abs(m) for m in terms[0].multipliers)
        return len(magnitudes) >= FEWEST_PLANES and magnitudes == [1 << p for p in range(len(magnitudes))]

    def takes_few(self, positions: int) -> bool:
        """Whether so many positions of a product of matrices take less time without expanded weights."""
        return self.groups == 1 and positions <= FEW_POSITIONS

    def multiply(self, x: np.ndarray, positions: int, output: EpilogueOutput, kind: type) -> None:
        """Compute the products of x float32 flat (positions, C) with all filters."""
        size = (positions, self.length, self.shape[0])
        blocks = -(-self.shape[0] // BLOCK)
        work = positions * blocks * self.length * 2
        run_rows(product_kernel(self.bits, kind), blocks, work, x, tuple(self.packed), size, tuple(output))
