"""Float layers of a packed model, channels last: convolution and linear by im2col + BLAS, affine, XNOR-Net's K."""

import numpy as np

from bnn_kernels._jit import inline, jit
from bnn_kernels.threads import run_rows

# Floats of im2col scratch: small enough to stay in the L2 cache beside the weights.
SCRATCH = 1 << 18


@jit
def _im2col(x, columns, size, geometry, pad, position0, first, last):
    """columns float32 (R, kh*kw*C) for the output positions position0 + first..last of x float32 (N, H, W, C)."""
    ho, wo, channel0 = size
    kh, kw, sy, sx, py, px, dy, dx = geometry
    h, w = x.shape[1], x.shape[2]
    channels = columns.shape[1] // (kh * kw)
    for row in range(first, last):
        position = position0 + row
        n = position // (ho * wo)
        oy = (position - n * ho * wo) // wo
        ox = position - (n * ho + oy) * wo
        for ky in range(kh):
            iy = oy * sy - py + ky * dy
            for kx in range(kw):
                ix = ox * sx - px + kx * dx
                at = (ky * kw + kx) * channels
                if 0 <= iy < h and 0 <= ix < w:
                    for c in range(channels):
                        columns[row, at + c] = x[n, iy, ix, channel0 + c]
                else:
                    for c in range(channels):
                        columns[row, at + c] = pad


def conv_matrix(weight: np.ndarray, groups: int) -> np.ndarray:
    """Return float32 (G, kh*kw*C/G, O/G), the right operand of im2col, from weight (O, C/G, kh, kw)."""
    o = weight.shape[0]
    by_group = weight.reshape(groups, o // groups, *weight.shape[1:]).transpose(0, 3, 4, 2, 1)
    return np.ascontiguousarray(by_group, np.float32).reshape(groups, -1, o // groups)


def conv2d(
    x: np.ndarray,
    matrix: np.ndarray,
    bias: np.ndarray | None,
    geometry: tuple[int, ...],
    out_size: tuple[int, int],
    pad: float = 0.0,
) -> np.ndarray:
    """Convolve contiguous float32 (N, H, W, C) -> (N, Ho, Wo, O).

    matrix from `conv_matrix`; geometry = (kh, kw, sy, sx, py, px, dy, dx); pad: the value outside the map.
    """
    n = x.shape[0]
    groups, k, filters = matrix.shape
    ho, wo = out_size
    out = np.empty((n, ho, wo, groups * filters), np.float32)
    flat = out.reshape(-1, groups * filters)
    if geometry == (1, 1, 1, 1, 0, 0, 1, 1) and groups == 1:
        np.matmul(x.reshape(-1, k), matrix[0], out=flat)
    else:
        rows = max(1, min(len(flat), SCRATCH // k))
        columns = np.empty((rows, k), np.float32)
        for start in range(0, len(flat), rows):
            count = min(rows, len(flat) - start)
            for g in range(groups):
                size = (ho, wo, g * (x.shape[3] // groups))
                run_rows(_im2col, count, count * k, x, columns, size, geometry, np.float32(pad), start)
                block = columns[:count] @ matrix[g]
                flat[start : start + count, g * filters : (g + 1) * filters] = block
    if bias is not None:
        flat += bias
    return out


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


@inline
def _box(values, n, y0, x0, g, kh, kw, dy, dx):
    h, w = values.shape[1], values.shape[2]
    total = np.float32(0)
    for ky in range(kh):
        for kx in range(kw):
            iy = y0 + ky * dy
            ix = x0 + kx * dx
            if 0 <= iy < h and 0 <= ix < w:
                total += values[n, iy, ix, g]
    return total / np.float32(kh * kw)


@jit
def _scale_by_k(values, y, geometry, first, last):
    """y float32 (N, Ho, Wo, O) *= box filter of values float32 (N, H, W, G); rows are (n, oy)."""
    kh, kw, sy, sx, py, px, dy, dx = geometry
    groups = values.shape[3]
    filters = y.shape[3] // groups
    for row in range(first, last):
        n = row // y.shape[1]
        oy = row - n * y.shape[1]
        for ox in range(y.shape[2]):
            for g in range(groups):
                k = _box(values, n, oy * sy - py, ox * sx - px, g, kh, kw, dy, dx)
                for o in range(g * filters, (g + 1) * filters):
                    y[n, oy, ox, o] *= k


def scale_by_input(x: np.ndarray, y: np.ndarray, groups: int, geometry: tuple[int, ...]) -> None:
    """Multiply y float32 (N, Ho, Wo, O) in place by XNOR-Net's K of the input x float32 (N, H, W, C).

    K is the mean of |x| over the channels (of the group), box filtered with 1/(kh*kw); outside the map |x| is 0
    (XNOR-Net, section 3.2).
    """
    values = np.empty((*x.shape[:3], groups), np.float32)
    rows = int(np.prod(x.shape[:3]))
    run_rows(_mean_abs, rows, x.size, x.reshape(rows, -1), values.reshape(rows, groups))
    run_rows(_scale_by_k, y.shape[0] * y.shape[1], y.size, values, y, geometry)
