"""The convolution kernel: lanes are filters, the inner step is popcount(a & w) of eight words at once.

A chunk of output positions at a time: the bits under the filter are gathered into windows (a few words each), then
every block of eight filters runs over the windows, four at a time. One step loads eight weight words, ands them with a
window's word in all lanes, counts and adds. LLVM makes vpopcntq of it where the CPU has AVX-512 VPOPCNTDQ (512
products in three instructions), byte shuffles on AVX2 and cnt on NEON. No sum runs across lanes; results of eight
neighbouring filters are stored together, or compared with their thresholds into one byte of the next layer's input.

`convolve` and `convolve_to_bits` are two loops on purpose: a branch between the two ways out inside the loop took
two to three times as long on 3x3 layers with 64 to 256 channels, because the sums no longer stay in registers.
"""

import numpy as np

from bnn_kernels import _simd
from bnn_kernels._jit import inline, jit
from bnn_kernels.conv_windows import CHUNK, fill_chunk, finish, store

LANES = _simd.LANES


@inline
def _count_4(windows, at, step, words, w, j):
    """popcount(window & w) of four windows, `step` words apart, against eight filters: four vectors."""
    s0 = s1 = s2 = s3 = _simd.zero_words()
    at1 = at + step
    at2 = at1 + step
    at3 = at2 + step
    for _ in range(words):
        x = _simd.load_words(w, j)
        s0 = _simd.add_words(s0, _simd.and_popcount(x, _simd.broadcast_word(windows, at)))
        s1 = _simd.add_words(s1, _simd.and_popcount(x, _simd.broadcast_word(windows, at1)))
        s2 = _simd.add_words(s2, _simd.and_popcount(x, _simd.broadcast_word(windows, at2)))
        s3 = _simd.add_words(s3, _simd.and_popcount(x, _simd.broadcast_word(windows, at3)))
        j += np.uint64(8)
        at += np.uint64(1)
        at1 += np.uint64(1)
        at2 += np.uint64(1)
        at3 += np.uint64(1)
    return s0, s1, s2, s3


@inline
def _count_1(windows, at, words, w, j):
    """The same for one window."""
    s = _simd.zero_words()
    for _ in range(words):
        s = _simd.add_words(s, _simd.and_popcount(_simd.load_words(w, j), _simd.broadcast_word(windows, at)))
        j += np.uint64(8)
        at += np.uint64(1)
    return s


@inline
def _sums_4(windows, i, words, w, j, weight_plane, pairs, planes, weight_planes):
    """Weighted sums over all pairs of planes for windows i .. i+3 and the eight filters at w[j:]."""
    t0 = t1 = t2 = t3 = _simd.splat(np.int32(0))
    for p in range(planes):
        at = np.uint64((p * CHUNK + i) * words)
        for q in range(weight_planes):
            s0, s1, s2, s3 = _count_4(windows, at, np.uint64(words), words, w, np.uint64(j + q * weight_plane))
            m = _simd.splat(pairs[p * weight_planes + q])
            t0 = _simd.add(t0, _simd.multiply(_simd.narrow(s0), m))
            t1 = _simd.add(t1, _simd.multiply(_simd.narrow(s1), m))
            t2 = _simd.add(t2, _simd.multiply(_simd.narrow(s2), m))
            t3 = _simd.add(t3, _simd.multiply(_simd.narrow(s3), m))
    return t0, t1, t2, t3


@inline
def _sums_1(windows, i, words, w, j, weight_plane, pairs, planes, weight_planes):
    """The same for window i."""
    t = _simd.splat(np.int32(0))
    for p in range(planes):
        at = np.uint64((p * CHUNK + i) * words)
        for q in range(weight_planes):
            s = _count_1(windows, at, words, w, np.uint64(j + q * weight_plane))
            t = _simd.add(t, _simd.multiply(_simd.narrow(s), _simd.splat(pairs[p * weight_planes + q])))
    return t


