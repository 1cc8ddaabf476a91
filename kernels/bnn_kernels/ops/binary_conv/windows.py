"""Windows: the bits under the filter at an output position, gathered for a chunk of positions at a time.

A window is one run of bits for each filter row, rounded up to words, taps outside the map 0. Runs are copied eight
words at a time: what is written past a run's end is overwritten by the next run, so the last one needs room behind it
(`window_words`), and so do the rows that are read (`bit_rows.SLACK`).
"""

from typing import NamedTuple

import numpy as np

from bnn_kernels.compile.jit import inline
from bnn_kernels.compile.simd import uint64x8
from bnn_kernels.ops.binary_conv.rows import gather


class Sizes(NamedTuple):
    """Sizes of a convolution on rows of bits.

    rows: of an image with its border; channels, filters: of a group; row_words: of a row of a group, see `rows`;
    planes: of the input.
    """

    out_height: int
    out_width: int
    rows: int
    groups: int
    channels: int
    filters: int
    row_words: int
    planes: int


class Taps(NamedTuple):
    """A filter of (kh, kw) taps on the map, with stride (sy, sx) and dilation (dy, dx)."""

    kh: int
    kw: int
    sy: int
    sx: int
    dy: int
    dx: int


class Kinds(NamedTuple):
    """Kinds of border, see `geometry.Border`: y_kind int32 (Ho,), x_kind int32 (Wo,)."""

    y_kind: np.ndarray
    x_kind: np.ndarray


@inline
def window_words(planes, chunk, words):
    """Return the words of the windows of a chunk of positions, with room for what is written past the end."""
    return planes * chunk * words + 8


@inline
def _copy_run(rows, at, run_words, windows, to):
    """Copy a run that begins with a word."""
    for v in range(0, run_words, 8):
        k = np.uint64(v)
        uint64x8.store(windows, to + k, uint64x8.load(rows, at + k))


@inline
def _shift_run(rows, at, shift, run_words, windows, to):
    """Copy a run that begins at bit `shift` of a word, 1 .. 63."""
    for v in range(0, run_words, 8):
        k = np.uint64(v)
        words = uint64x8.load(rows, at + k)
        following = uint64x8.load(rows, at + k + np.uint64(1))
        uint64x8.store(windows, to + k, uint64x8.funnel(words, following, shift))


@inline
def _gather_run(rows, at, bit, kw, channels, tap_bits, run_words, windows, to):
    """Copy a dilated run tap by tap."""
    for v in range(run_words):
        windows[to + v] = np.uint64(0)
    for kx in range(kw):
        gather(rows, at, bit + kx * tap_bits, channels, windows, to, kx * channels)


@inline
def fill_chunk(rows, plane_size, kinds, size, taps, g, start, count, chunk, windows, kind_at):
    """Fill the windows of `count` positions for group g: uint64 flat (planes, chunk, words).

    rows uint64 flat, see `rows.bit_rows`; kinds: `Kinds`; size: `Sizes`; taps: `Taps`;
    kind_at int64 (chunk,): where the table rows of a position's kind of border begin, in lanes.
    """
    ho, wo, groups, channels, row_words = size.out_height, size.out_width, size.groups, size.channels, size.row_words
    kh, kw, sx, dx = taps.kh, taps.kw, taps.sx, taps.dx
    run_words = (kw * channels + 63) >> 6
    words = kh * run_words
    spare = (kw * channels) & 63
    tail = ~np.uint64(0) if spare == 0 else (np.uint64(1) << np.uint64(spare)) - np.uint64(1)
    lanes = (size.filters + 7) // 8 * 8
    row_step = taps.dy * groups * row_words
    # Plane by plane, position by position, so that what is written too far is overwritten afterwards.
    for p in range(size.planes):
        n = start // (ho * wo)
        oy = (start - n * ho * wo) // wo
        ox = start - (n * ho + oy) * wo
        to = p * chunk * words
        for i in range(count):
            kind_at[i] = ((kinds.y_kind[oy] + kinds.x_kind[ox]) * groups + g) * lanes
            base = p * plane_size + ((n * size.rows + oy * taps.sy) * groups + g) * row_words
            bit = ox * sx * channels
            shift = np.uint64(bit & 63)
            for _ in range(kh):
                if dx != 1:
                    _gather_run(rows, base, bit, kw, channels, dx * channels, run_words, windows, to)
                elif shift == 0:
                    _copy_run(rows, np.uint64(base + (bit >> 6)), run_words, windows, np.uint64(to))
                else:
                    _shift_run(rows, np.uint64(base + (bit >> 6)), shift, run_words, windows, np.uint64(to))
                to += run_words
                windows[to - 1] &= tail
                base += row_step
            ox += 1
            if ox == wo:
                ox = 0
                oy += 1
                if oy == ho:
                    oy = 0
                    n += 1


@inline
def begin_chunk(kinds, size, taps, g, start, count, begin, kind_at):
    """Note where the windows of `count` positions begin in rows of whole words, where nothing need be gathered.

    begin uint64, kind_at int64 (chunk,), see `fill_chunk`; size.channels are a multiple of 64.
    """
    ho, wo = size.out_height, size.out_width
    lanes = (size.filters + 7) // 8 * 8
    n = start // (ho * wo)
    oy = (start - n * ho * wo) // wo
    ox = start - (n * ho + oy) * wo
    groups, pixel = size.groups, np.uint64(taps.sx * (size.channels >> 6))
    i = 0
    while i < count:
        # Along a row of the map nothing changes but the place in it.
        here = min(count - i, wo - ox)
        kind = kinds.y_kind[oy]
        at = np.uint64(((n * size.rows + oy * taps.sy) * groups + g) * size.row_words) + np.uint64(ox) * pixel
        for k in range(here):
            kind_at[i + k] = ((kind + kinds.x_kind[ox + k]) * groups + g) * lanes
            begin[i + k] = at + np.uint64(k) * pixel
        i += here
        ox = 0
        oy += 1
        if oy == ho:
            oy = 0
            n += 1


def word_offsets(size: Sizes, taps: Taps, whole: bool) -> np.ndarray:
    """Return uint64 (words,): how far behind a window's first word its others lie.

    whole: in rows of whole words, see `begin_chunk`; else in windows that are gathered.
    """
    if not whole:
        return np.arange(taps.kh * ((taps.kw * size.channels + 63) >> 6), dtype=np.uint64)
    words = size.channels >> 6
    y, x, c = np.ogrid[: taps.kh, : taps.kw, :words]
    return (y * taps.dy * size.groups * size.row_words + x * taps.dx * words + c).reshape(-1).astype(np.uint64)
