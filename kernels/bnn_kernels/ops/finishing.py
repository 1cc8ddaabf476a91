"""What follows a layer's sums, for 16 or 8 channels of a position at a time: floats, and signs or levels of them.

`epilogue` says which operations there are, and in which order. The type of an output says what is made beside floats,
so that a kernel holds the code of that alone, see `finisher`.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.compile.jit import inline
from bnn_kernels.compile.simd import byte, float32x8, float32x16, int32x8, vector_math

# Bits of `Epilogue.parts`: which parts there are.
BEFORE, AFTER, ACTIVATION, CLAMP, BITS, KEEP, NORM, AFFINE, DIVIDES, CORRECTS, SHIFT, OWN = (1 << i for i in range(12))

# What most outputs have none of.
MORE = BEFORE | AFTER | ACTIVATION | CLAMP | AFFINE
# What plain outputs have, and what they have not: a layer's scale and a batch norm, and floats that are kept.
PLAIN, NOT_PLAIN = AFFINE | NORM | KEEP, ACTIVATION

# `Epilogue.table` begins with numbers that are the same in all channels, sixteen of each.
LANES = float32x16.LANES
LOW, HIGH, FACTOR, LEAST, MOST, LESS_STEP = range(0, 6 * LANES, LANES)
SAME = 6 * LANES
# Behind them lie the rows of the parts that there are, a number a channel: those of AFFINE (scale, shift), NORM (scale,
# shift), ACTIVATION (pre, slope, post), and BITS (bounds) or OWN (level_scale, level_shift).


class EpilogueOutput(NamedTuple):
    """Where a kernel's sums go through an epilogue, and what it needs for that.

    parts: which parts there are, `BEFORE` to `AFFINE`. table: float32 flat, see `Epilogue.table`. flip:
    uint8 (lanes / 8,). residual, out: float32 flat (positions, channels). bits: uint8 flat
    (planes, positions, row_bytes), or (positions, row_bytes) of levels as bytes; plane_bytes: of one plane. base: what
    levels are shifted by. nan: uint8 (1,), set where a NaN should become a bit.
    """

    parts: int
    channels: int
    table: np.ndarray
    flip: np.ndarray
    residual: np.ndarray
    out: np.ndarray
    bits: np.ndarray
    planes: int
    plane_bytes: int
    row_bytes: int
    base: int
    nan: np.ndarray


class PlanesOutput(EpilogueOutput):
    """The same, with evenly spaced levels as bit planes instead of signs."""


class BytesOutput(EpilogueOutput):
    """The same, with evenly spaced levels as bytes instead of signs."""


class StraightOutput(EpilogueOutput):
    """The same, with levels as bytes and nothing else, of integers with a factor of 1 that never become a NaN.

    No residual and no activation but a clamp, which is part of the levels' own. Most layers of a network of several
    bits have this output, and the branches of the others take as long as its arithmetic.
    """


class EpilogueAddresses(NamedTuple):
    """An `EpilogueOutput` with the addresses of its arrays, for finishers.

    lanes: of a row of the table; last: where its last row begins, that of bounds or level_shift.
    """

    parts: int
    channels: int
    lanes: int
    last: int
    planes: int
    plane_bytes: int
    row_bytes: int
    base: int
    table: int
    flip: int
    residual: int
    out: int
    bits: int
    nan: int


@inline
def lanes_of(channels):
    """Return the lanes of a row: whole cache lines, eight lanes more than there need be.

    A block of filters may begin between eights.
    """
    return (channels + 23) // 16 * 16


@inline
def addresses(output):
    """Return the `EpilogueAddresses` of an `EpilogueOutput` as a tuple, whose arrays the caller keeps alive."""
    output = EpilogueOutput(*output)
    lanes = lanes_of(output.channels)
    return EpilogueAddresses(
        output.parts,
        output.channels,
        lanes,
        len(output.table) - lanes,
        output.planes,
        output.plane_bytes,
        output.row_bytes,
        output.base,
        output.table.ctypes.data,
        output.flip.ctypes.data,
        output.residual.ctypes.data,
        output.out.ctypes.data,
        output.bits.ctypes.data,
        output.nan.ctypes.data,
    )


@inline
def prefetch_floats(position, channel, count, output):
    """Ask for what finishing `count` channels of a position will read and write of floats, a while before it does.

    A map of many channels has each position in memory pages of its own, where no CPU looks ahead by itself.
    """
    at = 4 * (position * output.channels + channel)
    for byte_at in range(at, at + 4 * count, byte.CACHE_LINE):
        if output.parts & (BEFORE | AFTER):
            byte.prefetch(output.residual, byte_at)
        if output.parts & KEEP:
            byte.prefetch_to_write(output.out, byte_at)


@inline
def prefetch_nothing(position, channel, count, output):
    """The same for outputs without floats."""


class _Memory(NamedTuple):
    """How a number of channels is read and written: load(address, at), the others with `count` of them at the end."""

    load: Any
    load_some: Any
    store_some: Any
    load_bits: Any
    store_bits: Any
    store_bytes: Any
    zero: Any


def _memory_of_eight() -> _Memory:
    """Return it for eight channels, of which some may not be there."""
    load, store = float32x8.load_from, float32x8.store_to

    @inline
    def load_some(address, at, count):
        return load(address, at) if count == 8 else float32x8.load_some(address, at, count)

    @inline
    def store_some(address, at, v, count):
        if count == 8:
            store(address, at, v)
        else:
            float32x8.store_some(address, at, v, count)

    @inline
    def load_bits(address, at):
        return byte.load(address, at)

    @inline
    def store_bits(address, at, mask):
        byte.store(address, at, mask)

    @inline
    def store_bytes(address, at, levels, count):
        if count == 8:
            vector_math.store_bytes_to(address, at, levels)
        else:
            word = int32x8.low_bytes(levels)
            for k in range(count):
                byte.store(address, at + k, word >> np.uint64(8 * k))

    return _Memory(load, load_some, store_some, load_bits, store_bits, store_bytes, float32x8.zero)


def _memory_of_sixteen() -> _Memory:
    """Return it for sixteen channels, all of which are there."""
    load, store = float32x16.load_from, float32x16.store_to

    @inline
    def load_some(address, at, count):
        return load(address, at)

    @inline
    def store_some(address, at, v, count):
        store(address, at, v)

    @inline
    def load_bits(address, at):
        return byte.load(address, at) | byte.load(address, at + 1) << np.uint64(8)

    @inline
    def store_bits(address, at, mask):
        byte.store(address, at, mask)
        byte.store(address, at + 1, mask >> np.uint64(8))

    @inline
    def store_bytes(address, at, levels, count):
        vector_math.store_bytes_to(address, at, levels)

    return _Memory(load, load_some, store_some, load_bits, store_bits, store_bytes, float32x16.zero)


class Held(NamedTuple):
    """What finishing some channels needs that is the same at all positions, so that it can stay in registers.

    Vectors of the parts that there are, and anything for the others. bounds: of signs; own_scale, own_shift: of levels.
    flip: the bits of signs.
    """

    scale: Any
    shift: Any
    norm_scale: Any
    norm_shift: Any
    pre: Any
    slope: Any
    post: Any
    low: Any
    high: Any
    bounds: Any
    own_scale: Any
    own_shift: Any
    factor: Any
    least: Any
    most: Any
    less_step: Any
    flip: Any


def _finishers(memory: _Memory, width: int) -> dict[type, tuple[Any, Any, Any]]:
    """Return (hold, finish, finish_plain) of so many channels for each kind of output.

    hold(c, output): the `Held` of channels c, c+1, ...; finish(y, position, c, left, held, output): these channels of
    one position from y as floats; left: channels from c on; output: `EpilogueAddresses`. finish_plain: the same where
    `is_plain` says so.
    """
    load, load_some, store_some, load_bits, store_bits, store_bytes, zero = memory

    def holder(signs: bool, levels: bool) -> Any:
        @inline
        def hold(c, output):
            parts, stride, table = output.parts, output.lanes, output.table
            none = zero()
            scale = shift = norm_scale = norm_shift = pre = slope = post = none
            bounds = own_scale = own_shift = factor = least = most = less_step = none
            flip = np.uint64(0)
            row = SAME + c
            if parts & AFFINE:
                scale, shift = load(table, row), load(table, row + stride)
                row += 2 * stride
            if parts & NORM:
                norm_scale, norm_shift = load(table, row), load(table, row + stride)
                row += 2 * stride
            if parts & ACTIVATION:
                pre, slope, post = load(table, row), load(table, row + stride), load(table, row + 2 * stride)
            low, high = load(table, LOW), load(table, HIGH)
            if signs and parts & BITS:
                bounds = load(table, output.last + c)
                flip = load_bits(output.flip, c >> 3)
            if levels:
                if parts & OWN:
                    own_scale, own_shift = load(table, output.last + c - stride), load(table, output.last + c)
                factor, least, most = load(table, FACTOR), load(table, LEAST), load(table, MOST)
                less_step = load(table, LESS_STEP)
            return Held(
                scale, shift, norm_scale, norm_shift, pre, slope, post, low, high,
                bounds, own_scale, own_shift, factor, least, most, less_step, flip,
            )  # fmt: skip

        return hold

    @inline
    def floats(y, position, c, count, held, output):
        """Return channels c, c+1, ... of one position, of which there are `count`, as floats."""
        parts = output.parts
        v = y
        if parts & AFFINE:
            v = vector_math.add(vector_math.multiply(v, held.scale), held.shift)
        if parts & NORM:
            v = vector_math.multiply_add(v, held.norm_scale, held.norm_shift)
        if not parts & MORE:
            return v
        rest = v
        if parts & (BEFORE | AFTER):
            rest = load_some(output.residual, position * output.channels + c, count)
        if parts & BEFORE:
            v = vector_math.add(v, rest)
        if parts & ACTIVATION:
            v = vector_math.scale_negative(vector_math.subtract(v, held.pre), held.slope)
            v = vector_math.add(v, held.post)
        if parts & CLAMP:
            v = vector_math.clamp(v, held.low, held.high)
        if parts & AFTER:
            v = vector_math.add(v, rest)
        return v

    @inline
    def plain_floats(y, position, c, count, held, output):
        """Return the same for a plain output: a clamp to what is no bound is none, so that little is asked."""
        at = position * output.channels + c
        v = vector_math.add(vector_math.multiply(y, held.scale), held.shift)
        v = vector_math.multiply_add(v, held.norm_scale, held.norm_shift)
        if output.parts & BEFORE:
            v = vector_math.add(v, load_some(output.residual, at, count))
        v = vector_math.clamp(v, held.low, held.high)
        if output.parts & AFTER:
            v = vector_math.add(v, load_some(output.residual, at, count))
        return v

    @inline
    def keep(v, position, c, count, output):
        """Write the floats, if they are wanted."""
        if output.parts & KEEP:
            store_some(output.out, position * output.channels + c, v, count)

    @inline
    def keep_plain(v, position, c, count, output):
        """Write the floats, which are wanted."""
        store_some(output.out, position * output.channels + c, v, count)

    @inline
    def of_inside(v, held, output):
        """Return the levels, not rounded yet, of floats that are clamped, see `bits.quotient`."""
        q = vector_math.multiply(v, held.factor)
        if output.parts & CORRECTS:
            left = vector_math.multiply_add(q, held.less_step, v)
            q = vector_math.multiply_add(left, held.factor, q)
        return q

    @inline
    def level(v, live, held, output):
        """Return int32 levels of floats, shifted, in two's complement; a NaN in a live lane is noted."""
        if output.parts & OWN:
            v = vector_math.multiply_add(v, held.own_scale, held.own_shift)
        if vector_math.unordered(v) & live:
            byte.store(output.nan, 0, np.uint64(1))
        if output.parts & CORRECTS:
            level = of_inside(vector_math.clamp(v, held.least, held.most), held, output)
        else:
            divides = output.parts & DIVIDES
            scaled = vector_math.divide(v, held.factor) if divides else vector_math.multiply(v, held.factor)
            level = vector_math.clamp(scaled, held.least, held.most)
        return vector_math.raised(vector_math.rounded(level), np.int32(output.base))

    def finishers_of(floats: Any, keep: Any) -> tuple[Any, Any, Any]:
        """Return finish for signs, for planes and for bytes."""

        @inline
        def finish_signs(y, position, c, left, held, output):
            """For an `EpilogueOutput`."""
            count = min(left, width)
            v = floats(y, position, c, count, held, output)
            if output.parts & BITS:
                live = (np.uint64(1) << np.uint64(count)) - np.uint64(1)
                mask, bad = vector_math.below(v, held.bounds)
                store_bits(output.bits, position * output.row_bytes + (c >> 3), (mask ^ held.flip) & live)
                if bad & live:
                    byte.store(output.nan, 0, np.uint64(1))
            keep(v, position, c, count, output)

        @inline
        def finish_planes(y, position, c, left, held, output):
            """For a `PlanesOutput`."""
            count = min(left, width)
            v = floats(y, position, c, count, held, output)
            live = (np.uint64(1) << np.uint64(count)) - np.uint64(1)
            levels = level(v, live, held, output)
            to = position * output.row_bytes + (c >> 3)
            for p in range(output.planes):
                store_bits(output.bits, p * output.plane_bytes + to, vector_math.bit_mask(levels, p) & live)
            keep(v, position, c, count, output)

        @inline
        def finish_bytes(y, position, c, left, held, output):
            """For a `BytesOutput`."""
            count = min(left, width)
            v = floats(y, position, c, count, held, output)
            live = (np.uint64(1) << np.uint64(count)) - np.uint64(1)
            store_bytes(output.bits, position * output.row_bytes + c, level(v, live, held, output), count)
            keep(v, position, c, count, output)

        return finish_signs, finish_planes, finish_bytes

    @inline
    def finish_straight(y, position, c, left, held, output):
        """For a `StraightOutput`."""
        parts = output.parts
        v = y
        if parts & AFFINE:
            v = vector_math.multiply(v, held.scale)
            if parts & SHIFT:
                v = vector_math.add(v, held.shift)
        if parts & NORM:
            v = vector_math.multiply_add(v, held.norm_scale, held.norm_shift)
        level = of_inside(vector_math.clamp(v, held.least, held.most), held, output)
        levels = vector_math.raised(vector_math.rounded(level), np.int32(output.base))
        store_bytes(output.bits, position * output.row_bytes + c, levels, min(left, width))

    hold_signs, hold_levels = holder(True, False), holder(False, True)
    signs, planes, bytes_ = finishers_of(floats, keep)
    plain_signs, plain_planes, plain_bytes = finishers_of(plain_floats, keep_plain)
    return {
        EpilogueOutput: (hold_signs, signs, plain_signs),
        PlanesOutput: (hold_levels, planes, plain_planes),
        BytesOutput: (hold_levels, bytes_, plain_bytes),
        StraightOutput: (hold_levels, finish_straight, finish_straight),
    }


