"""Products of two tensors of levels that both depend on the input, as the scores of attention: nothing is known before.

With the planes a_p and multipliers m_p of a level, see `level_bytes`, let u = sum m_p a_p and level = alpha + beta u,
where planes {0,1} have alpha = 0 and beta = 1, planes {-1,+1} alpha = sum m_p and beta = -2. Then over K products

    sum level level' = beta beta' sum u u' + alpha beta' sum u' + alpha' beta sum u + K alpha alpha'
    sum u u' = sum over pairs of planes of m_p m'_q popcount(a_p & a'_q)

Few pairs of planes are counted, eight columns at a time as the filters of a layer are (`binary_conv.popcount`), for
which the words of the second operand are laid out anew. Of more pairs the levels are multiplied, as 16-bit numbers.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.bits.level_bytes import LevelBytes, LevelTensor, level_code
from bnn_kernels.bits.planes import level_of_code
from bnn_kernels.bits.sum_range import largest_level, largest_sum
from bnn_kernels.bits.tensor import BitTensor, words_for
from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.compile.popcount import popcount
from bnn_kernels.compile.simd import float32x8, int32x8, uint64x8, vector_math
from bnn_kernels.compile.simd.int32_products import dots
from bnn_kernels.ops.binary_conv.popcount import bare, counters, weighted
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty

# Up to so many pairs of planes are counted.
MOST_PAIRS = 4
# Rows of the first operand that go over a block of columns while its words are in the L1 cache.
CHUNK = 16
# Columns of a block whose levels are multiplied: two vectors of sums.
COLUMNS = 16
_SHORTS = dots(8, "shorts")
_zero, _load, _broadcast = _SHORTS.zero, _SHORTS.load, _SHORTS.broadcast
_dot, _store = _SHORTS.dot, _SHORTS.store


class Planes(NamedTuple):
    """Planes of an operand: level = alpha + beta * sum multipliers[p] * bit[p]."""

    alpha: int
    beta: int
    multipliers: tuple[int, ...]

    @classmethod
    def of(cls, multipliers: tuple[int, ...], signed: bool) -> "Planes":
        """Return the planes of multipliers, {-1,+1} or {0,1}."""
        return cls(sum(multipliers), -2, multipliers) if signed else cls(0, 1, multipliers)


class Sizes(NamedTuple):
    """rows, columns: of a product; words: of a row; groups: products in all; blocks: of eight or COLUMNS columns."""

    rows: int
    columns: int
    words: int
    groups: int
    blocks: int


class Factors(NamedTuple):
    """What counts become: counts * both + row sums * of_row + constants of columns, as float32 times scale."""

    both: np.int32
    of_row: np.int32
    scale: np.float32


def counts(multipliers: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether a product of operands of these planes counts bits; else it multiplies levels."""
    return len(multipliers) * len(other) <= MOST_PAIRS


@jit
def _lay_out(words, multipliers, size, of_column, constant, lanes, constants, first, last):
    """Rows are blocks of eight columns, of all groups: their words side by side, and what is constant in them.

    words uint64 (Q, groups * columns, V); lanes uint64 flat (Q, groups, blocks, V, 8), 0 where there is no column;
    constants int32 flat (groups, blocks, 8) = constant + of_column * sum u.
    """
    size = Sizes(*size)
    for row in range(first, last):
        g = row // size.blocks
        start = (row - g * size.blocks) * 8
        for i in range(8):
            total = np.int64(0)
            column = start + i
            for q in range(len(multipliers)):
                at = ((q * size.groups * size.blocks + row) * size.words) * 8 + i
                ones = np.uint64(0)
                for v in range(size.words):
                    word = words[q, g * size.columns + column, v] if column < size.columns else np.uint64(0)
                    lanes[at + 8 * v] = word
                    ones += popcount(word)
                total += multipliers[q] * np.int64(ones)
            constants[row * 8 + i] = np.int32(constant + of_column * total)


