"""The convolution kernel of several bits: products of whole levels instead of pairs of bit planes.

A product of two 8-bit levels is 64 population counts but one byte product. Lanes are filters, and one step multiplies
four neighbouring bytes of a position (two 16-bit numbers) with those of 16 or 8 filters. No im2col: a table says how
far from a window's first element each step begins. With u for the input's levels, see `levels`,
    dot = sum level_x level_w = factor * sum u level_w  +  shift * sum of the weights under the filter
and what lies outside the map is u = `outside` there, taken back where it should count as nothing. Levels with zero
points count as f level - z_c: f is one more factor, and the shift of channel c is f shift - z_c. A form that multiplies
u - 128 instead gets as much back.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.bits.level_bytes import LevelBytes
from bnn_kernels.bits.sum_range import LARGEST_SUM
from bnn_kernels.compile.jit import jit
from bnn_kernels.ops.geometry import Geometry, Maps, border_of
from bnn_kernels.ops.integer_conv.form import Form
from bnn_kernels.ops.integer_conv.lanes import lane_weights, packed_bits, step_offsets
from bnn_kernels.ops.integer_conv.levels import elements_of, elements_of_bytes, input_code
from bnn_kernels.ops.integer_conv.tiles import first_of_block, loops, opens_in_tile, windows_of
from bnn_kernels.ops.outputs import Constants, LazyConstants, Output, kind_of, prefetcher, prepare_of, rows_writer
from bnn_kernels.ops.shares import parts_of, share_at
from bnn_kernels.ops.weights import LANES, Weights
from bnn_kernels.runtime.cache_lines import numbers_at_line
from bnn_kernels.runtime.threads import run_rows

# Positions that one share of the work has: whole tiles, of six windows or of eight.
CHUNK = 48


class Sizes(NamedTuple):
    """Sizes of a convolution on elements.

    image: elements of an image with its border; positions: (n, oy, ox) in all, per_image: of one image; filters,
    channels, blocks (of 2 * lanes filters): of a group; room: steps whose sums of int16 cannot overflow ("pairs");
    groups, parts: see `ops.shares`.
    """

    image: int
    positions: int
    parts: int
    per_image: int
    filters: int
    channels: int
    blocks: int
    room: int
    groups: int


@functools.cache
def product_kernel(kind: type, form: Form) -> Any:
    """Return the kernel with a kind of output and form.

    kernel(x, offsets, w, levels, starts, kind_at, size, constants, output, first, last) computes shares first..last of
    (blocks of 2 * lanes filters over all groups, chunks of CHUNK positions), see `ops.shares`;
    x flat, see `levels.fill_kernel`; offsets, see `lanes.step_offsets`; w and levels, see `lanes.LaneWeights`;
    starts uint64 (Ho * Wo,): where windows begin; kind_at int64 (Ho * Wo,): where the table rows of a position's
    kind of border begin, in lanes of 8;
    size: `Sizes`; constants, output: see `ops.outputs`.
    """
    prepare, name = prepare_of(kind)
    write_rows, prefetch = rows_writer(kind), prefetcher(kind)
    open_block, windows, one, alone = loops(form)
    first_tile, in_tile = first_of_block(form, windows), opens_in_tile(form)
    most = windows_of(form)
    width, elements, fields = 2 * form.lanes, form.elements, form.fields
    opens, opens_alone, dtype = form.opens, form.opens_alone, form.dtype

    def multiply(x, offsets, w, levels, starts, kind_at, size, constants, output, first, last):
        size, constants = Sizes(*size), Constants(*constants)
        positions, per_image, filters = size.positions, size.per_image, size.filters
        blocks, room, all_blocks = size.blocks, size.room, size.blocks * size.groups
        chunks = (positions + CHUNK - 1) // CHUNK
        padded = (filters + 7) // 8 * 8
        ready = prepare(output)
        sums = numbers_at_line(most * width, np.int32)
        scratch = np.empty(8, np.int32)
        begin, kinds = np.empty(CHUNK, np.uint64), np.empty(CHUNK, np.int64)
        step_size = width * elements // fields
        block_size = len(offsets) * step_size
        by_block = positions > 1 or not opens_alone
        tiles = min(CHUNK, positions) // most - in_tile
        part_of_step = np.uint64((step_size + tiles - 1) // tiles) if tiles > 0 else np.uint64(0)
        opened = numbers_at_line(len(offsets) * width * elements if opens and by_block else 0, dtype)
        last_block = -1
        source, at_source = open_block(w, np.uint64(0), 0, levels, opened)
        for share in range(first, last):
            block, chunk = share_at(share, chunks, all_blocks, size.parts)
            g = block // blocks
            f = (block - g * blocks) * width
            j = np.uint64(block * block_size)
            start = chunk * CHUNK
            count = min(CHUNK, positions - start)
            fresh = block != last_block and by_block
            if fresh:
                last_block = block
                if not in_tile or count == 1:
                    source, at_source = open_block(w, j, len(offsets), levels, opened)
            # The next block's weights are asked for while this chunk is multiplied, a part by each tile but one that
            # opens weights: that one waits for memory as it is.
            ahead, by = j, np.uint64(0)
            if block + 1 < all_blocks:
                ahead, by = j + np.uint64(block_size), part_of_step
            n = start // per_image
            place = start - n * per_image
            for i in range(count):
                begin[i] = np.uint64(n * size.image + g * size.channels) + starts[place]
                kinds[i] = kind_at[place] + g * padded + f
                place += 1
                if place == per_image:
                    place = 0
                    n += 1
            i = 0
            while i < count:
                if i == count - 1 or count == 1:
                    tile, here = i, 1
                    if by_block:
                        one(x, offsets, begin[i], source, at_source, room, sums)
                    else:
                        alone(x, offsets, begin[i], w, j, levels, room, sums)
                else:
                    # A last tile of fewer windows begins earlier and writes some sums again.
                    tile, here = max(0, min(i, count - most)), min(most, count)
                    for k in range(here):
                        prefetch(start + tile + k, g * filters + f, min(width, filters - f), ready)
                    if in_tile and fresh and i == 0:
                        first_tile(x, offsets, begin, tile, count - 1, w, j, levels, opened, room, sums)
                    else:
                        windows(x, offsets, begin, tile, count - 1, source, at_source, w, ahead, by, room, sums)
                        ahead += by * np.uint64(len(offsets))
                position, channel, left = start + tile, g * filters + f, filters - f
                write_rows(sums, width, here, width, kinds, tile, 0, position, channel, left, constants, ready, scratch)
                i = tile + here

    product = f"{'portable_' * form.portable}{form.product}{f'_less_{form.shift}' * (form.shift > 0)}"
    multiply.__name__ = multiply.__qualname__ = f"multiply_{product}{form.lanes}_{form.packed}_{name}"
    return jit(multiply)


def factor_of(maps: Maps) -> int:
    """Return the factor of u."""
    return input_code(maps).factor * (1 if maps.zero is None else maps.zero.factor)


def shifts_of(weights: Weights, maps: Maps, tap_levels: np.ndarray) -> np.ndarray:
    """Return int64 (G, filters of a group, kh, kw): what the shifts add under each tap; tap_levels: of the weights."""
    code, zero = input_code(maps), maps.zero
    if zero is None:
        return code.shift * tap_levels
    channels, kernel = weights.channels, weights.shape[2:]
    shifts = np.broadcast_to(zero.factor * code.shift - np.array(zero.points, np.int64), weights.groups * channels)
    levels = weights.levels().reshape(weights.groups, weights.filters, channels, *kernel)
    return np.einsum("gfckl,gc->gfkl", levels, shifts.reshape(weights.groups, channels))


class ProductPath:
    """Products of levels, see `ops.conv_path.ConvPath`."""

    def __init__(self, weights: Weights, geometry: Geometry, maps: Maps, form: Form):
        form = form._replace(packed=packed_bits(weights, geometry, form))
        code = input_code(maps)
        found = code.of(geometry.pad_value)
        if found is None and geometry.pads_levels:
            raise ValueError(f"pad_value {geometry.pad_value} is not a level of the input ({maps.multipliers})")
        # Where nothing stands for 0, what is outside is 0 as a number and taken back.
        outside = 0 if found is None else found
        border, factor = border_of(geometry, maps), factor_of(maps)
        lanes = -(-weights.filters // LANES) * LANES
        self.sums_fit = max(code.largest, form.shift) * weights.largest * weights.products <= LARGEST_SUM

        def offsets() -> np.ndarray:
            levels = weights.tap_levels()
            taps = factor * levels
            inside = shifts_of(weights, maps, levels) + form.shift * taps
            table = border.table(inside, (form.shift - outside) * taps)
            found = np.zeros((*table.shape[:2], lanes), np.int64)
            found[..., : weights.filters] = table
            return found

        self.groups = weights.groups
        self.factor, self._offsets, self._constants = factor, offsets, LazyConstants(factor, offsets)
        (h, w), frame, (sy, sx) = maps.extent, geometry.frame, geometry.stride
        width, channels = frame.left + w + frame.right, weights.channels * weights.groups
        steps = step_offsets((width, channels), geometry, weights.channels, form)
        held = weights.layout(form, lambda: lane_weights(weights, geometry, form))
        starts = (np.arange(maps.out[0])[:, None] * sy * width + np.arange(maps.out[1]) * sx) * channels
        kind_at = (border.y_kind[:, None] + border.x_kind.astype(np.int64)) * (weights.groups * lanes)
        blocks = -(-weights.filters // (2 * form.lanes))
        room = max(1, np.iinfo(np.int16).max // (2 * code.largest * weights.largest))
        self._image = (frame.top + h + frame.bottom) * width * channels
        self._size = (maps.out[0] * maps.out[1], weights.filters, weights.channels, blocks, room, weights.groups)
        self._head = (steps, held.lanes, held.tables, starts.reshape(-1).astype(np.uint64), kind_at.reshape(-1))
        self._shares = weights.groups * blocks
        self._form = form
        multipliers = np.array(maps.multipliers, np.int32)
        self._input = (channels, frame, form.dtype, multipliers, code.base, outside)

    @property
    def offsets(self) -> np.ndarray:
        """See `ops.conv_path.ConvPath`."""
        return self._offsets()

    def take(self, words: np.ndarray) -> tuple[Any, ...]:
        """Return the levels of the map with its border."""
        return (elements_of(words, *self._input),)

    def take_bytes(self, x: LevelBytes) -> tuple[Any, ...]:
        """Return the same of levels that are bytes."""
        _, frame, dtype, _, _, outside = self._input
        return (elements_of_bytes(x, frame, dtype, outside),)

    def run(self, taken: tuple[Any, ...], positions: int, output: Output) -> None:
        """Compute all positions into an output."""
        chunks = -(-positions // CHUNK)
        size = (self._image, positions, parts_of(chunks), *self._size)
        # Two vectors of filters a step; where each weight is read for few positions, memory takes as long as for four.
        shares, steps = self._shares * chunks, self._shares * len(self._head[0])
        work = 2 * max(positions, 4) * steps if positions else 0
        kernel = product_kernel(kind_of(output), self._form)
        run_rows(kernel, shares, work, *taken, *self._head, size, self._constants.of(output), tuple(output))
