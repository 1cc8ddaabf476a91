"""From numbers to the bit planes of their levels, eight channels at a time.

A level index is how many thresholds a number reaches, level = #{i : (x >= t[i]) xor flip}, and its planes are the bits
of codes[level]. Going up one level flips the bits codes[i] ^ codes[i - 1], so plane p is bit p of codes[0], flipped by
the comparison with every threshold i whose step flips bit p: comparisons and xors of bytes, no counting and no search.
With many levels a search of each number takes fewer steps; both are here, for float32 and int32 alike.
"""

import numpy as np

from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.compile.simd import float32x8

# Levels up to here are compared with one by one.
MOST_COMPARED = 33


@inline
def search(value, t, channel, falls):
    """Return the level; thresholds that count come first: t ascends, or descends where the channel falls."""
    level = 0
    end = t.shape[0]
    while level < end:
        middle = (level + end) >> 1
        if (value >= t[middle, channel]) ^ falls:
            level = middle + 1
        else:
            end = middle
    return level


@jit
def level_bits(x, t, flip, codes, compares, words, nan, first, last):
    """words uint64 (P, R, V), zeroed, of x float32 or int32 (R, C); nan[0] = 1 if a NaN was met.

    t (L-1, C) of x's dtype, in each channel ascending where flip uint8 (C,) is 0 and descending where it is 1;
    codes uint8 (L,); compares: whether to compare eight channels with all thresholds rather than search for each.
    """
    channels = x.shape[1]
    planes, _rows, word_count = words.shape
    whole = channels - channels % 8 if compares else 0
    as_bytes = words.reshape(-1).view(np.uint8)
    plane_bytes = words.shape[1] * word_count * 8
    flat, bounds = x.reshape(-1), t.reshape(-1)
    falls = np.zeros(whole // 8 + 1, np.uint64)
    for c in range(whole):
        falls[c >> 3] |= np.uint64(flip[c]) << np.uint64(c & 7)
    sums = np.empty(planes, np.uint64)
    bad = False
    for row in range(first, last):
        for c in range(0, whole, 8):
            at = np.uint64(row * channels + c)
            for p in range(planes):
                sums[p] = np.uint64(255) * np.uint64((codes[0] >> p) & 1)
            for i in range(t.shape[0]):
                reached = ~float32x8.less_mask(flat, at, bounds, np.uint64(i * channels + c)) ^ falls[c >> 3]
                step = codes[i] ^ codes[i + 1]
                for p in range(planes):
                    if (step >> p) & 1:
                        sums[p] ^= reached
            bad |= float32x8.nan_mask(flat, at) != 0
            for p in range(planes):
                as_bytes[p * plane_bytes + row * word_count * 8 + (c >> 3)] = np.uint8(sums[p] & np.uint64(255))
        for c in range(whole, channels):
            value = x[row, c]
            bad |= value != value
            code = np.uint64(codes[search(value, t, c, flip[c] != 0)])
            for p in range(planes):
                words[p, row, c >> 6] |= ((code >> np.uint64(p)) & np.uint64(1)) << np.uint64(c & 63)
    if bad:
        nan[0] = 1


def in_order(t: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """Return thresholds (L-1, C) in the order that `level_bits` takes; the order does not change their count.

    They are the ones given, if those are in order, and else a copy; both can be written to.
    """
    ascending = np.sort(t, axis=0)
    ordered = np.where(flip, ascending[::-1], ascending)
    whole = t.flags.writeable and t.flags.c_contiguous and np.array_equal(t, ordered)
    return t if whole else np.ascontiguousarray(ordered)