@functools.cache
def _count_kernel(single: bool) -> Any:
    """Return the kernel for one pair of planes, or for more.

    kernel(words, lanes, multipliers, pairs, constants, size, factors, y, first, last) computes chunks of CHUNK rows, of
    all groups; words uint64 flat (P, groups * rows, V); pairs int32 (P * Q,); y float32 flat (groups, rows, columns).
    """
    counted = counters(uint64x8.and_popcount)
    sums_4, sums_1 = bare(*counted) if single else weighted(*counted)

    def product_of_bits(words, lanes, multipliers, pairs, constants, size, factors, y, first, last):
        size, factors = Sizes(*size), Factors(*factors)
        rows, columns, count_of_words = size.rows, size.columns, size.words
        plane_words = size.groups * rows * count_of_words
        lane_plane = size.groups * size.blocks * count_of_words * 8
        planes = len(multipliers)
        chunks = (rows + CHUNK - 1) // CHUNK
        both = int32x8.splat(factors.both)
        of_rows = np.empty(CHUNK, np.int32)
        scale = np.full(8, factors.scale, np.float32)
        scales = float32x8.load(scale, np.uint64(0))
        scratch = np.empty(8, np.float32)
        for share in range(first, last):
            g = share // chunks
            start = (share - g * chunks) * CHUNK
            count = min(CHUNK, rows - start)
            row = g * rows + start
            for i in range(count):
                total = np.int64(0)
                for p in range(planes):
                    ones = np.uint64(0)
                    at = p * plane_words + (row + i) * count_of_words
                    for v in range(count_of_words):
                        ones += popcount(words[at + v])
                    total += multipliers[p] * np.int64(ones)
                of_rows[i] = np.int32(factors.of_row * total)
            for b in range(size.blocks):
                block = g * size.blocks + b
                j = block * count_of_words * 8
                left = columns - b * 8
                of_columns = int32x8.load(constants, np.uint64(block * 8))
                i = 0
                while i < count:
                    if i == count - 1 or count < 4:
                        one = sums_1(words, row + i, count_of_words, plane_words, lanes, j, lane_plane, pairs, planes)
                        t, tile, here = (one, one, one, one), i, 1
                    else:
                        # A last tile of two or three rows begins earlier and writes some sums again.
                        tile, here = min(i, count - 4), 4
                        t = sums_4(words, row + tile, count_of_words, plane_words, lanes, j, lane_plane, pairs, planes)
                    for k in range(here):
                        total = int32x8.add(int32x8.multiply(t[k], both), of_columns)
                        total = int32x8.add(total, int32x8.splat(of_rows[tile + k]))
                        made = vector_math.multiply(vector_math.as_floats(total), scales)
                        at = (row + tile + k) * columns + b * 8
                        if left >= 8:
                            float32x8.store(y, np.uint64(at), made)
                        else:
                            float32x8.store(scratch, np.uint64(0), made)
                            for c in range(left):
                                y[at + c] = scratch[c]
                    i = tile + here

    product_of_bits.__name__ = product_of_bits.__qualname__ = f"product_of_bits_{'one' if single else 'many'}"
    return jit(product_of_bits)


@jit
def _levels_of_words(words, table, channels, padded, out, first, last):
    """Rows of out int16 flat (R, padded): levels, table int16 (2^P,), of words uint64 (P, R, V); 0 behind them."""
    for row in range(first, last):
        at = row * padded
        for c in range(padded):
            code = np.uint64(0)
            if c < channels:
                for p in range(len(words)):
                    code |= ((words[p, row, c >> 6] >> np.uint64(c & 63)) & np.uint64(1)) << np.uint64(p)
                out[at + c] = table[code]
            else:
                out[at + c] = 0


