"""Direct FP32 convolution, channels last, with its epilogue: the stem of a binary network, and FP32 shortcuts.

Lanes are filters. A tile of several output positions and one or two vectors of sixteen filters keeps its sums in
registers; each step loads the weights and one input of each position. With AVX-512 eight positions and 32 filters:
sixteen multiply-adds for ten loads, in eight cycles, of which an addition takes four (six sums, of six positions and
sixteen filters, would wait for each other a quarter of the time). With AVX2 six positions and sixteen filters, two
registers each: twelve multiply-adds for eight loads. No im2col: a table says how far from the first input of a window
each other one lies. A tile takes any positions, so rows of 7 or 14 leave nothing of it empty; the filters of a tile see
all positions before the next ones, so that their weights come from the cache.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.bits.level_bytes import LevelTensor
from bnn_kernels.compile.isa import isa
from bnn_kernels.compile.jit import jit
from bnn_kernels.compile.simd import float32x8, float32x16
from bnn_kernels.compile.simd.float_tiles import tile
from bnn_kernels.ops.coded_weight import CodedWeight
from bnn_kernels.ops.depthwise.floats import FloatDepthwise
from bnn_kernels.ops.depthwise.windows import Filter, suits
from bnn_kernels.ops.epilogue import Epilogue
from bnn_kernels.ops.few_bit_weight import FewBitWeight
from bnn_kernels.ops.finishing import addresses, finisher, held_finisher, prefetch_floats
from bnn_kernels.ops.geometry import Frame
from bnn_kernels.ops.shares import parts_of, share_at
from bnn_kernels.runtime.cache_lines import numbers_at_line, zeros_at_line
from bnn_kernels.runtime.mapped import release
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty

BLOCK = float32x16.LANES


class Geometry(NamedTuple):
    """A filter of (kh, kw) taps with stride (sy, sx), padding (py, px) and dilation (dy, dx).

    ey, ex: the padding behind the map; -1: as before it.
    """

    kh: int
    kw: int
    sy: int
    sx: int
    py: int
    px: int
    dy: int
    dx: int
    ey: int = -1
    ex: int = -1

    @property
    def frame(self) -> Frame:
        """Rows and columns around the map."""
        return Frame(self.py, self.px, self.py if self.ey < 0 else self.ey, self.px if self.ex < 0 else self.ex)


class Sizes(NamedTuple):
    """Sizes of a convolution.

    image: numbers of an image with its border; positions: (n, oy, ox) in all, per_image: of one image, chunk: of
    a share of the work; filters, channels, blocks (of 16 filters): of a group; groups, parts: see `ops.shares`.
    """

    image: int
    positions: int
    per_image: int
    chunk: int
    filters: int
    channels: int
    blocks: int
    groups: int
    parts: int


class FrameSizes(NamedTuple):
    """Height and line (width * channels numbers) of a map; lines around it, and numbers before and behind a line."""

    height: int
    line: int
    top: int
    bottom: int
    left: int
    right: int


# That of a matrix product.
POINTWISE = Geometry(1, 1, 1, 1, 0, 0, 1, 1, 0, 0)
# Positions that one share of the work has, about: whole tiles.
CHUNK = 48


def filter_lanes(weight: np.ndarray, groups: int) -> np.ndarray:
    """Return float32 (G, blocks, kh*kw*C/G, 16) from weight (O, C/G, kh, kw): 16 filters side by side, zeros behind."""
    o, channels, kh, kw = weight.shape
    filters = o // groups
    blocks = -(-filters // BLOCK)
    laid = zeros_at_line((groups, blocks, kh * kw * channels, BLOCK), np.float32)
    for group, by_block in zip(weight.reshape(groups, filters, channels, kh * kw), laid, strict=True):
        for first, to in zip(range(0, filters, BLOCK), by_block, strict=True):
            part = group[first : first + BLOCK]
            to[:, : len(part)] = part.transpose(2, 1, 0).reshape(-1, len(part))
    return laid


@functools.lru_cache(maxsize=256)
def window_offsets(own: int, channels: int, width: int, taps: tuple[int, int, int, int]) -> np.ndarray:
    """Return uint64 (kh*kw*own,): where a window's inputs lie in a map of this width; taps = (kh, kw, dy, dx)."""
    kh, kw, dy, dx = taps
    y, x, c = np.ogrid[:kh, :kw, :own]
    return ((y * dy * width + x * dx) * channels + c).reshape(-1).astype(np.uint64)


@functools.lru_cache(maxsize=256)
def window_starts(out: tuple[int, int], strides: tuple[int, int], width: int, channels: int) -> np.ndarray:
    """Return uint64 (Ho*Wo,): where the windows of an image begin in a map of this width."""
    y, x = np.ogrid[: out[0], : out[1]]
    return ((y * strides[0] * width + x * strides[1]) * channels).reshape(-1).astype(np.uint64)


