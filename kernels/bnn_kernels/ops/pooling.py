"""Pooling, channels last: floats, integers and bits.

Max pooling commutes with everything monotone, so a maximum over floats behind an integer layer is a maximum or (in
a falling channel) a minimum over integers; and over sign bits, where the larger value +1 is bit 0, a maximum is an
AND and a minimum an OR.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bnn_kernels.bits.tensor import BitTensor
from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.compile.simd import float32x16
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty

LANES = float32x16.LANES
# Numbers of a window that are summed one after the other: the error of a sum of n floats grows with n.
BLOCK = 16


class Window(NamedTuple):
    """A pooling window of (kh, kw) pixels with stride (sy, sx), padding (py, px) and dilation (dy, dx)."""

    kh: int
    kw: int
    sy: int
    sx: int
    py: int
    px: int
    dy: int
    dx: int


class Sizes(NamedTuple):
    """Sizes of a channels-last map and of its output."""

    height: int
    width: int
    channels: int
    out_height: int
    out_width: int


def pooled_size(extent: Sequence[int], geometry: Sequence[int]) -> tuple[int, int]:
    """Return (Ho, Wo) of a `Window` over (H, W), rounded down; ValueError if none fits, or one has only pads."""
    kernel, stride, padding, dilation = (tuple(geometry[i : i + 2]) for i in range(0, 8, 2))
    sizes = []
    for e, k, s, p, d in zip(extent, kernel, stride, padding, dilation, strict=True):
        sizes.append((e + 2 * p - d * (k - 1) - 1) // s + 1)
        # In a window that begins before the map, the first number from 0 on is the start modulo the dilation.
        early = np.arange(-p, 0, s)[: max(sizes[-1], 0)] % d
        if sizes[-1] < 1 or (early >= e).any():
            spread = f" with dilation {dilation}" if max(dilation) > 1 else ""
            raise ValueError(
                f"a {kernel} pooling window{spread} does not fit a {tuple(extent)} map with padding {padding}"
            )
    return sizes[0], sizes[1]


@inline
def _start(base, step):
    """The first of base, base + step, ... that is not negative."""
    return base if base >= 0 else base + (-base + step - 1) // step * step


@inline
def _two_sum(total, part):
    """(s, e) with s + e = total + part exactly and s the rounded sum (Knuth, TAOCP 2, 4.2.2, theorem B)."""
    s = float32x16.add(total, part)
    from_part = float32x16.subtract(s, total)
    from_total = float32x16.subtract(s, from_part)
    return s, float32x16.add(float32x16.subtract(total, from_total), float32x16.subtract(part, from_part))


@inline
def mean_of_window(x, at, window, size, count, out, to):
    """out[to :] (C) = sum over window = (height, width) pixels of x flat (.., W, C) from `at` on, divided by count.

    Blocks of the window are summed in order, and what is rounded off where blocks are added is kept beside the sum. So
    the error is one of a block, however large the window is.
    """
    ny, nx = window
    channels = size.channels
    vectors = channels - channels % 16
    for c in range(0, vectors, 16):
        total, lost, part = float32x16.zero(), float32x16.zero(), float32x16.zero()
        left = BLOCK
        for iy in range(ny):
            for ix in range(nx):
                place = at + (iy * size.width + ix) * channels + c
                part = float32x16.add(part, float32x16.load(x, np.uint64(place)))
                left -= 1
                if left == 0:
                    total, error = _two_sum(total, part)
                    lost = float32x16.add(lost, error)
                    part = float32x16.zero()
                    left = BLOCK
        total, error = _two_sum(total, part)
        total = float32x16.add(total, float32x16.add(lost, error))
        float32x16.store(out, np.uint64(to + c), float32x16.divide(total, count))
    for c in range(vectors, channels):
        sum_ = np.float32(0)
        if ny * nx <= BLOCK:
            for iy in range(ny):
                for ix in range(nx):
                    sum_ += x[at + (iy * size.width + ix) * channels + c]
        else:
            wide = np.float64(0)
            for iy in range(ny):
                for ix in range(nx):
                    wide += x[at + (iy * size.width + ix) * channels + c]
            sum_ = np.float32(wide)
        out[to + c] = sum_ / count


@jit
def _max_pool(x, out, size, geometry, first, last):
    """out flat (N, Ho, Wo, C) = maximum of x flat (N, H, W, C); rows are (n, oy).

    size: `Sizes`; geometry: `Window`.
    """
    window = Window(*geometry)
    size = Sizes(*size)
    h, w, channels = size.height, size.width, size.channels
    vectors = channels - channels % 16
    for row in range(first, last):
        n = row // size.out_height
        oy = row - n * size.out_height
        y0 = _start(oy * window.sy - window.py, window.dy)
        y1 = min(h, oy * window.sy - window.py + (window.kh - 1) * window.dy + 1)
        for ox in range(size.out_width):
            x0 = _start(ox * window.sx - window.px, window.dx)
            x1 = min(w, ox * window.sx - window.px + (window.kw - 1) * window.dx + 1)
            start = ((n * h + y0) * w + x0) * channels
            to = (row * size.out_width + ox) * channels
            for c in range(0, vectors, 16):
                best = float32x16.load(x, np.uint64(start + c))
                for iy in range(0, y1 - y0, window.dy):
                    for ix in range(0, x1 - x0, window.dx):
                        at = start + (iy * w + ix) * channels + c
                        best = float32x16.maximum(float32x16.load(x, np.uint64(at)), best)
                float32x16.store(out, np.uint64(to + c), best)
            for c in range(vectors, channels):
                top = x[start + c]
                for iy in range(0, y1 - y0, window.dy):
                    for ix in range(0, x1 - x0, window.dx):
                        value = x[start + (iy * w + ix) * channels + c]
                        # A NaN wins, as in PyTorch.
                        if value > top or value != value:
                            top = value
                out[to + c] = top


@jit
def _extreme_pool(x, rising, out, geometry, first, last):
    """The same over int32, with the minimum in channels where rising (uint8) is 0."""
    window = Window(*geometry)
    h, w, channels = x.shape[1], x.shape[2], x.shape[3]
    for row in range(first, last):
        n = row // out.shape[1]
        oy = row - n * out.shape[1]
        y0 = _start(oy * window.sy - window.py, window.dy)
        y1 = min(h, oy * window.sy - window.py + (window.kh - 1) * window.dy + 1)
        for ox in range(out.shape[2]):
            x0 = _start(ox * window.sx - window.px, window.dx)
            x1 = min(w, ox * window.sx - window.px + (window.kw - 1) * window.dx + 1)
            for c in range(channels):
                best = x[n, y0, x0, c]
                for iy in range(y0, y1, window.dy):
                    for ix in range(x0, x1, window.dx):
                        value = x[n, iy, ix, c]
                        best = max(best, value) if rising[c] else min(best, value)
                out[n, oy, ox, c] = best


@jit
def _pool_signs(words, or_mask, out, geometry, first, last):
    """out uint64 (N, Ho, Wo, V): AND over the window, OR where or_mask (V,) has a bit."""
    window = Window(*geometry)
    h, w = words.shape[1], words.shape[2]
    for row in range(first, last):
        n = row // out.shape[1]
        oy = row - n * out.shape[1]
        y0 = _start(oy * window.sy - window.py, window.dy)
        y1 = min(h, oy * window.sy - window.py + (window.kh - 1) * window.dy + 1)
        for ox in range(out.shape[2]):
            x0 = _start(ox * window.sx - window.px, window.dx)
            x1 = min(w, ox * window.sx - window.px + (window.kw - 1) * window.dx + 1)
            for v in range(words.shape[3]):
                every = ~np.uint64(0)
                some = np.uint64(0)
                for iy in range(y0, y1, window.dy):
                    for ix in range(x0, x1, window.dx):
                        every &= words[n, iy, ix, v]
                        some |= words[n, iy, ix, v]
                out[n, oy, ox, v] = (every & ~or_mask[v]) | (some & or_mask[v])


@jit
def _avg_pool(x, out, size, geometry, first, last):
    """The same as `_max_pool` with the mean; what lies outside the map counts as zeros."""
    window = Window(*geometry)
    size = Sizes(*size)
    area = np.float32(window.kh * window.kw)
    for row in range(first, last):
        n = row // size.out_height
        oy = row - n * size.out_height
        y0 = max(0, oy * window.sy - window.py)
        y1 = min(size.height, oy * window.sy - window.py + window.kh)
        for ox in range(size.out_width):
            x0 = max(0, ox * window.sx - window.px)
            x1 = min(size.width, ox * window.sx - window.px + window.kw)
            at = ((n * size.height + y0) * size.width + x0) * size.channels
            mean_of_window(x, at, (y1 - y0, x1 - x0), size, area, out, (row * size.out_width + ox) * size.channels)


def _run(kernel, x: np.ndarray, geometry: tuple[int, ...], *more: np.ndarray) -> np.ndarray:
    ho, wo = pooled_size(x.shape[1:3], geometry)
    out = empty((x.shape[0], ho, wo, x.shape[3]), x.dtype)
    work = out.size * geometry[0] * geometry[1]
    run_rows(kernel, x.shape[0] * ho, work, x, *more, out, geometry)
    return out


def _run_floats(kernel, x: np.ndarray, geometry: tuple[int, ...]) -> np.ndarray:
    n, h, w, channels = x.shape
    ho, wo = pooled_size((h, w), geometry)
    out = empty((n, ho, wo, channels), np.float32)
    work = out.size * geometry[0] * geometry[1] // float32x16.LANES
    run_rows(kernel, n * ho, work, x.reshape(-1), out.reshape(-1), (h, w, channels, ho, wo), geometry)
    return out


def max_pool(x: np.ndarray, geometry: tuple[int, ...]) -> np.ndarray:
    """Maximum over contiguous float32 (N, H, W, C); geometry: a `Window`, pads never win."""
    return _run_floats(_max_pool, x, geometry)


def avg_pool(x: np.ndarray, geometry: tuple[int, ...]) -> np.ndarray:
    """Mean over contiguous float32 (N, H, W, C); pads count as zeros (PyTorch's default), no dilation."""
    return _run_floats(_avg_pool, x, geometry)


def extreme_pool(x: np.ndarray, rising: np.ndarray, geometry: tuple[int, ...]) -> np.ndarray:
    """Maximum over int32 (N, H, W, C) where rising uint8 (C,) is 1, minimum where it is 0."""
    return _run(_extreme_pool, x, geometry, rising)


def pool_signs(bits: BitTensor, or_mask: np.ndarray, geometry: tuple[int, ...]) -> BitTensor:
    """Maximum of signs (AND of bits), minimum (OR) where or_mask uint64 (V,) has a bit."""
    words = _run(_pool_signs, bits.words[0], geometry, or_mask)
    shape = (bits.shape[0], bits.shape[1], *words.shape[1:3])
    return BitTensor(words[None], shape, bits.signed, bits.multipliers)
