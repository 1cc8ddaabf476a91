"""What follows a layer's sums, for eight channels of a position at a time: floats, and signs or levels of them.

`epilogue` says which operations there are, and in which order. The type of an output says what is made beside floats,
so that a kernel holds the code of that alone, see `finisher`.
"""

from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.compile.jit import inline
from bnn_kernels.compile.simd import byte, float32x8, int32x8

# Bits of `Epilogue.parts`: which parts there are.
BEFORE, AFTER, ACTIVATION, CLAMP, BITS, KEEP, NORM, AFFINE, DIVIDES = (1 << i for i in range(9))

# `Epilogue.table` begins with numbers that are the same in all channels, eight of each.
LOW, HIGH, FACTOR, LEAST, MOST = range(0, 40, 8)
SAME = 40
# Behind them lie the rows of the parts that there are, a number a channel: those of AFFINE (scale, shift), NORM (scale,
# shift), ACTIVATION (pre, slope, post) and BITS (bounds).


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


class EpilogueAddresses(NamedTuple):
    """An `EpilogueOutput` with the addresses of its arrays, for finishers.

    lanes: of a row of the table; bounds: where the last row begins.
    """

    parts: int
    channels: int
    lanes: int
    bounds: int
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
    """Return the lanes of a row: eight more than there need be, as a block of filters may begin between eights."""
    return (channels + 7) // 8 * 8 + 8


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
def _floats(y, position, c, count, output):
    """Return channels c .. c+7 of one position, of which there are `count`, as floats."""
    parts, lanes, table = output.parts, output.lanes, output.table
    at = position * output.channels + c
    v, row = y, SAME + c
    if parts & AFFINE:
        v = float32x8.multiply(v, float32x8.load_from(table, row))
        v = float32x8.add(v, float32x8.load_from(table, row + lanes))
        row += 2 * lanes
    if parts & NORM:
        gain, offset = float32x8.load_from(table, row), float32x8.load_from(table, row + lanes)
        v = float32x8.multiply_add(v, gain, offset)
        row += 2 * lanes
    rest = v
    if parts & (BEFORE | AFTER):
        rest = (
            float32x8.load_from(output.residual, at) if count == 8 else float32x8.load_some(output.residual, at, count)
        )
    if parts & BEFORE:
        v = float32x8.add(v, rest)
    if parts & ACTIVATION:
        v = float32x8.subtract(v, float32x8.load_from(table, row))
        v = float32x8.scale_negative(v, float32x8.load_from(table, row + lanes))
        v = float32x8.add(v, float32x8.load_from(table, row + 2 * lanes))
    if parts & CLAMP:
        v = float32x8.clamp(v, float32x8.load_from(table, LOW), float32x8.load_from(table, HIGH))
    if parts & AFTER:
        v = float32x8.add(v, rest)
    return v


@inline
def _keep(v, position, c, count, output):
    """Write the floats, if they are wanted."""
    at = position * output.channels + c
    if output.parts & KEEP:
        if count == 8:
            float32x8.store_to(output.out, at, v)
        else:
            float32x8.store_some(output.out, at, v, count)


@inline
def _level(v, live, output):
    """Return int32 levels of floats, in two's complement; a NaN in a live lane is noted."""
    table = output.table
    factor = float32x8.load_from(table, FACTOR)
    scaled = float32x8.divide(v, factor) if output.parts & DIVIDES else float32x8.multiply(v, factor)
    least, most = float32x8.load_from(table, LEAST), float32x8.load_from(table, MOST)
    if float32x8.unordered(scaled) & live:
        byte.store(output.nan, 0, np.uint64(1))
    return float32x8.rounded(float32x8.clamp(scaled, least, most))


@inline
def _live(count):
    return (np.uint64(1) << np.uint64(count)) - np.uint64(1)


# Each finishes channels c .. c+7 of one position from y as floats; left: channels from c on; output:
# `EpilogueAddresses`.


@inline
def finish_signs(y, position, c, left, output):
    """For an `EpilogueOutput`."""
    count = min(left, 8)
    v = _floats(y, position, c, count, output)
    if output.parts & BITS:
        live = _live(count)
        mask, bad = float32x8.below(v, float32x8.load_from(output.table, output.bounds + c))
        flip = byte.load(output.flip, c >> 3)
        byte.store(output.bits, position * output.row_bytes + (c >> 3), (mask ^ flip) & live)
        if bad & live:
            byte.store(output.nan, 0, np.uint64(1))
    _keep(v, position, c, count, output)


@inline
def finish_planes(y, position, c, left, output):
    """For a `PlanesOutput`."""
    count = min(left, 8)
    v = _floats(y, position, c, count, output)
    live = _live(count)
    level = int32x8.add(_level(v, live, output), int32x8.splat(np.int32(output.base)))
    to = position * output.row_bytes + (c >> 3)
    for p in range(output.planes):
        byte.store(output.bits, p * output.plane_bytes + to, int32x8.bit_mask(level, p) & live)
    _keep(v, position, c, count, output)


@inline
def finish_bytes(y, position, c, left, output):
    """For a `BytesOutput`."""
    count = min(left, 8)
    v = _floats(y, position, c, count, output)
    level = int32x8.add(_level(v, _live(count), output), int32x8.splat(np.int32(output.base)))
    to = position * output.row_bytes + c
    if count == 8:
        int32x8.store_bytes_to(output.bits, to, level)
    else:
        word = int32x8.low_bytes(level)
        for k in range(count):
            byte.store(output.bits, to + k, word >> np.uint64(8 * k))
    _keep(v, position, c, count, output)


_FINISHERS: dict[type, Any] = {
    EpilogueOutput: finish_signs,
    PlanesOutput: finish_planes,
    BytesOutput: finish_bytes,
}


def finisher(kind: type) -> Any:
    """Return what finishes eight channels for a kind of output."""
    return _FINISHERS[kind]
