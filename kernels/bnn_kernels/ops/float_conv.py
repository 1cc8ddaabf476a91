"""Direct FP32 convolution, channels last, with its epilogue: the stem of a binary network, and FP32 shortcuts.

Lanes are filters. A tile of six output positions and sixteen filters keeps its sums in registers; each step loads
the weights of sixteen filters and takes one input of each position: twelve multiply-adds of eight lanes for eight
loads, where two loads and two multiply-adds can start in a cycle (with AVX-512 six of sixteen lanes for seven). No
im2col: a table says how far from the first input of a window each other one lies.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.bits.tensor import BitTensor
from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.compile.simd import float32x8, float32x16
from bnn_kernels.ops.epilogue import Epilogue, addresses, finish_block
from bnn_kernels.runtime.arrays import aligned
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty

BLOCK = float32x16.LANES


class Geometry(NamedTuple):
    """A filter of (kh, kw) taps with stride (sy, sx), padding (py, px) and dilation (dy, dx)."""

    kh: int
    kw: int
    sy: int
    sx: int
    py: int
    px: int
    dy: int
    dx: int


class Sizes(NamedTuple):
    """Sizes of a map with its border, of the output, all positions (n, oy, ox), filters of a group, and the stride."""

    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    positions: int
    groups: int
    filters: int
    sy: int
    sx: int


class ProductSizes(NamedTuple):
    """Sizes of a 1x1 convolution as a product of matrices."""

    positions: int
    filters: int


class FrameSizes(NamedTuple):
    """Height and line (width * channels numbers) of a map, and its border: py lines, edge (px * channels) numbers."""

    height: int
    line: int
    py: int
    edge: int


# That of a matrix product.
POINTWISE = Geometry(1, 1, 1, 1, 0, 0, 1, 1)
# The map of a 1x1 convolution is one long row of positions, cut into pieces (whole tiles) that stay in the cache.
PIECE = 8 * 6
# With no more positions than this, threads share blocks of filters instead of pieces.
FEW = 6 * PIECE


def filter_lanes(weight: np.ndarray, groups: int) -> np.ndarray:
    """Return float32 (G, blocks, kh*kw*C/G, 16) from weight (O, C/G, kh, kw): 16 filters side by side, zeros behind."""
    o, channels, kh, kw = weight.shape
    filters = o // groups
    blocks = -(-filters // BLOCK)
    flat = np.zeros((groups, kh * kw * channels, blocks * BLOCK), np.float32)
    by_group = weight.reshape(groups, filters, channels, kh, kw).transpose(0, 3, 4, 2, 1)
    flat[..., :filters] = by_group.reshape(groups, -1, filters)
    return aligned(flat.reshape(groups, -1, blocks, BLOCK).transpose(0, 2, 1, 3))


@functools.lru_cache(maxsize=256)
def window_offsets(own: int, channels: int, width: int, taps: tuple[int, int, int, int]) -> np.ndarray:
    """Return uint64 (kh*kw*own,): where a window's inputs lie in a map of this width; taps = (kh, kw, dy, dx)."""
    kh, kw, dy, dx = taps
    y, x, c = np.ogrid[:kh, :kw, :own]
    return ((y * dy * width + x * dx) * channels + c).reshape(-1).astype(np.uint64)


def _tile(simd: Any) -> Any:
    """Return the tile with vectors of `float32x16`, or of `float32x8` where no more than eight filters are left."""

    @inline
    def tile(x, offsets, at, w, j, sums):
        """Write the products of six windows, which begin at `at`, with a vector of filters to sums (6, 16)."""
        a0, a1, a2, a3, a4, a5 = at
        s0 = s1 = s2 = s3 = s4 = s5 = simd.zero()
        for k in range(len(offsets)):
            offset = offsets[k]
            weights = simd.load(w, j)
            j += np.uint64(16)
            s0 = simd.multiply_add(simd.broadcast(x, a0 + offset), weights, s0)
            s1 = simd.multiply_add(simd.broadcast(x, a1 + offset), weights, s1)
            s2 = simd.multiply_add(simd.broadcast(x, a2 + offset), weights, s2)
            s3 = simd.multiply_add(simd.broadcast(x, a3 + offset), weights, s3)
            s4 = simd.multiply_add(simd.broadcast(x, a4 + offset), weights, s4)
            s5 = simd.multiply_add(simd.broadcast(x, a5 + offset), weights, s5)
        simd.store(sums, np.uint64(0), s0)
        simd.store(sums, np.uint64(16), s1)
        simd.store(sums, np.uint64(32), s2)
        simd.store(sums, np.uint64(48), s3)
        simd.store(sums, np.uint64(64), s4)
        simd.store(sums, np.uint64(80), s5)

    return tile


