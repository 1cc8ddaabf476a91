"""Dense rows of bits: the form in which a convolution reads its input.

The bits of one row of the map, border included, follow each other without gaps: pixel x, channel c of a group is bit
x * channels + c. The bits under one row of a filter are then one run, whatever the number of channels.
"""

from typing import NamedTuple

import numpy as np

from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.ops.geometry import Frame
from bnn_kernels.runtime.arrays import new_array
from bnn_kernels.runtime.threads import run_rows


@inline
def gather(a, at, bit, count, to_array, to, position):
    """OR `count` bits, from bit `bit` of a[at:], into to_array[to:] from bit `position` on."""
    moved = 0
    while moved < count:
        source = bit + moved
        target = position + moved
        step = min(64 - (source & 63), 64 - (target & 63), count - moved)
        word = a[at + (source >> 6)] >> np.uint64(source & 63)
        if step < 64:
            word &= (np.uint64(1) << np.uint64(step)) - np.uint64(1)
        to_array[to + (target >> 6)] |= word << np.uint64(target & 63)
        moved += step


@inline
def _set_ones(to_array, to, position, count):
    """Set `count` bits of to_array[to:] from bit `position` on."""
    for bit in range(position, position + count):
        to_array[to + (bit >> 6)] |= np.uint64(1) << np.uint64(bit & 63)


class Sizes(NamedTuple):
    """Sizes of a map of words, its `Frame`, groups, channels of a group, and `row_length` in words."""

    height: int
    width: int
    words: int
    top: int
    left: int
    bottom: int
    right: int
    groups: int
    channels: int
    row_words: int


@jit
def _fill_rows(a, rows, size, pad_bit, first, last):
    """rows uint64 flat (N, top + H + bottom, G, row words), zeroed; rows first..last of (n, y).

    a uint64 flat (N, H, W, V); size: `Sizes`.
    """
    size = Sizes(*size)
    h, width, words, groups, channels = size.height, size.width, size.words, size.groups, size.channels
    row_words, lines = size.row_words, size.top + h + size.bottom
    edge, behind = size.left * channels, size.right * channels
    for row in range(first, last):
        n = row // lines
        y = row - n * lines - size.top
        for g in range(groups):
            to = (row * groups + g) * row_words
            if not 0 <= y < h:
                if pad_bit:
                    _set_ones(rows, to, 0, edge + width * channels + behind)
                continue
            if pad_bit:
                _set_ones(rows, to, 0, edge)
                _set_ones(rows, to, edge + width * channels, behind)
            at = (n * h + y) * width * words
            if edge & 63 == 0 and groups == 1 and channels & 63 == 0:
                for v in range(width * words):
                    rows[to + (edge >> 6) + v] = a[at + v]
                continue
            for x in range(width):
                gather(a, at + x * words, g * channels, channels, rows, to, edge + x * channels)


# Words behind the rows that may be read, though what is read there does not count.
SLACK = 16


def row_length(width: int, channels: int, frame: Frame) -> int:
    """Return the words of one row of `width` pixels with a border."""
    return -(-(frame.left + width + frame.right) * channels // 64)


def bit_rows(planes: np.ndarray, channels: int, groups: int, frame: Frame, pad_bits: tuple[bool, ...]) -> np.ndarray:
    """Return uint64 flat (P, N, top + H + bottom, G, row words) and SLACK words, of words uint64 (P, N, H, W, V).

    channels: of a group; pad_bits: each plane's bit outside the map; row words: see `row_length`.
    """
    p, n, h, w, _ = planes.shape
    row_words = row_length(w, channels, frame)
    lines = n * (frame.top + h + frame.bottom)
    size = lines * groups * row_words
    rows = new_array((p * size + SLACK,), np.uint64, f"the input with its border {tuple(frame)}", zeros=True)
    shape = (h, w, planes.shape[4], *frame, groups, channels, row_words)
    for index, (words, bit) in enumerate(zip(planes, pad_bits, strict=True)):
        out = rows[index * size : (index + 1) * size]
        run_rows(_fill_rows, lines, words.size, words.reshape(-1), out, shape, bit)
    return rows
