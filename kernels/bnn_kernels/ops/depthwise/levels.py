"""Depthwise convolution of levels: exact sums with channels as lanes, whatever the widths.

With u for the input's levels as unsigned numbers, see `bits.level_bytes`, a position's sum over the taps inside the map
is
    dot = factor * sum u level_w  +  shift * sum of the weights inside  +  pad_value * sum of the weights outside
(with zero points one shift a channel, see `integer_conv.products`).
Levels are read as bytes where they lie, if they are bytes; no map gets a border.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.bits.level_bytes import SLACK, LevelBytes
from bnn_kernels.bits.sum_range import LARGEST_SUM
from bnn_kernels.compile.isa import has, isa
from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.compile.simd.channel_products import ChannelForm, channel_products
from bnn_kernels.ops.depthwise.windows import (
    BLOCK,
    TILE,
    Filter,
    Windows,
    by_block,
    gathered,
    moved,
    six_of,
    windows_of,
)
from bnn_kernels.ops.filters import Filters
from bnn_kernels.ops.geometry import Frame, Geometry, Maps, border_of
from bnn_kernels.ops.integer_conv.levels import elements_of, elements_of_bytes, input_code
from bnn_kernels.ops.integer_conv.products import factor_of, shifts_of
from bnn_kernels.ops.outputs import Constants, LazyConstants, Output, block_writer, kind_of, prepare_of
from bnn_kernels.ops.weights import LANES, Weights
from bnn_kernels.runtime.arrays import aligned
from bnn_kernels.runtime.cache_lines import numbers_at_line
from bnn_kernels.runtime.threads import run_rows

SHORT = np.iinfo(np.int16).max
# With fewer taps most of four would be zeros.
FEWEST_OF_FOUR = 3
# With fewer steps between them, adding sums of 16 bits to those of 32 costs more than it saves.
FEWEST_STEPS = 4


class Sizes(NamedTuple):
    """image: elements of an image; positions and tiles: of an image; filters: in all; rows: of weights, see `by_block`.

    room: taps whose sums of 16 bits cannot overflow.
    """

    image: int
    positions: int
    tiles: int
    filters: int
    rows: int
    room: int


def channel_form(filters: Filters, maps: Maps) -> ChannelForm | None:
    """Return the form in which such levels are multiplied; None if 16 bits do not hold them."""
    found = channel_forms(filters, maps)
    wide = isa() == "avx512"
    if 4 in found and wide and has("avx512vnni") and filters.products >= FEWEST_OF_FOUR:
        return found[4]._replace(width=512)
    if 1 in found:
        return found[1]
    width = 512 if wide and has("avx512bw") else 256 if has("avx2") else 0
    return found[2]._replace(width=width) if 2 in found else None


def channel_forms(filters: Filters, maps: Maps) -> dict[int, ChannelForm]:
    """Return {taps at a time: the form, portable} of all forms that hold such levels."""
    largest, values = input_code(maps).largest, filters.level_values
    if max(largest, filters.largest) > SHORT:
        return {}
    weights = 8 if values.min() >= -128 and values.max() <= 127 else 16
    inputs = 8 if largest <= 255 else 16
    found = {2: ChannelForm(inputs, weights, 32, 0, 2)}
    if inputs == weights == 8:
        found[4] = ChannelForm(inputs, weights, 32, 0, 4)
    if room_for(largest, filters.largest) >= min(FEWEST_STEPS, filters.products):
        found[1] = ChannelForm(inputs, weights, 16, 0, 1)
    return found


def room_for(largest: int, weight: int) -> int:
    """Return how many products of such levels have sums that 16 bits hold."""
    return SHORT // max(1, largest * weight)


def _tiles(form: ChannelForm) -> tuple[Any, Any]:
    """Return what writes the sums of six positions, and of one, each with sixteen filters, to int32 (6, lanes)."""
    simd = channel_products(form)
    zero, inputs, weights, dot, store, add_to = (
        simd.zero, simd.inputs, simd.weights, simd.dot, simd.store, simd.add_to,
    )  # fmt: skip
    one_row = np.uint64(BLOCK)

    @inline
    def six_pairs(x, at, taps, rows, begin, end, w, j, room, out, to):
        a0, a1, a2, a3, a4, a5 = at
        s0 = s1 = s2 = s3 = s4 = s5 = zero()
        for k in range(begin, end, np.uint64(2)):
            o, p = taps[k], taps[k + np.uint64(1)]
            v = weights(w, j + rows[k] * one_row, j + rows[k + np.uint64(1)] * one_row)
            s0 = dot(s0, inputs(x, a0 + o, a0 + p), v)
            s1 = dot(s1, inputs(x, a1 + o, a1 + p), v)
            s2 = dot(s2, inputs(x, a2 + o, a2 + p), v)
            s3 = dot(s3, inputs(x, a3 + o, a3 + p), v)
            s4 = dot(s4, inputs(x, a4 + o, a4 + p), v)
            s5 = dot(s5, inputs(x, a5 + o, a5 + p), v)
        store(out, to[0], s0)
        store(out, to[1], s1)
        store(out, to[2], s2)
        store(out, to[3], s3)
        store(out, to[4], s4)
        store(out, to[5], s5)

    @inline
    def six_fours(x, at, taps, rows, begin, end, w, j, room, out, to):
        a0, a1, a2, a3, a4, a5 = at
        s0 = s1 = s2 = s3 = s4 = s5 = zero()
        for k in range(begin, end, np.uint64(4)):
            l, m, n = k + np.uint64(1), k + np.uint64(2), k + np.uint64(3)  # noqa: E741
            o, p, q, r = taps[k], taps[l], taps[m], taps[n]
            v = weights(w, j + rows[k] * one_row, j + rows[l] * one_row, j + rows[m] * one_row, j + rows[n] * one_row)
            s0 = dot(s0, inputs(x, a0 + o, a0 + p, a0 + q, a0 + r), v)
            s1 = dot(s1, inputs(x, a1 + o, a1 + p, a1 + q, a1 + r), v)
            s2 = dot(s2, inputs(x, a2 + o, a2 + p, a2 + q, a2 + r), v)
            s3 = dot(s3, inputs(x, a3 + o, a3 + p, a3 + q, a3 + r), v)
            s4 = dot(s4, inputs(x, a4 + o, a4 + p, a4 + q, a4 + r), v)
            s5 = dot(s5, inputs(x, a5 + o, a5 + p, a5 + q, a5 + r), v)
        store(out, to[0], s0)
        store(out, to[1], s1)
        store(out, to[2], s2)
        store(out, to[3], s3)
        store(out, to[4], s4)
        store(out, to[5], s5)

    @inline
    def one_fours(x, at, taps, rows, begin, end, w, j, room, out, to):
        total, a = zero(), at[0]
        for k in range(begin, end, np.uint64(4)):
            l, m, n = k + np.uint64(1), k + np.uint64(2), k + np.uint64(3)  # noqa: E741
            v = weights(w, j + rows[k] * one_row, j + rows[l] * one_row, j + rows[m] * one_row, j + rows[n] * one_row)
            total = dot(total, inputs(x, a + taps[k], a + taps[l], a + taps[m], a + taps[n]), v)
        store(out, to[0], total)

    @inline
    def one_pairs(x, at, taps, rows, begin, end, w, j, room, out, to):
        total = zero()
        for k in range(begin, end, np.uint64(2)):
            v = weights(w, j + rows[k] * one_row, j + rows[k + np.uint64(1)] * one_row)
            total = dot(total, inputs(x, at[0] + taps[k], at[0] + taps[k + np.uint64(1)]), v)
        store(out, to[0], total)

    @inline
    def six_singles(x, at, taps, rows, begin, end, w, j, room, out, to):
        a0, a1, a2, a3, a4, a5 = at
        k, is_first = begin, True
        while True:
            s0 = s1 = s2 = s3 = s4 = s5 = zero()
            until = min(end, k + room)
            while k < until:
                o = taps[k]
                v = weights(w, j + rows[k] * one_row)
                s0 = dot(s0, inputs(x, a0 + o), v)
                s1 = dot(s1, inputs(x, a1 + o), v)
                s2 = dot(s2, inputs(x, a2 + o), v)
                s3 = dot(s3, inputs(x, a3 + o), v)
                s4 = dot(s4, inputs(x, a4 + o), v)
                s5 = dot(s5, inputs(x, a5 + o), v)
                k += np.uint64(1)
            if is_first:
                store(out, to[0], s0)
                store(out, to[1], s1)
                store(out, to[2], s2)
                store(out, to[3], s3)
                store(out, to[4], s4)
                store(out, to[5], s5)
            else:
                add_to(out, to[0], s0)
                add_to(out, to[1], s1)
                add_to(out, to[2], s2)
                add_to(out, to[3], s3)
                add_to(out, to[4], s4)
                add_to(out, to[5], s5)
            is_first = False
            if k == end:
                break

    @inline
    def one_singles(x, at, taps, rows, begin, end, w, j, room, out, to):
        k, is_first = begin, True
        while True:
            total = zero()
            until = min(end, k + room)
            while k < until:
                total = dot(total, inputs(x, at[0] + taps[k]), weights(w, j + rows[k] * one_row))
                k += np.uint64(1)
            if is_first:
                store(out, to[0], total)
            else:
                add_to(out, to[0], total)
            is_first = False
            if k == end:
                break

    return {1: (six_singles, one_singles), 2: (six_pairs, one_pairs), 4: (six_fours, one_fours)}[form.taps]


@functools.cache
def depthwise_kernel(kind: type, form: ChannelForm) -> Any:
    """Return the kernel for a kind of output, see `ops.outputs`, and a form of products."""
    (prepare, name), write_block = prepare_of(kind), block_writer(kind)
    six, one = _tiles(form)
    block = np.uint64(BLOCK)
    to = tuple(np.uint64(i) * block for i in range(TILE))

    def depthwise(x, weights, windows, size, constants, output, first, last):
        """Tiles first..last of all images; x int8 or int16 flat (N, H, W, lanes) and some behind; weights flat."""
        size, windows, constants = Sizes(*size), Windows(*windows), Constants(*constants)
        ready = prepare(output)
        taps, rows, filters, room = windows.offsets, windows.rows, size.filters, np.uint64(size.room)
        padded = (filters + 7) // 8 * 8
        sums, scratch = numbers_at_line(TILE * BLOCK, np.int32), np.empty(8, np.int32)
        for share in range(first, last):
            n = share // size.tiles
            tile = share - n * size.tiles
            kind = windows.kinds[tile]
            begin, end = np.uint64(windows.first_taps[kind]), np.uint64(windows.first_taps[kind + 1])
            lowest, highest = windows.ends[2 * tile], windows.ends[2 * tile + 1]
            at = moved(six_of(windows.starts, tile), np.uint64(n * size.image))
            for c in range(0, filters, 16):
                j = np.uint64(c * size.rows)
                a = moved(at, np.uint64(c))
                if highest > 1:
                    six(x, a, taps, rows, begin, end, weights, j, room, sums, to)
                else:
                    one(x, a, taps, rows, begin, end, weights, j, room, sums, to)
                lanes, row = min(BLOCK, padded - c), kind * padded + c
                write_block(
                    sums, BLOCK, lowest, highest, lanes, row, windows.places, TILE * tile, n * size.positions, c,
                    filters - c, constants, ready, scratch,
                )  # fmt: skip

    depthwise.__name__ = depthwise.__qualname__ = f"depthwise_{'_'.join(map(str, form))}_{name}"
    return jit(depthwise)


class DepthwisePath:
    """Products of levels with channels as lanes, see `ops.conv_path.ConvPath`."""

    def __init__(self, weights: Weights, geometry: Geometry, maps: Maps, form: ChannelForm):
        code = input_code(maps)
        if geometry.pads_levels and code.of(geometry.pad_value) is None:
            raise ValueError(f"pad_value {geometry.pad_value} is not a level of the input ({maps.multipliers})")
        o, channels = weights.shape[:2]
        self.factor, self.groups = factor_of(maps), 1
        border = border_of(geometry._replace(pad_value=0), maps)
        self.sums_fit = code.largest * weights.largest * weights.products <= LARGEST_SUM

        def offsets() -> np.ndarray:
            levels = weights.tap_levels()
            table = border.table(shifts_of(weights, maps, levels), geometry.pad_value * levels)
            # One group of all filters: they lie side by side.
            found = np.zeros((len(table), 1, -(-o // LANES) * LANES), np.int64)
            found[:, 0, :o] = table.reshape(len(table), o)
            return found

        self._offsets, self._constants = offsets, LazyConstants(self.factor, offsets)
        dtype = np.int8 if form.weights == 8 else np.int16

        def lay_out() -> np.ndarray:
            return aligned(by_block(weights.levels().astype(dtype), -(-o // BLOCK) * BLOCK)).reshape(-1)

        (h, w), pixel = maps.extent, channels * o
        filter_ = Filter(geometry.kernel, geometry.stride, geometry.padding, geometry.dilation)
        windows = windows_of(maps.extent, maps.out, filter_, pixel, channels, o, form.taps)
        self._pixels, self._lanes = h * w, (weights.groups, channels, weights.filters, o)
        self._tiles, self._positions, self._products = len(windows.kinds), maps.out[0] * maps.out[1], weights.products
        room = room_for(code.largest, weights.largest)
        self._size = (h * w * pixel, self._positions, self._tiles, o, weights.products + 1, room)
        self._head = (weights.layout((form.weights, BLOCK), lay_out), tuple(windows))
        self._channel_form = form
        element = np.int8 if form.inputs == 8 else np.int16
        channels_in = weights.groups * channels
        self._input = (channels_in, Frame(0, 0, 0, 0), element, np.array(maps.multipliers, np.int32), code.base, 0)

    @property
    def offsets(self) -> np.ndarray:
        """See `ops.conv_path.ConvPath`."""
        return self._offsets()

    def _by_lane(self, u: np.ndarray, images: int) -> tuple[Any, ...]:
        _, channels, filters, _ = self._lanes
        if channels == 1 and filters == 1:
            return (u,)
        return (gathered(u, images * self._pixels, self._lanes, SLACK),)

    def take(self, words: np.ndarray) -> tuple[Any, ...]:
        """Return the levels, a lane's channels where the lane reads them."""
        return self._by_lane(elements_of(words, *self._input), words.shape[1])

    def take_bytes(self, x: LevelBytes) -> tuple[Any, ...]:
        """Return the same of levels that are bytes."""
        _, frame, element, _, _, outside = self._input
        return self._by_lane(elements_of_bytes(x, frame, element, outside), x.map_size[0])

    def run(self, taken: tuple[Any, ...], positions: int, output: Output) -> None:
        """Compute all positions into an output."""
        tiles = positions // self._positions * self._tiles
        work = positions * self._products * self._lanes[3] // 4
        kernel = depthwise_kernel(kind_of(output), self._channel_form)
        run_rows(kernel, tiles, work, *taken, *self._head, self._size, self._constants.of(output), tuple(output))
