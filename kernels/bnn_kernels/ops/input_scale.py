"""XNOR-Net's input scale K, channels last."""

from typing import NamedTuple

import numpy as np

from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty


@jit
def _mean_abs(x, out, first, last):
    """out float32 (R, G) = mean of |x| over the channels of each group, x float32 (R, C)."""
    groups = out.shape[1]
    channels = x.shape[1] // groups
    for row in range(first, last):
        for g in range(groups):
            total = np.float32(0)
            for c in range(channels):
                total += abs(x[row, g * channels + c])
            out[row, g] = total / np.float32(channels)


class Window(NamedTuple):
    """A filter of (kh, kw) taps with stride (sy, sx), padding (py, px) and dilation (dy, dx)."""

    kh: int
    kw: int
    sy: int
    sx: int
    py: int
    px: int
    dy: int
    dx: int


@inline
def _box(values, n, y0, x0, g, window):
    h, w = values.shape[1], values.shape[2]
    total = np.float32(0)
    for ky in range(window.kh):
        for kx in range(window.kw):
            iy = y0 + ky * window.dy
            ix = x0 + kx * window.dx
            if 0 <= iy < h and 0 <= ix < w:
                total += values[n, iy, ix, g]
    return total / np.float32(window.kh * window.kw)


@jit
def _scale_by_k(values, y, geometry, first, last):
    """y float32 (N, Ho, Wo, O) *= box filter of values float32 (N, H, W, G); rows are (n, oy).

    geometry: `Window`.
    """
    window = Window(*geometry)
    groups = values.shape[3]
    filters = y.shape[3] // groups
    for row in range(first, last):
        n = row // y.shape[1]
        oy = row - n * y.shape[1]
        for ox in range(y.shape[2]):
            for g in range(groups):
                k = _box(values, n, oy * window.sy - window.py, ox * window.sx - window.px, g, window)
                for o in range(g * filters, (g + 1) * filters):
                    y[n, oy, ox, o] *= k


def scale_by_input(x: np.ndarray, y: np.ndarray, groups: int, geometry: tuple[int, ...]) -> None:
    """Multiply y float32 (N, Ho, Wo, O) in place by XNOR-Net's K of the input x float32 (N, H, W, C).

    K is the mean of |x| over the channels (of the group), box filtered with 1/(kh*kw); outside the map |x| is 0
    (XNOR-Net, section 3.2).
    """
    values = empty((*x.shape[:3], groups), np.float32)
    rows = int(np.prod(x.shape[:3]))
    run_rows(_mean_abs, rows, x.size, x.reshape(rows, x.shape[3]), values.reshape(rows, groups))
    run_rows(_scale_by_k, y.shape[0] * y.shape[1], y.size, values, y, geometry)