_tile_of_sixteen, _tile_of_eight = _tile(float32x16), _tile(float32x8)


@inline
def _finish_tile(x, offsets, start, step, count, w, j, sums, position, c, left, output):
    """Compute `count` positions, up to six, `step` apart in x, with the block of filters from channel c on.

    left: filters from c on. Places of the tile that are not wanted repeat the last position.
    """
    end = count - 1
    at = (
        np.uint64(start),
        np.uint64(start + min(1, end) * step),
        np.uint64(start + min(2, end) * step),
        np.uint64(start + min(3, end) * step),
        np.uint64(start + min(4, end) * step),
        np.uint64(start + min(5, end) * step),
    )
    if left > 8:
        _tile_of_sixteen(x, offsets, at, w, j, sums)
    else:
        _tile_of_eight(x, offsets, at, w, j, sums)
    for i in range(count):
        for half in range(2 if left > 8 else 1):
            value = float32x8.load(sums, np.uint64(i * 16 + half * 8))
            finish_block(value, position + i, c + half * 8, left - half * 8, output)


@jit
def _conv_rows(x, offsets, w, output, size, first, last):
    """Rows (n, oy) of an output; the bias is added last, as oneDNN does behind PyTorch.

    x float32 flat (N, H, W, C), border included; offsets from `window_offsets`; w flat `filter_lanes`;
    output: `EpilogueOutput`; size: `Sizes`.
    """
    size = Sizes(*size)
    channels, ho, wo, filters = size.channels, size.out_height, size.out_width, size.filters
    blocks = (filters + 15) // 16
    own = channels // size.groups
    sums = np.zeros(96, np.float32)
    ready = addresses(output)
    for row in range(first, last):
        n = row // ho
        oy = row - n * ho
        here = min(wo, size.positions - row * wo)
        for block in range(size.groups * blocks):
            g = block // blocks
            f = (block - g * blocks) * 16
            j = np.uint64(block * len(offsets) * 16)
            start = (n * size.height + oy * size.sy) * size.width * channels + g * own
            step = size.sx * channels
            for ox in range(0, here, 6):
                count = min(6, here - ox)
                c, position = g * filters + f, row * wo + ox
                _finish_tile(x, offsets, start + ox * step, step, count, w, j, sums, position, c, filters - f, ready)


@jit
def _product_blocks(x, offsets, w, output, size, first, last):
    """Blocks of sixteen filters of a 1x1 convolution: the weights of a block stay in the cache, positions pass by.

    x float32 flat (positions, C); size: `ProductSizes`; the rest as in `_conv_rows`.
    """
    size = ProductSizes(*size)
    positions, channels = size.positions, len(offsets)
    sums = np.zeros(96, np.float32)
    ready = addresses(output)
    for block in range(first, last):
        j = np.uint64(block * channels * 16)
        c = block * 16
        for p in range(0, positions, 6):
            count = min(6, positions - p)
            _finish_tile(x, offsets, p * channels, channels, count, w, j, sums, p, c, size.filters - c, ready)