def tile_shape() -> tuple[int, int]:
    """Return (windows, vectors of 16 filters) of a tile: as many sums as the registers hold."""
    return (8, 2) if isa() == "avx512" else (6, 1)


@functools.cache
def multiply_kernel(expand: Any, kind: type) -> Any:
    """Return the kernel for weights as float32 flat `filter_lanes`, or of few bits, which `expand` expands.

    kind: of output, see `ops.finishing`.
    """
    finish, (hold, finish_held) = finisher(kind), held_finisher(kind, 16)
    windows, most = tile_shape()
    wide, wide_one = tile(windows, most, 16), tile(1, most, 16)
    sixteen, one_by_sixteen = tile(windows, 1, 16), tile(1, 1, 16)
    eight, one_by_eight = tile(windows, 1, 8), tile(1, 1, 8)

    def multiply(x, offsets, weights, per_word, starts, size, output, first, last):
        """Shares (`most` blocks of 16 filters, chunks of positions): the blocks' weights stay in the cache.

        x float32 flat (N, H, W, C), border included; offsets from `window_offsets`; starts from `window_starts`;
        per_word: weights to a word of few bits; size: `Sizes`; output: `EpilogueOutput`. The bias is added last, as
        oneDNN does behind PyTorch.
        """
        size = Sizes(*size)
        chunks = (size.positions + size.chunk - 1) // size.chunk
        parts = (size.blocks + most - 1) // most
        length = len(offsets) * 16
        sums = numbers_at_line(windows * most * 16, np.float32)
        begin = np.empty(size.chunk, np.uint64)
        ready = addresses(output)
        opened = numbers_at_line(length * most if expand is not None else 0, np.float32)
        last_part = -1
        for share in range(first, last):
            part, chunk = share_at(share, chunks, parts * size.groups, size.parts)
            g = part // parts
            block = (part - g * parts) * most
            channel = g * size.filters + block * 16
            left = size.filters - block * 16
            vectors = min(most, size.blocks - block)
            block += g * size.blocks
            if expand is not None:
                if part != last_part:
                    for v in range(vectors):
                        expand(weights, block + v, len(offsets), per_word, opened[v * length :])
                    last_part = part
                w, j = opened, np.uint64(0)
            else:
                w, j = weights, np.uint64(block * length)
            apart = np.uint64(length)
            start = chunk * size.chunk
            count = min(size.chunk, size.positions - start)
            n = start // size.per_image
            place = start - n * size.per_image
            for i in range(count):
                begin[i] = np.uint64(n * size.image + g * size.channels) + starts[place]
                place += 1
                if place == size.per_image:
                    place = 0
                    n += 1
            end = np.uint64(count - 1)
            i = 0
            while i < count:
                # A last tile of fewer positions begins earlier; a single one left is cheaper by itself.
                single = i == count - 1
                first_of = i if single else max(0, min(i, count - windows))
                at = np.uint64(first_of)
                for k in range(i, min(first_of + windows, count)):
                    prefetch_floats(start + k, channel, min(left, vectors * 16), ready)
                if vectors > 1:
                    if single:
                        wide_one(x, offsets, begin, at, end, w, j, apart, sums)
                    else:
                        wide(x, offsets, begin, at, end, w, j, apart, sums)
                elif left > 8:
                    if single:
                        one_by_sixteen(x, offsets, begin, at, end, w, j, apart, sums)
                    else:
                        sixteen(x, offsets, begin, at, end, w, j, apart, sums)
                elif single:
                    one_by_eight(x, offsets, begin, at, end, w, j, apart, sums)
                else:
                    eight(x, offsets, begin, at, end, w, j, apart, sums)
                to = min(first_of + windows, count)
                apart_by, f, end_of_row = vectors * 16, 0, min(left, vectors * 16)
                while f + 16 <= end_of_row:
                    held = hold(channel + f, ready)
                    for k in range(i, to):
                        value = float32x16.load(sums, np.uint64((k - first_of) * apart_by + f))
                        finish_held(value, start + k, channel + f, left - f, held, ready)
                    f += 16
                while f < end_of_row:
                    for k in range(i, to):
                        few = float32x8.load(sums, np.uint64((k - first_of) * apart_by + f))
                        finish(few, start + k, channel + f, left - f, ready)
                    f += 8
                i = to

    source = "float32" if expand is None else expand.py_func.__name__
    full_name = f"multiply_{source}_{windows}x{most}_{finish.py_func.__name__}"
    multiply.__name__ = multiply.__qualname__ = full_name
    return jit(multiply)