@jit
def _levels_of_bytes(u, factor, shift, channels, padded, out, first, last):
    """Rows of out int16 flat (R, padded): levels of bytes uint8 flat (R, channels); 0 behind them."""
    for row in range(first, last):
        given, to = u[row * channels : (row + 1) * channels], out[row * padded : (row + 1) * padded]
        for c in range(len(given)):
            to[c] = np.int16(factor * np.int32(given[c]) + shift)
        for c in range(len(given), len(to)):
            to[c] = 0


@jit
def _pair_up(levels, padded, size, lanes, first, last):
    """Rows are blocks of 16 columns, of all groups, in lanes int16 flat (groups, blocks, padded / 2, 16, 2).

    levels int16 flat (groups * columns, padded); 0 where there is no column.
    """
    size = Sizes(*size)
    for row in range(first, last):
        g = row // size.blocks
        start = (row - g * size.blocks) * COLUMNS
        to = row * padded * COLUMNS
        for i in range(COLUMNS):
            there = start + i < size.columns
            at = (g * size.columns + start + i) * padded
            for k in range(0, padded, 2):
                place = to + k * COLUMNS + 2 * i
                lanes[place] = levels[at + k] if there else np.int16(0)
                lanes[place + 1] = levels[at + k + 1] if there else np.int16(0)


@inline
def _four_rows(a, at, padded, lanes, j):
    """Sums of four rows of a, from element `at` on, with a block of 16 columns, from `j` on: two vectors for each."""
    s0 = s1 = s2 = s3 = _zero()
    t0 = t1 = t2 = t3 = _zero()
    at1 = at + np.uint64(padded)
    at2 = at1 + np.uint64(padded)
    at3 = at2 + np.uint64(padded)
    for _ in range(padded >> 1):
        left, right = _load(lanes, j), _load(lanes, j + np.uint64(COLUMNS))
        x = _broadcast(a, at)
        s0, t0 = _dot(s0, x, left), _dot(t0, x, right)
        x = _broadcast(a, at1)
        s1, t1 = _dot(s1, x, left), _dot(t1, x, right)
        x = _broadcast(a, at2)
        s2, t2 = _dot(s2, x, left), _dot(t2, x, right)
        x = _broadcast(a, at3)
        s3, t3 = _dot(s3, x, left), _dot(t3, x, right)
        j += np.uint64(2 * COLUMNS)
        at += np.uint64(2)
        at1 += np.uint64(2)
        at2 += np.uint64(2)
        at3 += np.uint64(2)
    return (s0, s1, s2, s3), (t0, t1, t2, t3)


@jit
def _product_of_levels(a, lanes, padded, size, scale, y, first, last):
    """Chunks of CHUNK rows, of all groups, of y float32 flat (groups, rows, columns): exact sums times scale.

    a int16 flat (groups * rows, padded), of which some rows more may be read; lanes: see `_pair_up`.
    """
    size = Sizes(*size)
    rows, columns = size.rows, size.columns
    chunks = (rows + CHUNK - 1) // CHUNK
    sums = np.empty(COLUMNS, np.int32)
    for share in range(first, last):
        g = share // chunks
        start = (share - g * chunks) * CHUNK
        count = min(CHUNK, rows - start)
        for b in range(size.blocks):
            j = np.uint64((g * size.blocks + b) * padded * COLUMNS)
            here = min(COLUMNS, columns - b * COLUMNS)
            for i in range(0, count, 4):
                row = g * rows + start + i
                left, right = _four_rows(a, np.uint64(row * padded), padded, lanes, j)
                for k in range(min(4, count - i)):
                    _store(sums, np.uint64(0), left[k])
                    _store(sums, np.uint64(8), right[k])
                    to = (row + k) * columns + b * COLUMNS
                    for c in range(here):
                        y[to + c] = np.float32(sums[c]) * scale


