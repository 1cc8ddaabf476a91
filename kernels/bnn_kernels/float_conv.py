"""Direct FP32 convolution, channels last: the stem of a binary network.

Lanes are filters. A tile of four output positions and two vectors of filters keeps eight sums in registers; each
step loads two vectors of weights and broadcasts four inputs: eight multiply-adds for six loads, where two loads and
two multiply-adds can start in a cycle. No im2col: a table says how far from the first input of a window each other
one lies.
"""

import functools

import numpy as np

from bnn_kernels import _simd
from bnn_kernels._jit import inline, jit
from bnn_kernels.threads import run_rows
from bnn_kernels.workspace import empty

POSITIONS = 4
BLOCK = 2 * _simd.LANES


def filter_lanes(weight: np.ndarray, groups: int) -> np.ndarray:
    """Return float32 (G, blocks, kh*kw*C/G, 16) from weight (O, C/G, kh, kw): 16 filters side by side, zeros behind."""
    o, channels, kh, kw = weight.shape
    filters = o // groups
    blocks = -(-filters // BLOCK)
    flat = np.zeros((groups, kh * kw * channels, blocks * BLOCK), np.float32)
    by_group = weight.reshape(groups, filters, channels, kh, kw).transpose(0, 3, 4, 2, 1)
    flat[..., :filters] = by_group.reshape(groups, -1, filters)
    return np.ascontiguousarray(flat.reshape(groups, -1, blocks, BLOCK).transpose(0, 2, 1, 3))


@functools.lru_cache(maxsize=256)
def window_offsets(own: int, channels: int, width: int, taps: tuple[int, int, int, int]) -> np.ndarray:
    """Return uint64 (kh*kw*own,): where a window's inputs lie in a map of this width; taps = (kh, kw, dy, dx)."""
    kh, kw, dy, dx = taps
    y, x, c = np.ogrid[:kh, :kw, :own]
    return ((y * dy * width + x * dx) * channels + c).reshape(-1).astype(np.uint64)


@inline
def _tile_4x2(x, offsets, at, position, w, j, sums):
    """Add the products of four windows, `position` apart, with two vectors of filters."""
    s00, s01, s10, s11, s20, s21, s30, s31 = sums
    at1 = at + position
    at2 = at1 + position
    at3 = at2 + position
    for k in range(len(offsets)):
        offset = offsets[k]
        w0 = _simd.load(w, j)
        w1 = _simd.load(w, j + np.uint64(8))
        j += np.uint64(16)
        x0 = _simd.broadcast(x, at + offset)
        x1 = _simd.broadcast(x, at1 + offset)
        x2 = _simd.broadcast(x, at2 + offset)
        x3 = _simd.broadcast(x, at3 + offset)
        s00 = _simd.multiply_add(x0, w0, s00)
        s01 = _simd.multiply_add(x0, w1, s01)
        s10 = _simd.multiply_add(x1, w0, s10)
        s11 = _simd.multiply_add(x1, w1, s11)
        s20 = _simd.multiply_add(x2, w0, s20)
        s21 = _simd.multiply_add(x2, w1, s21)
        s30 = _simd.multiply_add(x3, w0, s30)
        s31 = _simd.multiply_add(x3, w1, s31)
    return s00, s01, s10, s11, s20, s21, s30, s31


@inline
def _tile_4x1(x, offsets, at, position, w, j, sums):
    """The same with the first vector of a block."""
    s0, s1, s2, s3 = sums
    at1 = at + position
    at2 = at1 + position
    at3 = at2 + position
    for k in range(len(offsets)):
        offset = offsets[k]
        w0 = _simd.load(w, j)
        j += np.uint64(16)
        s0 = _simd.multiply_add(_simd.broadcast(x, at + offset), w0, s0)
        s1 = _simd.multiply_add(_simd.broadcast(x, at1 + offset), w0, s1)
        s2 = _simd.multiply_add(_simd.broadcast(x, at2 + offset), w0, s2)
        s3 = _simd.multiply_add(_simd.broadcast(x, at3 + offset), w0, s3)
    return s0, s1, s2, s3


@inline
def _write(out, to, value, scratch, count):
    """Write the first `count` lanes."""
    if count >= 8:
        _simd.store(out, np.uint64(to), value)
    else:
        _simd.store(scratch, np.uint64(0), value)
        for i in range(count):
            out[to + i] = scratch[i]


@jit
def _conv_rows(x, offsets, w, bias, out, size, first, last):
    """Rows (n, oy) of out float32 flat (N, Ho, Wo, O).

    The bias is added last, as oneDNN does behind PyTorch; its order of the sum is this one too.
    x float32 flat (N, H, W, C), border included; offsets from `window_offsets`; w flat `filter_lanes`; bias float32
    flat (G, blocks, 16); size = (H, W, C, Ho, Wo, G, filters of a group, sy, sx).
    """
    h, width, channels, ho, wo, groups, filters, sy, sx = size
    blocks = (filters + 15) // 16
    block_size = len(offsets) * 16
    own = channels // groups
    pixel = groups * filters
    # A map narrower than four positions computes its first one four times; of the last tile some is done twice.
    tile = 4 if wo >= 4 else 1
    position = np.uint64(sx * channels) if tile == 4 else np.uint64(0)
    scratch = np.zeros(8, np.float32)
    zero = _simd.load(scratch, np.uint64(0))
    for row in range(first, last):
        n = row // ho
        oy = row - n * ho
        line = (n * h + oy * sy) * width * channels
        for block in range(groups * blocks):
            g = block // blocks
            f = (block - g * blocks) * 16
            j = np.uint64(block * block_size)
            b0 = _simd.load(bias, np.uint64(block * 16))
            b1 = _simd.load(bias, np.uint64(block * 16 + 8))
            for tile_x in range(0, wo, tile):
                ox = min(tile_x, wo - tile)
                at = np.uint64(line + ox * sx * channels + g * own)
                to = (row * wo + ox) * pixel + g * filters + f
                if f + 8 < filters:
                    s = _tile_4x2(x, offsets, at, position, w, j, (zero, zero, zero, zero, zero, zero, zero, zero))
                    count = filters - f
                    _write(out, to, _simd.add_floats(s[0], b0), scratch, count)
                    _write(out, to + 8, _simd.add_floats(s[1], b1), scratch, count - 8)
                    if tile == 4:
                        _write(out, to + pixel, _simd.add_floats(s[2], b0), scratch, count)
                        _write(out, to + pixel + 8, _simd.add_floats(s[3], b1), scratch, count - 8)
                        _write(out, to + 2 * pixel, _simd.add_floats(s[4], b0), scratch, count)
                        _write(out, to + 2 * pixel + 8, _simd.add_floats(s[5], b1), scratch, count - 8)
                        _write(out, to + 3 * pixel, _simd.add_floats(s[6], b0), scratch, count)
                        _write(out, to + 3 * pixel + 8, _simd.add_floats(s[7], b1), scratch, count - 8)
                else:
                    q = _tile_4x1(x, offsets, at, position, w, j, (zero, zero, zero, zero))
                    _write(out, to, _simd.add_floats(q[0], b0), scratch, filters - f)
                    if tile == 4:
                        _write(out, to + pixel, _simd.add_floats(q[1], b0), scratch, filters - f)
                        _write(out, to + 2 * pixel, _simd.add_floats(q[2], b0), scratch, filters - f)
                        _write(out, to + 3 * pixel, _simd.add_floats(q[3], b0), scratch, filters - f)


class FloatConv2d:
    """FP32 convolution of contiguous (N, H, W, C) maps.

    weight: float32 (O, C/groups, kh, kw); bias: float32 (O,) or None; geometry = (kh, kw, sy, sx, py, px, dy, dx);
    pad: the value outside the map.
    """

    def __init__(
        self, weight: np.ndarray, bias: np.ndarray | None, geometry: tuple[int, ...], groups: int = 1, pad: float = 0.0
    ):
        self.geometry, self.groups, self.pad = geometry, groups, pad
        self.filters = weight.shape[0] // groups
        self._lanes = filter_lanes(weight, groups)
        blocks, self._steps = self._lanes.shape[1:3]
        self._bias = np.zeros((groups, blocks * BLOCK), np.float32)
        if bias is not None:
            self._bias[:, : self.filters] = bias.reshape(groups, self.filters)
        # A 1x1 convolution is a matrix product, which BLAS does as well for any size of map.
        self._matrix = None
        if geometry == (1, 1, 1, 1, 0, 0, 1, 1) and groups == 1:
            self._matrix = np.ascontiguousarray(weight.reshape(weight.shape[:2]).T)

    def __call__(self, x: np.ndarray, out_size: tuple[int, int]) -> np.ndarray:
        """Return float32 (N, Ho, Wo, O) of a map whose output has this size."""
        if self._matrix is not None:
            y = np.matmul(x, self._matrix, out=empty((*x.shape[:3], self.filters), np.float32))
            y += self._bias[0, : self.filters]
            return y
        kh, kw, sy, sx, py, px, dy, dx = self.geometry
        n, h, w, c = x.shape
        if py or px:
            framed = empty((n, h + 2 * py, w + 2 * px, c), np.float32)
            framed.fill(self.pad)
            framed[:, py : py + h, px : px + w] = x
            x, h, w = framed, h + 2 * py, w + 2 * px
        ho, wo = out_size
        out = empty((n, ho, wo, self.groups * self.filters), np.float32)
        offsets = window_offsets(c // self.groups, c, w, (kh, kw, dy, dx))
        size = (h, w, c, ho, wo, self.groups, self.filters, sy, sx)
        flat = (x.reshape(-1), offsets, self._lanes.reshape(-1), self._bias.reshape(-1), out.reshape(-1))
        run_rows(_conv_rows, n * ho, out.size * self._steps // _simd.LANES, *flat, size)
        return out
