"""How the inputs of a model, channels first, get into the order of its registers, channels last."""

from collections.abc import Sequence

import numpy as np

from bnn_kernels.compile.jit import jit
from bnn_kernels.runtime.threads import run_rows

# Pixels whose channels are put side by side at a time: they stay in the cache.
BLOCK = 256


def as_channels_last(x: np.ndarray) -> np.ndarray:
    """Return a view of maps (N, C, H, W) as (N, H, W, C), of sequences as maps of one row; vectors pass."""
    if x.ndim == 3:
        x = x[:, :, None]
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


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


def fill_inputs(given: Sequence[np.ndarray], inputs: Sequence[np.ndarray]) -> None:
    """Copy inputs into contiguous arrays of float32 or uint8, channels last."""
    for to, x in zip(given, inputs, strict=True):
        same = x.dtype == to.dtype and x.dtype in (np.float32, np.uint8)
        if x.ndim == 4 and same and x.flags.c_contiguous and min(x.shape) > 0 and x.shape[1] > 1:
            n, channels, pixels = len(x), x.shape[1], x.shape[2] * x.shape[3]
            blocks = -(-pixels // BLOCK)
            arguments = (x.reshape(-1), to.reshape(-1), (channels, pixels, blocks))
            run_rows(_interleave3 if channels == 3 else _interleave, n * blocks, x.size // 4, *arguments)
        else:
            np.copyto(to, as_channels_last(x).reshape(to.shape), casting="same_kind")