def _as_levels(x: LevelTensor, padded: int) -> np.ndarray:
    """Return int16 flat (N * H * W + 3, padded): the levels of each place; the last three hold anything."""
    channels = x.shape[1]
    rows = int(np.prod(x.map_size))
    out = empty((rows + 3) * padded, np.int16)
    if isinstance(x, LevelBytes):
        code = level_code(x.multipliers, x.signed)
        arguments = (x.data, np.int32(code.factor), np.int32(code.shift))
        run_rows(_levels_of_bytes, rows, out.size // 4, *arguments, channels, padded, out)
    else:
        table = level_of_code(x.multipliers, x.signed).astype(np.int16)
        words = x.words.reshape(len(x.words), rows, x.words.shape[-1])
        run_rows(_levels_of_words, rows, 4 * out.size, words, table, channels, padded, out)
    return out


def product_of_levels(a: LevelTensor, b: LevelTensor, scale: float) -> np.ndarray:
    """Return float32 (N, H, R, C): scale * sum over k of a[n, k, h, r] * b[n, k, h, c], the sums exact integers.

    a: levels (N, K, H, R); b: levels (N, K, H, C), of any planes. ValueError if they do not fit, or if a sum may be
    too large for int32.
    """
    if len(a.shape) != 4 or len(b.shape) != 4 or a.shape[:3] != b.shape[:3]:
        raise ValueError(f"levels (N, K, H, R) and (N, K, H, C) are multiplied, got {a.shape} and {b.shape}")
    n, summed, heads, rows = a.shape
    columns = b.shape[3]
    largest_sum(summed, largest_level(a.multipliers, a.signed), largest_level(b.multipliers, b.signed))
    y = empty((n, heads, rows, columns), np.float32)
    flat, groups = y.reshape(-1), n * heads
    if counts(a.multipliers, b.multipliers) and isinstance(a, BitTensor) and isinstance(b, BitTensor):
        _count(a, b, Sizes(rows, columns, words_for(summed), groups, -(-columns // 8)), scale, flat)
    else:
        _multiply(a, b, Sizes(rows, columns, 0, groups, -(-columns // COLUMNS)), scale, flat)
    return y


def _multiply(a: LevelTensor, b: LevelTensor, size: Sizes, scale: float, y: np.ndarray) -> None:
    padded = a.shape[1] + a.shape[1] % 2
    x, w = _as_levels(a, padded), _as_levels(b, padded)
    blocks = size.groups * size.blocks
    lanes = empty(blocks * padded * COLUMNS, np.int16)
    run_rows(_pair_up, blocks, lanes.size, w, padded, tuple(size), lanes)
    shares = size.groups * -(-size.rows // CHUNK)
    work = size.groups * size.rows * size.blocks * padded
    run_rows(_product_of_levels, shares, work, x, lanes, padded, tuple(size), np.float32(scale), y)


def _count(a: BitTensor, b: BitTensor, size: Sizes, scale: float, y: np.ndarray) -> None:
    mine, theirs = Planes.of(a.multipliers, a.signed), Planes.of(b.multipliers, b.signed)
    summed = a.shape[1]
    words = b.words.reshape(len(b.words), size.groups * size.columns, size.words)
    lanes = empty(len(words) * size.groups * size.blocks * size.words * 8, np.uint64)
    constants = empty(size.groups * size.blocks * 8, np.int32)
    of_column, constant = mine.alpha * theirs.beta, summed * mine.alpha * theirs.alpha
    own, other = (np.array(planes.multipliers, np.int64) for planes in (mine, theirs))
    run_rows(
        _lay_out,
        size.groups * size.blocks,
        lanes.size,
        words,
        other,
        tuple(size),
        of_column,
        constant,
        lanes,
        constants,
    )
    pairs = np.multiply.outer(own, other).astype(np.int32).reshape(-1)
    factors = Factors(np.int32(mine.beta * theirs.beta), np.int32(theirs.alpha * mine.beta), np.float32(scale))
    shares = size.groups * -(-size.rows // CHUNK)
    work = size.groups * size.rows * size.columns * size.words * len(pairs)
    kernel = _count_kernel(len(pairs) == 1)
    run_rows(kernel, shares, work, a.words.reshape(-1), lanes, own, pairs, constants, tuple(size), tuple(factors), y)
