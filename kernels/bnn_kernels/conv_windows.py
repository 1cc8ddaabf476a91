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
def _fill_window(rows, line, row_step, bit, kernel, channels, run_words, tail, windows, to):
    """Gather the bits under a filter at bit `bit` of row `line` into windows[to:]; return how many are set."""
    kh, kw, dx = kernel
    total = np.uint64(0)
    for ky in range(kh):
        at = line + ky * row_step
        base = to + ky * run_words
        if dx == 1:
            shift = np.uint64(bit & 63)
            source = np.uint64(at + (bit >> 6))
            for v in range(run_words):
                k = np.uint64(v)
                word = rows[source + k]
                if shift != 0:
                    word = (word >> shift) | (rows[source + k + np.uint64(1)] << (np.uint64(64) - shift))
                windows[base + v] = word
            windows[base + run_words - 1] &= tail
        else:
            for v in range(run_words):
                windows[base + v] = np.uint64(0)
            for kx in range(kw):
                gather(rows, at, bit + kx * dx * channels, channels, windows, base, kx * channels)
        for v in range(run_words):
            total += popcount(windows[base + v])
    return np.int64(total)


@inline
def fill_chunk(rows, plane_size, kinds, ones, size, geometry, g, start, count, windows, constants, offset_at):
    """Fill the windows of `count` positions for group g, and what each adds to its sums: a number, and a place."""
    y_kind, x_kind = kinds
    ho, wo, height, groups, channels, filters, row_words = size[:7]
    kh, kw, sy, sx, dy, dx = geometry
    run_words = (kw * channels + 63) >> 6
    words = kh * run_words
    spare = (kw * channels) & 63
    tail = ~np.uint64(0) if spare == 0 else (np.uint64(1) << np.uint64(spare)) - np.uint64(1)
    lanes = (filters + 7) // 8 * 8
    row_step = dy * groups * row_words
    for i in range(count):
        position = start + i
        n = position // (ho * wo)
        oy = (position - n * ho * wo) // wo
        ox = position - (n * ho + oy) * wo
        offset_at[i] = ((y_kind[oy] + x_kind[ox]) * groups + g) * lanes
        line = ((n * height + oy * sy) * groups + g) * row_words
        total = np.int32(0)
        for p in range(len(ones)):
            to = (p * CHUNK + i) * words
            at = p * plane_size + line
            bits = _fill_window(
                rows, at, row_step, ox * sx * channels, (kh, kw, dx), channels, run_words, tail, windows, to
            )
            total += ones[p] * np.int32(bits)
        constants[i] = total
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