@jit
def _frame_rows(x, out, size, value, first, last):
    """Rows (n, y) of out flat (N, H', W', C): x flat (N, H, W, C) and a border of `value`.

    size: `FrameSizes`.
    """
    size = FrameSizes(*size)
    h, line, edge, behind = size.height, size.line, size.left, size.right
    whole, lines = edge + line + behind, size.top + h + size.bottom
    for row in range(first, last):
        n = row // lines
        y = row - n * lines - size.top
        to = out[row * whole : (row + 1) * whole]
        if 0 <= y < h:
            at = x[(n * h + y) * line : (n * h + y + 1) * line]
            left, middle, right = to[:edge], to[edge : edge + line], to[edge + line :]
            for i in range(edge):
                left[i] = value
            for i in range(behind):
                right[i] = value
            for i in range(line):
                middle[i] = at[i]
        else:
            for i in range(whole):
                to[i] = value


def framed(x: np.ndarray, frame: Frame, value: float) -> np.ndarray:
    """Return (N, top + H + bottom, left + W + right, C): a contiguous float32 map with a border."""
    n, h, w, c = x.shape
    lines = frame.top + h + frame.bottom
    out = empty((n, lines, frame.left + w + frame.right, c), np.float32)
    size = (h, w * c, frame.top, frame.bottom, frame.left * c, frame.right * c)
    run_rows(_frame_rows, n * lines, out.size // 8, x.reshape(-1), out.reshape(-1), size, np.float32(value))
    return out


class FloatConv2d:
    """FP32 convolution of contiguous (N, H, W, C) maps.

    weight: float32 (O, C/groups, kh, kw), or of few bits; bias: float32 (O,) or None;
    geometry: the numbers of a `Geometry`; pad: the value outside the map.
    """

    def __init__(
        self,
        weight: np.ndarray | FewBitWeight | CodedWeight,
        bias: np.ndarray | None,
        geometry: tuple[int, ...],
        groups: int = 1,
        pad: float = 0.0,
    ):
        self.geometry, self.groups, self.pad = Geometry(*geometry), groups, pad
        self.filters = weight.shape[0] // groups
        self._steps = -(-self.filters // BLOCK) * math.prod(weight.shape[1:]) * groups
        self._few: FewBitWeight | CodedWeight | None = None
        self._depthwise: FloatDepthwise | None = None
        self._weights: np.ndarray | tuple[np.ndarray, ...] = ()
        if isinstance(weight, (FewBitWeight, CodedWeight)):
            self._few, self._weights = weight, tuple(weight.packed)
        elif suits(groups, weight.shape[1], self.filters):
            self._depthwise = FloatDepthwise(weight, groups)
        else:
            self._weights = filter_lanes(weight, groups).reshape(-1)
            release(weight)
        self._plain = Epilogue(weight.shape[0], shift=bias)

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
    ) -> tuple[np.ndarray | None, LevelTensor | None]:
        """Return (float32 (N, Ho, Wo, O) or None, signs or None): the sums, without the bias, through an epilogue.

        residual: float32 (N, Ho, Wo, O) if the epilogue adds one; keep: whether the floats are wanted.
        """
        if self._depthwise is None and epilogue.multipliers and self.groups > 1 and self.filters % float32x8.LANES:
            # A byte of signs would belong to two groups.
            floats, _ = self.finish(x, out_size, Epilogue(epilogue.channels))
            assert floats is not None
            return epilogue(floats, residual, keep)
        ho, wo = out_size
        positions = len(x) * ho * wo
        output, results = epilogue.output((len(x), ho, wo, epilogue.channels), residual, keep)
        kh, kw, sy, sx, py, px, dy, dx = self.geometry[:8]
        _, h, w, c = x.shape
        if self._few is not None and self.geometry == POINTWISE and self._few.takes_few(positions):
            self._few.multiply(x.reshape(-1), positions, output, epilogue.kind)
            return results()
        if any(frame := self.geometry.frame) and (self._depthwise is None or self.pad != 0):
            x = framed(x, frame, self.pad)
            h, w, py, px = *x.shape[1:3], 0, 0
        if self._depthwise is not None:
            self._depthwise.run(x, out_size, Filter((kh, kw), (sy, sx), (py, px), (dy, dx)), output, epilogue.kind)
            return results()
        offsets = window_offsets(c // self.groups, c, w, (kh, kw, dy, dx))
        starts = window_starts((ho, wo), (sy, sx), w, c)
        windows, vectors = tile_shape()
        chunk = -(-positions // (windows * max(1, positions // CHUNK))) * windows
        blocks = -(-self.filters // BLOCK)
        chunks = -(-positions // max(1, chunk))
        size = (h * w * c, positions, ho * wo, chunk, self.filters, c // self.groups, blocks, self.groups)
        shares = self.groups * -(-blocks // vectors) * chunks
        kernel, per_word = (
            multiply_kernel(None if self._few is None else self._few.expand, epilogue.kind),
            0 if self._few is None else self._few.per_word,
        )
        given = (x.reshape(-1), offsets, self._weights, per_word, starts, (*size, parts_of(chunks)), tuple(output))
        run_rows(kernel, shares, positions * self._steps * 2, *given)
        return results()