_EIGHT = _finishers(_memory_of_eight(), float32x8.LANES)
_SIXTEEN = _finishers(_memory_of_sixteen(), LANES)


def _together(hold: Any, finish: Any) -> Any:
    def finish_alone(y, position, c, left, output):
        finish(y, position, c, left, hold(c, output), output)

    finish_alone.__name__ = finish_alone.__qualname__ = finish.py_func.__name__
    return inline(finish_alone)


@functools.cache
def finisher(kind: Any) -> Any:
    """Return what finishes eight channels for a kind of output, of which some may not be there.

    finish(y, position, c, left, output): channels c, c+1, ... of one position from y as floats; left: channels from c
    on; output: `EpilogueAddresses`.
    """
    return _together(*_EIGHT[kind][:2])


def held_finisher(kind: type, width: int) -> tuple[Any, Any]:
    """Return (hold, finish) for eight channels, or for sixteen that are all there, at one position after the other.

    hold(c, output) returns the `Held` of channels c, c+1, ...; finish(y, position, c, left, held, output) takes it.
    """
    return (_SIXTEEN if width == LANES else _EIGHT)[kind][:2]


def plain_finisher(kind: type) -> Any:
    """Return what finishes sixteen channels as `held_finisher`'s does, but where the output `is_plain` only."""
    return _SIXTEEN[kind][2]


@inline
def is_plain(output):
    """Whether floats are wanted of a layer's scale and a batch norm, with a residual or a clamp but no activation.

    Most floats of a network are. Asking for each part that there may be takes as long as all of its arithmetic.
    """
    return output.parts & (PLAIN | NOT_PLAIN) == PLAIN
