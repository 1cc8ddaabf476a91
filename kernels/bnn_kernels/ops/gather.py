"""Gathers from channels-last maps: rows, columns and channels by index, with zeros where the index is -1."""

from typing import NamedTuple

import numpy as np

from bnn_kernels.compile.jit import jit
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty

# What is copied at a time: numbers by themselves, runs of channels of a pixel, or whole rows.
NUMBERS, PIXELS, ROWS = 0, 1, 2


class Sizes(NamedTuple):
    """Sizes of a map and of the output; unit: what is copied at a time; first: the first channel of a run."""

    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    out_channels: int
    unit: int
    first: int


@jit
def _copy(x, at, out, to, count):
    source = x[at : at + count]
    target = out[to : to + count]
    for i in range(len(target)):  # from 0 on: no index can be negative, and this becomes memcpy
        target[i] = source[i]


@jit
def _zero(out, to, count):
    target = out[to : to + count]
    for i in range(len(target)):
        target[i] = 0


@jit
def _gather(x, rows, columns, channels, out, size, first, last):
    """Rows (n, oy) of out flat (N, Ho, Wo, Co) from x flat (N, H, W, C); rows, columns, channels int32; `Sizes`."""
    size = Sizes(*size)
    length = size.out_width * size.out_channels
    for row in range(first, last):
        n = row // size.out_height
        iy = rows[row - n * size.out_height]
        if iy < 0:
            _zero(out, row * length, length)
            continue
        start = (n * size.height + iy) * size.width * size.channels
        if size.unit == ROWS:
            _copy(x, start, out, row * length, length)
            continue
        for ox in range(size.out_width):
            to = row * length + ox * size.out_channels
            ix = columns[ox]
            at = start + ix * size.channels
            if ix < 0:
                _zero(out, to, size.out_channels)
            elif size.unit == PIXELS:
                _copy(x, at + size.first, out, to, size.out_channels)
            else:
                for c in range(size.out_channels):
                    out[to + c] = x[at + channels[c]] if channels[c] >= 0 else 0


def _is_run(index: np.ndarray) -> bool:
    return bool(index[0] >= 0) and bool((np.diff(index) == 1).all())


def gather(x: np.ndarray, rows: np.ndarray, columns: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """Return float32 (N, Ho, Wo, Co) of contiguous float32 (N, H, W, C); indices int32, inside the map or -1."""
    n, height, width, depth = x.shape
    out = empty((n, len(rows), len(columns), len(channels)), np.float32)
    unit = PIXELS if _is_run(channels) else NUMBERS
    whole = unit == PIXELS and len(channels) == depth and len(columns) == width and _is_run(columns)
    counts = len(rows), len(columns), len(channels)
    size = Sizes(height, width, depth, *counts, ROWS if whole else unit, int(channels[0]))
    work = out.size // (1 if unit == NUMBERS else 8)
    run_rows(_gather, n * len(rows), work, x.reshape(-1), rows, columns, channels, out.reshape(-1), tuple(size))
    return out