@jit
def convolve(rows, plane_size, w, y_kind, x_kind, offsets, ones, pairs, size, geometry, out, first, last):
    """out int32 flat (N, Ho, Wo, O) for the positions (n, oy, ox) first..last.

    rows uint64 flat (P, N, rows, G, row words), each plane of plane_size words, see `bit_rows`;
    w uint64 flat (Q, G, blocks, words, 8);
    y_kind int32 (Ho,), x_kind int32 (Wo,): their sum is the kind of border at a position;
    offsets int32 flat (kinds, G, padded filters): what taps and weights add there;
    ones int32 (P,): factor of a window's set bits; pairs int32 (P * Q,): factor of popcount(a & w);
    size = (Ho, Wo, rows, G, channels of a group, filters of a group, row words, Q);
    geometry = (kh, kw, sy, sx, dy, dx).
    """
    groups, filters, weight_planes = size[3], size[5], size[7]
    planes = len(ones)
    blocks = (filters + 7) // 8
    weight_plane = len(w) // weight_planes
    out_channels = groups * filters
    kinds = (y_kind, x_kind)
    scratch = np.empty(8, np.int32)
    constants = np.empty(CHUNK, np.int32)
    offset_at = np.empty(CHUNK, np.int64)
    window_words = weight_plane // (groups * blocks * 8)
    windows = np.zeros(planes * CHUNK * window_words, np.uint64)
    for start in range(first, last, CHUNK):
        count = min(CHUNK, last - start)
        for g in range(groups):
            words = fill_chunk(
                rows, plane_size, kinds, ones, size, geometry, g, start, count, windows, constants, offset_at
            )
            for b in range(blocks):
                j = (g * blocks + b) * words * 8
                left = filters - b * 8
                to = start * out_channels + g * filters + b * 8
                i = 0
                while i + 1 < count:
                    t = _sums_4(windows, i, words, w, j, weight_plane, pairs, planes, weight_planes)
                    for k in range(4):
                        if i + k < count:
                            value = finish(t[k], offsets, offset_at[i + k] + b * 8, constants[i + k])
                            store(out, to + (i + k) * out_channels, value, scratch, left)
                    i += 4
                if i < count:
                    one = _sums_1(windows, i, words, w, j, weight_plane, pairs, planes, weight_planes)
                    value = finish(one, offsets, offset_at[i] + b * 8, constants[i])
                    store(out, to + i * out_channels, value, scratch, left)


@jit
def convolve_to_bits(
    rows, plane_size, w, y_kind, x_kind, offsets, ones, pairs, size, geometry, bounds, flip, out, first, last
):
    """out uint8 flat (N, Ho, Wo, 8 V): bit = (sum < bound) xor flip, for the positions first..last.

    bounds int32 (O rounded up to 8,), flip uint8 (O / 8 rounded up,), both of all filters in a row; tail bits of both
    give 0. More than one group needs whole bytes of filters. The rest as in `convolve`.
    """
    groups, filters, weight_planes = size[3], size[5], size[7]
    planes = len(ones)
    blocks = (filters + 7) // 8
    weight_plane = len(w) // weight_planes
    row_bytes = (groups * filters + 63) // 64 * 8
    kinds = (y_kind, x_kind)
    constants = np.empty(CHUNK, np.int32)
    offset_at = np.empty(CHUNK, np.int64)
    window_words = weight_plane // (groups * blocks * 8)
    windows = np.zeros(planes * CHUNK * window_words, np.uint64)
    for start in range(first, last, CHUNK):
        count = min(CHUNK, last - start)
        for g in range(groups):
            words = fill_chunk(
                rows, plane_size, kinds, ones, size, geometry, g, start, count, windows, constants, offset_at
            )
            for b in range(blocks):
                block = g * blocks + b
                j = block * words * 8
                to = start * row_bytes + block
                t_at = np.uint64(block * 8)
                i = 0
                while i + 1 < count:
                    t = _sums_4(windows, i, words, w, j, weight_plane, pairs, planes, weight_planes)
                    for k in range(4):
                        if i + k < count:
                            value = finish(t[k], offsets, offset_at[i + k] + b * 8, constants[i + k])
                            mask = _simd.below(value, bounds, t_at)
                            out[to + (i + k) * row_bytes] = np.uint8(mask) ^ flip[block]
                    i += 4
                if i < count:
                    one = _sums_1(windows, i, words, w, j, weight_plane, pairs, planes, weight_planes)
                    value = finish(one, offsets, offset_at[i] + b * 8, constants[i])
                    out[to + i * row_bytes] = np.uint8(_simd.below(value, bounds, t_at)) ^ flip[block]
