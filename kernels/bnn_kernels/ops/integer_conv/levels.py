"""Levels of the input as unsigned numbers, one element each, with the border around the map.

An operand of bytes is unsigned on the side of the input and signed on that of the weights, so levels are shifted, see
`bits.level_bytes`. Where they come as bytes already and need no border, they are read where they are.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.bits.level_bytes import SLACK, LevelBytes, LevelCode, level_code
from bnn_kernels.compile.jit import jit
from bnn_kernels.compile.simd.levels_x64 import spread
from bnn_kernels.ops.geometry import Frame, Maps
from bnn_kernels.runtime.arrays import new_array
from bnn_kernels.runtime.threads import run_rows


class Sizes(NamedTuple):
    """Sizes of a map of words, its channels and `Frame`, and the words of a plane."""

    height: int
    width: int
    words: int
    channels: int
    top: int
    left: int
    bottom: int
    right: int
    plane: int


def input_code(maps: Maps) -> LevelCode:
    """Return how the levels of these maps become unsigned numbers."""
    return level_code(maps.multipliers, maps.signed)


@functools.cache
def fill_kernel(bits: int) -> Any:
    """Return the kernel that writes rows (n, y) of a map, with its border, from words of bit planes.

    words uint64 flat (P, N, H, W, V); out int8 or int16 flat (N, H', W', C), the map in its `Frame`, and SLACK;
    multipliers int32 (P,); size: `Sizes`; base: see `LevelCode`; outside: the element of a pixel outside the map.
    """
    operations = spread(bits)
    filled, add_where, store = operations.filled, operations.add_where, operations.store

    def fill_elements(words, out, multipliers, size, base, outside, first, last):
        size = Sizes(*size)
        h, width, word_count, channels = size.height, size.width, size.words, size.channels
        plane, lines = size.plane, size.top + h + size.bottom
        edge, behind = size.left * channels, size.right * channels
        whole = edge + width * channels + behind
        scratch = np.empty(64, out.dtype)
        for row in range(first, last):
            n = row // lines
            y = row - n * lines - size.top
            at, end = row * whole, (row + 1) * whole
            if not 0 <= y < h:
                out[at : at + whole] = outside
                continue
            out[at : at + edge] = outside
            to = at + edge
            source = (n * h + y) * width * word_count
            for _ in range(width):
                for v in range(word_count):
                    total = filled(base)
                    for p in range(len(multipliers)):
                        total = add_where(total, words[p * plane + source + v], multipliers[p])
                    here = min(64, channels - v * 64)
                    # What is written behind a pixel's channels is overwritten by the next ones; behind a row is another
                    # thread's.
                    if to + 64 <= end:
                        store(out, np.uint64(to), total)
                    else:
                        store(scratch, np.uint64(0), total)
                        out[to : to + here] = scratch[:here]
                    to += here
                source += word_count
            out[to : to + behind] = outside

    fill_elements.__name__ = fill_elements.__qualname__ = f"fill_elements{bits}"
    return jit(fill_elements)


def elements_of(
    words: np.ndarray, channels: int, frame: Frame, dtype: Any, multipliers: np.ndarray, base: int,
    outside: int,
) -> np.ndarray:  # fmt: skip
    """Return the map of u in a frame, flat (N, H', W', C) and SLACK, of words uint64 (P, N, H, W, V)."""
    _, n, h, w, v = words.shape
    lines = n * (frame.top + h + frame.bottom)
    out = new_array((lines * (frame.left + w + frame.right) * channels + SLACK,), dtype, "the input's levels")
    size = (h, w, v, channels, *frame, words[0].size)
    kernel = fill_kernel(8 * np.dtype(dtype).itemsize)
    element = out.dtype.type(np.uint16(outside).astype(out.dtype))  # 255 as an int8 is -1
    given = (words.reshape(-1), out, multipliers, size, np.int32(base), element)
    run_rows(kernel, lines, words.size, *given)
    return out


@jit
def _frame_bytes(u, out, size, outside, first, last):
    """Rows (n, y) of out int8 or int16 flat, the map u uint8 flat (N, H, W, C) in its frame: outside around it.

    size: height, width * channels, rows above and below, channels of the columns left and right.
    """
    h, line, top, bottom, edge, behind = size
    whole, lines = edge + line + behind, top + h + bottom
    for row in range(first, last):
        n = row // lines
        y = row - n * lines - top
        to = out[row * whole : (row + 1) * whole]
        if not 0 <= y < h:
            for i in range(whole):
                to[i] = outside
            continue
        at = u[(n * h + y) * line : (n * h + y + 1) * line]
        left, middle, right = to[:edge], to[edge : edge + line], to[edge + line :]
        for i in range(edge):
            left[i] = outside
        for i in range(behind):
            right[i] = outside
        for i in range(line):
            middle[i] = at[i]


def elements_of_bytes(x: LevelBytes, frame: Frame, dtype: Any, outside: int) -> np.ndarray:
    """Return the map of u as `elements_of` does, of levels that are bytes: their own memory where that will do."""
    kind = np.dtype(dtype)
    if not any(frame) and kind.itemsize == 1:
        return x.data.view(kind)
    (n, h, w), channels = x.map_size, x.shape[1]
    lines = n * (frame.top + h + frame.bottom)
    out = new_array((lines * (frame.left + w + frame.right) * channels + SLACK,), kind, "the input's levels")
    # Bytes are written as bytes: a negative int8 is the byte above 127.
    to = out.view(np.uint8) if kind.itemsize == 1 else out
    size = (h, w * channels, frame.top, frame.bottom, frame.left * channels, frame.right * channels)
    run_rows(_frame_bytes, lines, out.size // 8, x.data, to, size, to.dtype.type(outside))
    return out
