"""Pooling, channels last: floats, integers and bits.

Max pooling commutes with everything monotone, so a maximum over floats behind an integer layer is a maximum or (in
a falling channel) a minimum over integers; and over sign bits, where the larger value +1 is bit 0, a maximum is an
AND and a minimum an OR.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bnn_kernels.bits.tensor import BitTensor
from bnn_kernels.compile.jit import jit
from bnn_kernels.compile.simd import float32x16
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty


class Window(NamedTuple):
    """A pooling window of (kh, kw) pixels with stride (sy, sx) and padding (py, px)."""

    kh: int
    kw: int
    sy: int
    sx: int
    py: int
    px: int


class Sizes(NamedTuple):
    """Sizes of a channels-last map and of its output."""

    height: int
    width: int
    channels: int
    out_height: int
    out_width: int


def pooled_size(
    extent: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, int]:
    """Return (Ho, Wo) of a pooling window over (H, W), rounded down; ValueError if nothing fits."""
    height, width = ((e + 2 * p - k) // s + 1 for e, k, s, p in zip(extent, kernel, stride, padding, strict=True))
    if min(height, width) < 1:
        raise ValueError(
            f"a {tuple(kernel)} pooling window does not fit a {tuple(extent)} map with padding {tuple(padding)}"
        )
    return height, width


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
        y0 = max(0, oy * window.sy - window.py)
        y1 = min(h, oy * window.sy - window.py + window.kh)
        for ox in range(size.out_width):
            x0 = max(0, ox * window.sx - window.px)
            x1 = min(w, ox * window.sx - window.px + window.kw)
            start = ((n * h + y0) * w + x0) * channels
            to = (row * size.out_width + ox) * channels
            for c in range(0, vectors, 16):
                best = float32x16.load(x, np.uint64(start + c))
                for iy in range(y1 - y0):
                    for ix in range(x1 - x0):
                        at = start + (iy * w + ix) * channels + c
                        best = float32x16.maximum(float32x16.load(x, np.uint64(at)), best)
                float32x16.store(out, np.uint64(to + c), best)
            for c in range(vectors, channels):
                top = x[start + c]
                for iy in range(y1 - y0):
                    for ix in range(x1 - x0):
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
        y0 = max(0, oy * window.sy - window.py)
        y1 = min(h, oy * window.sy - window.py + window.kh)
        for ox in range(out.shape[2]):
            x0 = max(0, ox * window.sx - window.px)
            x1 = min(w, ox * window.sx - window.px + window.kw)
            for c in range(channels):
                best = x[n, y0, x0, c]
                for iy in range(y0, y1):
                    for ix in range(x0, x1):
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
        for ox in range(out.shape[2]):
            for v in range(words.shape[3]):
                every = ~np.uint64(0)
                some = np.uint64(0)
                for iy in range(max(0, oy * window.sy - window.py), min(h, oy * window.sy - window.py + window.kh)):
                    for ix in range(max(0, ox * window.sx - window.px), min(w, ox * window.sx - window.px + window.kw)):
                        every &= words[n, iy, ix, v]
                        some |= words[n, iy, ix, v]
                out[n, oy, ox, v] = (every & ~or_mask[v]) | (some & or_mask[v])


@jit
def _avg_pool(x, out, size, geometry, first, last):
    """The same with the mean; what lies outside the map counts as zeros."""
    window = Window(*geometry)
    size = Sizes(*size)
    h, w, channels = size.height, size.width, size.channels
    vectors = channels - channels % 16
    area = np.float32(window.kh * window.kw)
    for row in range(first, last):
        n = row // size.out_height
        oy = row - n * size.out_height
        y0 = max(0, oy * window.sy - window.py)
        y1 = min(h, oy * window.sy - window.py + window.kh)
        for ox in range(size.out_width):
            x0 = max(0, ox * window.sx - window.px)
            x1 = min(w, ox * window.sx - window.px + window.kw)
            start = ((n * h + y0) * w + x0) * channels
            to = (row * size.out_width + ox) * channels
            for c in range(0, vectors, 16):
                total = float32x16.zero()
                for iy in range(y1 - y0):
                    for ix in range(x1 - x0):
                        total = float32x16.add(
                            total, float32x16.load(x, np.uint64(start + (iy * w + ix) * channels + c))
                        )
                float32x16.store(out, np.uint64(to + c), float32x16.divide(total, area))
            for c in range(vectors, channels):
                sum_ = np.float32(0)
                for iy in range(y1 - y0):
                    for ix in range(x1 - x0):
                        sum_ += x[start + (iy * w + ix) * channels + c]
                out[to + c] = sum_ / area


def _run(kernel, x: np.ndarray, geometry: tuple[int, ...], *more: np.ndarray) -> np.ndarray:
    ho, wo = pooled_size(x.shape[1:3], geometry[:2], geometry[2:4], geometry[4:])
    out = empty((x.shape[0], ho, wo, x.shape[3]), x.dtype)
    work = out.size * geometry[0] * geometry[1]
    run_rows(kernel, x.shape[0] * ho, work, x, *more, out, geometry)
    return out


def _run_floats(kernel, x: np.ndarray, geometry: tuple[int, ...]) -> np.ndarray:
    n, h, w, channels = x.shape
    ho, wo = pooled_size((h, w), geometry[:2], geometry[2:4], geometry[4:])
    out = empty((n, ho, wo, channels), np.float32)
    work = out.size * geometry[0] * geometry[1] // float32x16.LANES
    run_rows(kernel, n * ho, work, x.reshape(-1), out.reshape(-1), (h, w, channels, ho, wo), geometry)
    return out


def max_pool(x: np.ndarray, geometry: tuple[int, ...]) -> np.ndarray:
    """Maximum over contiguous float32 (N, H, W, C); geometry = (kh, kw, sy, sx, py, px), pads never win."""
    return _run_floats(_max_pool, x, geometry)


def avg_pool(x: np.ndarray, geometry: tuple[int, ...]) -> np.ndarray:
    """Mean over contiguous float32 (N, H, W, C); pads count as zeros (PyTorch's default)."""
    return _run_floats(_avg_pool, x, geometry)


def extreme_pool(x: np.ndarray, rising: np.ndarray, geometry: tuple[int, ...]) -> np.ndarray:
    """Maximum over int32 (N, H, W, C) where rising uint8 (C,) is 1, minimum where it is 0."""
    return _run(_extreme_pool, x, geometry, rising)


def pool_signs(bits: BitTensor, or_mask: np.ndarray, geometry: tuple[int, ...]) -> BitTensor:
    """Maximum of signs (AND of bits), minimum (OR) where or_mask uint64 (V,) has a bit."""
    words = _run(_pool_signs, bits.words[0], geometry, or_mask)
    shape = (bits.shape[0], bits.shape[1], *words.shape[1:3])
    return BitTensor(words[None], shape, bits.signed, bits.multipliers)