@jit
def _frame_rows(x, out, size, value, first, last):
    """Rows (n, y) of out flat (N, H + 2 py, W + 2 px, C): x flat (N, H, W, C) and a border of `value`.

    size: `FrameSizes`.
    """
    size = FrameSizes(*size)
    h, line, py, edge = size.height, size.line, size.py, size.edge
    whole = line + 2 * edge
    for row in range(first, last):
        n = row // (h + 2 * py)
        y = row - n * (h + 2 * py) - py
        to = out[row * whole : (row + 1) * whole]
        if 0 <= y < h:
            at = x[(n * h + y) * line : (n * h + y + 1) * line]
            left, middle, right = to[:edge], to[edge : edge + line], to[edge + line :]
            for i in range(edge):
                left[i] = value
                right[i] = value
            for i in range(line):
                middle[i] = at[i]
        else:
            for i in range(whole):
                to[i] = value


def framed(x: np.ndarray, py: int, px: int, value: float) -> np.ndarray:
    """Return (N, H + 2 py, W + 2 px, C): a contiguous float32 map with a border."""
    n, h, w, c = x.shape
    out = empty((n, h + 2 * py, w + 2 * px, c), np.float32)
    size = (h, w * c, py, px * c)
    run_rows(_frame_rows, n * (h + 2 * py), out.size // 8, x.reshape(-1), out.reshape(-1), size, np.float32(value))
    return out


class FloatConv2d:
    """FP32 convolution of contiguous (N, H, W, C) maps.

    weight: float32 (O, C/groups, kh, kw); bias: float32 (O,) or None; geometry = (kh, kw, sy, sx, py, px, dy, dx);
    pad: the value outside the map.
    """

    def __init__(
        self, weight: np.ndarray, bias: np.ndarray | None, geometry: tuple[int, ...], groups: int = 1, pad: float = 0.0
    ):
        self.geometry, self.groups, self.pad = Geometry(*geometry), groups, pad
        self.filters = weight.shape[0] // groups
        lanes = filter_lanes(weight, groups)
        self._steps = lanes.shape[1] * lanes.shape[2] * groups
        self._lanes = lanes.reshape(-1)
        self._plain = Epilogue(weight.shape[0], shift=bias)
        self._is_pointwise = self.geometry == POINTWISE

    def __call__(self, x: np.ndarray, out_size: tuple[int, int]) -> np.ndarray:
        """Return float32 (N, Ho, Wo, O) of a map whose output has this size."""
        floats, _ = self.finish(x, out_size, self._plain)
        assert floats is not None
        return floats

    def finish(
        self,
        x: np.ndarray,
        out_size: tuple[int, int],
        epilogue: Epilogue,
        residual: np.ndarray | None = None,
        keep: bool = True,
    ) -> tuple[np.ndarray | None, BitTensor | None]:
        """Return (float32 (N, Ho, Wo, O) or None, signs or None): the sums, without the bias, through an epilogue.

        residual: float32 (N, Ho, Wo, O) if the epilogue adds one; keep: whether the floats are wanted.
        """
        if epilogue.multipliers and self.groups > 1 and self.filters % float32x8.LANES:
            # A byte of signs would belong to two groups.
            floats, _ = self.finish(x, out_size, Epilogue(epilogue.channels))
            assert floats is not None
            return epilogue(floats, residual, keep)
        ho, wo = out_size
        positions = len(x) * ho * wo
        output, results = epilogue.output((len(x), ho, wo, epilogue.channels), residual, keep)
        kh, kw, sy, sx, py, px, dy, dx = self.geometry
        _, h, w, c = x.shape
        if py or px:
            x = framed(x, py, px, self.pad)
            h, w = x.shape[1:3]
        if self._is_pointwise:
            h, w, ho, wo = 1, PIECE, 1, PIECE
        offsets = window_offsets(c // self.groups, c, w, (kh, kw, dy, dx))
        given = (x.reshape(-1), offsets, self._lanes, tuple(output))
        work = positions * self._steps * 2
        if self._is_pointwise and self.groups == 1 and positions <= FEW:
            # Too few pieces of the map for several threads, and blocks of filters are as good.
            run_rows(_product_blocks, -(-self.filters // BLOCK), work, *given, (positions, self.filters))
        else:
            size = (h, w, c, ho, wo, positions, self.groups, self.filters, sy, sx)
            run_rows(_conv_rows, -(-positions // wo), work, *given, size)
        return results()
