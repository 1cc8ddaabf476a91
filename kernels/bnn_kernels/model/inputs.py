"""How the inputs of a model, channels first, get into the order of its registers, channels last, and outputs back."""

from collections.abc import Sequence

import numpy as np

from bnn_kernels.compile.jit import jit
from bnn_kernels.compile.simd import float32x8
from bnn_kernels.runtime.threads import run_rows

# Pixels whose channels are put side by side at a time: they stay in the cache.
BLOCK = 256
# Pixels whose channels are taken apart, or put side by side in squares, at a time: few enough for the cache.
OUT_BLOCK = 64


def as_channels_last(x: np.ndarray) -> np.ndarray:
    """Return maps (N, C, H, W) as (N, H, W, C), sequences as maps of one row, volumes as slices below one another."""
    if x.ndim == 5:
        x = x.reshape(*x.shape[:2], -1, x.shape[4])
    if x.ndim == 3:
        x = x[:, :, None]
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def lies_channels_last(x: np.ndarray) -> bool:
    """Whether maps (N, C, H, W) of several channels lie in memory as (N, H, W, C)."""
    return x.ndim == 4 and not x.flags.c_contiguous and x.transpose(0, 2, 3, 1).flags.c_contiguous


@jit
def _interleave(x, out, size, first, last):
    """Rows (n, pixel / 8) of out flat (N, pixels, C): x flat (N, C, pixels)."""
    channels, pixels, blocks = size
    for row in range(first, last):
        n = row // blocks
        start = (row - n * blocks) * BLOCK
        end = min(start + BLOCK, pixels)
        for c in range(channels):
            at = (n * channels + c) * pixels
            to = n * pixels * channels + c
            for pixel in range(start, end):
                out[to + pixel * channels] = x[at + pixel]


@jit
def _interleave_floats(x, out, size, first, last):
    """The same of float32, rows (n, pixel / 64): squares of eight channels by eight pixels are turned in registers."""
    channels, pixels, blocks = size
    tall = channels - channels % 8
    for row in range(first, last):
        n = row // blocks
        start = (row - n * blocks) * OUT_BLOCK
        count = min(OUT_BLOCK, pixels - start)
        wide = count - count % 8
        at = n * channels * pixels + start
        to = (n * pixels + start) * channels
        for c in range(0, tall, 8):
            for pixel in range(0, wide, 8):
                source, target = np.uint64(at + c * pixels + pixel), np.uint64(to + pixel * channels + c)
                float32x8.transpose(x, source, np.uint64(pixels), out, target, np.uint64(channels))
            for pixel in range(wide, count):
                for i in range(c, c + 8):
                    out[to + pixel * channels + i] = x[at + i * pixels + pixel]
        for i in range(tall, channels):
            for pixel in range(count):
                out[to + pixel * channels + i] = x[at + i * pixels + pixel]


@jit
def _interleave3(x, out, size, first, last):
    """The same of three channels: LLVM stores three whole vectors interleaved, which it does not with steps unknown."""
    _, pixels, blocks = size
    for row in range(first, last):
        n = row // blocks
        start = (row - n * blocks) * BLOCK
        count = min(BLOCK, pixels - start)
        at = 3 * n * pixels + start
        red, green, blue = x[at : at + count], x[at + pixels :][:count], x[at + 2 * pixels :][:count]
        to = out[3 * (n * pixels + start) :]
        for i in range(len(red)):
            to[3 * i] = red[i]
            to[3 * i + 1] = green[i]
            to[3 * i + 2] = blue[i]


def as_register(x: np.ndarray, like: np.ndarray) -> np.ndarray | None:
    """Return an input in the shape of its register, if kernels can read it where it lies; else None."""
    y = as_channels_last(x)
    fits = y.dtype == like.dtype and y.flags.c_contiguous and y.flags.aligned
    return y.reshape(like.shape) if fits else None


def fill_inputs(given: Sequence[np.ndarray], inputs: Sequence[np.ndarray]) -> None:
    """Copy inputs into contiguous arrays of float32 or uint8, channels last."""
    for to, x in zip(given, inputs, strict=True):
        same = x.dtype == to.dtype and x.dtype in (np.float32, np.uint8)
        if x.ndim == 4 and same and x.flags.c_contiguous and min(x.shape) > 0 and x.shape[1] > 1:
            n, channels, pixels = len(x), x.shape[1], x.shape[2] * x.shape[3]
            squares = channels >= 8 and x.dtype == np.float32
            blocks = -(-pixels // (OUT_BLOCK if squares else BLOCK))
            arguments = (x.reshape(-1), to.reshape(-1), (channels, pixels, blocks))
            kernel = _interleave_floats if squares else _interleave3 if channels == 3 else _interleave
            run_rows(kernel, n * blocks, x.size // 4, *arguments)
        else:
            np.copyto(to, as_channels_last(x).reshape(to.shape), casting="same_kind")


@jit
def _deinterleave(x, out, size, first, last):
    """Rows (n, pixel / 64) of x flat (N, pixels, C) into out flat (N, C, pixels): eight channels at a time."""
    channels, pixels, blocks = size
    for row in range(first, last):
        n = row // blocks
        start = (row - n * blocks) * OUT_BLOCK
        count = min(OUT_BLOCK, pixels - start)
        at = (n * pixels + start) * channels
        to = n * channels * pixels + start
        for c in range(0, channels, 8):
            tall = count - count % 8 if c + 8 <= channels else 0
            for pixel in range(0, tall, 8):
                source, target = np.uint64(at + pixel * channels + c), np.uint64(to + c * pixels + pixel)
                float32x8.transpose(x, source, np.uint64(channels), out, target, np.uint64(pixels))
            for i in range(c, min(c + 8, channels)):
                for pixel in range(tall, count):
                    out[to + i * pixels + pixel] = x[at + pixel * channels + i]


def channels_first(y: np.ndarray) -> np.ndarray:
    """Return a contiguous copy (N, C, H, W) of contiguous float32 or int32 maps (N, H, W, C)."""
    n, height, width, channels = y.shape
    if y.dtype.itemsize != 4 or not y.flags.c_contiguous or y.size == 0 or channels == 1:
        return y.transpose(0, 3, 1, 2).copy()
    pixels = height * width
    out = np.empty((n, channels, height, width), y.dtype)
    blocks = -(-pixels // OUT_BLOCK)
    flat = y.reshape(-1).view(np.float32), out.reshape(-1).view(np.float32)
    run_rows(_deinterleave, n * blocks, y.size // 8, *flat, (channels, pixels, blocks))
    return out
