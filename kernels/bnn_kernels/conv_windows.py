"""What every convolution kernel begins and ends with: windows of input bits, and sums on their way out.

A window is the bits under the filter at one output position: one run for each filter row, rounded up to words, taps
outside the map 0.
"""

import numpy as np

from bnn_kernels import _simd
from bnn_kernels._jit import inline
from bnn_kernels._popcount import popcount
from bnn_kernels.bit_rows import gather

# Positions of a chunk: windows stay in the L1 cache up to about 100 words each.
CHUNK = 32


@inline
def _copy_runs(rows, at, row_step, kh, run_words, tail, windows, to):
    """Copy kh runs that begin with a word; return how many bits are set."""
    total = np.uint64(0)
    for _ in range(kh):
        for v in range(run_words):
            word = rows[at + np.uint64(v)]
            if v == run_words - 1:
                word &= tail
            windows[to + np.uint64(v)] = word
            total += popcount(word)
        at += row_step
        to += np.uint64(run_words)
    return total


@inline
def _shift_runs(rows, at, shift, row_step, kh, run_words, tail, windows, to):
    """The same for runs that begin at bit `shift` of a word, 1 .. 63."""
    total = np.uint64(0)
    back = np.uint64(64) - shift
    for _ in range(kh):
        word = rows[at]
        for v in range(run_words):
            following = rows[at + np.uint64(v + 1)]
            run = (word >> shift) | (following << back)
            word = following
            if v == run_words - 1:
                run &= tail
            windows[to + np.uint64(v)] = run
            total += popcount(run)
        at += row_step
        to += np.uint64(run_words)
    return total


@inline
def _gather_runs(rows, line, row_step, bit, kernel, channels, run_words, windows, to):
    """The same for dilated filters, tap by tap."""
    kh, kw, dx = kernel
    total = np.uint64(0)
    for ky in range(kh):
        base = to + ky * run_words
        for v in range(run_words):
            windows[base + v] = np.uint64(0)
        for kx in range(kw):
            gather(rows, line + ky * row_step, bit + kx * dx * channels, channels, windows, base, kx * channels)
        for v in range(run_words):
            total += popcount(windows[base + v])
    return total


@inline
def fill_chunk(rows, plane_size, kinds, ones, size, geometry, g, start, count, windows, constants, offset_at):
    """Fill the windows of `count` positions for group g; return the words of a window.

    constants: what its set bits add to each position's sums; offset_at: where what taps and weights add lies.
    """
    y_kind, x_kind = kinds
    ho, wo, height, groups, channels, filters, row_words = size[:7]
    kh, kw, sy, sx, dy, dx = geometry
    run_words = (kw * channels + 63) >> 6
    words = kh * run_words
    spare = (kw * channels) & 63
    tail = ~np.uint64(0) if spare == 0 else (np.uint64(1) << np.uint64(spare)) - np.uint64(1)
    lanes = (filters + 7) // 8 * 8
    row_step = dy * groups * row_words
    n = start // (ho * wo)
    oy = (start - n * ho * wo) // wo
    ox = start - (n * ho + oy) * wo
    for i in range(count):
        offset_at[i] = ((y_kind[oy] + x_kind[ox]) * groups + g) * lanes
        line = ((n * height + oy * sy) * groups + g) * row_words
        bit = ox * sx * channels
        total = np.int32(0)
        shift = np.uint64(bit & 63)
        step = np.uint64(row_step)
        for p in range(len(ones)):
            first = p * plane_size + line
            at = np.uint64(first + (bit >> 6))
            to = (p * CHUNK + i) * words
            if dx != 1:
                taps = (kh, kw, dx)
                set_bits = _gather_runs(rows, first, row_step, bit, taps, channels, run_words, windows, to)
            elif shift == 0:
                set_bits = _copy_runs(rows, at, step, kh, run_words, tail, windows, np.uint64(to))
            else:
                set_bits = _shift_runs(rows, at, shift, step, kh, run_words, tail, windows, np.uint64(to))
            total += ones[p] * np.int32(set_bits)
        constants[i] = total
        ox += 1
        if ox == wo:
            ox = 0
            oy += 1
            if oy == ho:
                oy = 0
                n += 1
    return words


@inline
def finish(sums, offsets, at, constant):
    """Return eight sums with what taps, weights and the window's set bits add."""
    return _simd.add(_simd.add(sums, _simd.load_int32(offsets, np.uint64(at))), _simd.splat(constant))


@inline
def store(out, to, value, scratch, count):
    """Write the first `count` lanes of int32."""
    if count >= 8:
        _simd.store_int32(out, np.uint64(to), value)
    else:
        _simd.store_int32(scratch, np.uint64(0), value)
        for k in range(count):
            out[to + k] = scratch[k]
