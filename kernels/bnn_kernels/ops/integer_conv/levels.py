"""Levels of the input as unsigned numbers, one element each, with the border around the map.

An operand of bytes is unsigned on the side of the input and signed on that of the weights, so levels are shifted: with
planes b_p and multipliers m_p
    planes {0,1}:   level = sum m_p b_p            = u - base
    planes {-1,+1}: level = sum m_p (1 - 2 b_p)    = sum m_p + 2 base - 2 u,     u = sum m_p b_p + base >= 0
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.compile.jit import jit
from bnn_kernels.compile.simd.levels_x64 import spread
from bnn_kernels.ops.geometry import Maps
from bnn_kernels.runtime.arrays import new_array
from bnn_kernels.runtime.threads import run_rows

# Elements behind the map that may be read, though what is read there does not count.
SLACK = 128


class Sizes(NamedTuple):
    """Sizes of a map of words, its channels and border (py, px), and the words of a plane."""

    height: int
    width: int
    words: int
    channels: int
    py: int
    px: int
    plane: int


class InputCode(NamedTuple):
    """level = factor * u + shift with u in 0 .. largest, u = sum_p multipliers[p] * bit[p] + base."""

    factor: int
    shift: int
    largest: int
    base: int

    def of(self, level: int) -> int | None:
        """Return u of a level, None if it is no whole number in range."""
        u, rest = divmod(level - self.shift, self.factor)
        return u if rest == 0 and 0 <= u <= self.largest else None


def input_code(maps: Maps) -> InputCode:
    """Return how the levels of these planes become unsigned numbers."""
    base = -sum(m for m in maps.multipliers if m < 0)
    largest = sum(abs(m) for m in maps.multipliers)
    if maps.signed:
        return InputCode(-2, sum(maps.multipliers) + 2 * base, largest, base)
    return InputCode(1, -base, largest, base)


@functools.cache
def fill_kernel(bits: int) -> Any:
    """Return the kernel that writes rows (n, y) of a map, with its border, from words of bit planes.

    words uint64 flat (P, N, H, W, V); out int8 or int16 flat (N, H + 2 py, W + 2 px, C) and SLACK; multipliers int32
    (P,); size: `Sizes`; base: see `InputCode`; outside: the element of a pixel outside the map.
    """
    operations = spread(bits)
    filled, add_where, store = operations.filled, operations.add_where, operations.store

    def fill_elements(words, out, multipliers, size, base, outside, first, last):
        size = Sizes(*size)
        h, width, word_count, channels = size.height, size.width, size.words, size.channels
        py, px, plane = size.py, size.px, size.plane
        edge = px * channels
        whole = width * channels + 2 * edge
        scratch = np.empty(64, out.dtype)
        for row in range(first, last):
            n = row // (h + 2 * py)
            y = row - n * (h + 2 * py) - py
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
            out[to : to + edge] = outside

    fill_elements.__name__ = fill_elements.__qualname__ = f"fill_elements{bits}"
    return jit(fill_elements)


def elements_of(
    words: np.ndarray, channels: int, padding: tuple[int, int], dtype: Any, multipliers: np.ndarray, base: int,
    outside: int,
) -> np.ndarray:  # fmt: skip
    """Return the map of u, flat (N, H + 2 py, W + 2 px, C) and SLACK, of words uint64 (P, N, H, W, V)."""
    _, n, h, w, v = words.shape
    py, px = padding
    out = new_array((n * (h + 2 * py) * (w + 2 * px) * channels + SLACK,), dtype, "the input's levels")
    size = (h, w, v, channels, py, px, words[0].size)
    kernel = fill_kernel(8 * np.dtype(dtype).itemsize)
    element = out.dtype.type(np.uint16(outside).astype(out.dtype))  # 255 as an int8 is -1
    given = (words.reshape(-1), out, multipliers, size, np.int32(base), element)
    run_rows(kernel, n * (h + 2 * py), words.size, *given)
    return out
