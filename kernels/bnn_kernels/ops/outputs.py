"""Where a convolution's sums go: integers, signs of thresholds, or floats and levels through an epilogue.

A kernel hands each output 16 or 8 neighbouring filters at one position as int32. With one pair of planes that is the
bare popcount, with several their weighted sum; what is left to do is one factor and what taps and weights add:

    dot = sum * factor + offsets[kind of border, filter]

For signs, thresholds have that solved for the sum beforehand: bit = (sum < bounds[kind of border, filter]) xor flip.

The type of an output says which of the functions below a kernel is made with, see `writer`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.bits.sum_range import wrapped
from bnn_kernels.compile.jit import inline
from bnn_kernels.compile.simd import int32x8, int32x16, vector_math
from bnn_kernels.ops.finishing import (
    BytesOutput,
    EpilogueOutput,
    PlanesOutput,
    StraightOutput,
    addresses,
    finisher,
    prefetch_floats,
    prefetch_nothing,
    wide_finisher,
)


class Constants(NamedTuple):
    """dot = sum * factor + offset: an int32 and int32 flat (kinds of border, G, filters rounded up to eights)."""

    factor: np.int32
    offsets: np.ndarray


class IntOutput(NamedTuple):
    """The dot products: out int32 flat (positions, filters), with all groups' filters."""

    out: np.ndarray
    filters: int


class SignOutput(NamedTuple):
    """Signs of thresholds.

    bounds: int32 flat like `Constants.offsets`; flip: uint8 (filters / 8,); bits: uint8 flat (positions, row_bytes).
    """

    bounds: np.ndarray
    flip: np.ndarray
    bits: np.ndarray
    row_bytes: int


Output = IntOutput | SignOutput | EpilogueOutput

_NO_OFFSETS = np.zeros(0, np.int32)


class LazyConstants:
    """The `Constants` of a layer, made when an output first needs them: signs have them in their bounds.

    offsets: returns int64 (kinds of border, G, filters rounded up to eights).
    """

    def __init__(self, factor: int, offsets: Callable[[], np.ndarray]):
        self._factor, self._offsets = np.int32(wrapped(np.array(factor))), offsets
        self._made: np.ndarray | None = None

    def of(self, output: Output) -> tuple[Any, ...]:
        """Return them as a tuple, for an output."""
        if isinstance(output, SignOutput):
            return self._factor, _NO_OFFSETS
        if self._made is None:
            self._made = wrapped(self._offsets()).reshape(-1)
        return self._factor, self._made


@inline
def _dot(value, table_at, constants):
    return vector_math.scaled(value, constants.factor, int32x8.load(constants.offsets, np.uint64(table_at)))


@inline
def _wide_dot(value, table_at, constants):
    return vector_math.scaled(value, constants.factor, int32x16.load(constants.offsets, np.uint64(table_at)))


@inline
def to_ints(value, table_at, position, channel, left, constants, output, scratch):
    """Write to an `IntOutput`; left: filters from `channel` on."""
    at = position * output.filters + channel
    dot = _dot(value, table_at, constants)
    if left >= 8:
        int32x8.store(output.out, np.uint64(at), dot)
    else:
        int32x8.store(scratch, np.uint64(0), dot)
        for k in range(left):
            output.out[at + k] = scratch[k]


@inline
def to_bits(value, table_at, position, channel, left, constants, output, scratch):
    """Write to a `SignOutput`."""
    byte = channel >> 3
    mask = int32x8.below(value, output.bounds, np.uint64(table_at))
    output.bits[position * output.row_bytes + byte] = np.uint8(mask) ^ output.flip[byte]


@inline
def to_ints_wide(value, table_at, position, channel, left, constants, output, scratch):
    """Write sixteen filters that are all there to an `IntOutput`."""
    at = position * output.filters + channel
    int32x16.store(output.out, np.uint64(at), _wide_dot(value, table_at, constants))


@inline
def to_bits_wide(value, table_at, position, channel, left, constants, output, scratch):
    """Write sixteen filters that are all there to a `SignOutput`."""
    byte = channel >> 3
    mask = int32x16.below(value, output.bounds, np.uint64(table_at))
    at = position * output.row_bytes + byte
    output.bits[at] = np.uint8(mask) ^ output.flip[byte]
    output.bits[at + 1] = np.uint8(mask >> np.uint64(8)) ^ output.flip[byte + 1]


def _finishing(kind: type, name: str) -> tuple[Any, Any]:
    """Return what writes 8 and 16 filters to an output of `ops.finishing`, prepared as `EpilogueAddresses`."""
    finish, finish_wide = finisher(kind), wide_finisher(kind)

    def write(value, table_at, position, channel, left, constants, output, scratch):
        finish(vector_math.as_floats(_dot(value, table_at, constants)), position, channel, left, output)

    def write_wide(value, table_at, position, channel, left, constants, output, scratch):
        finish_wide(vector_math.as_floats(_wide_dot(value, table_at, constants)), position, channel, left, output)

    write.__name__ = write.__qualname__ = name
    return inline(write), inline(write_wide)


@inline
def _ints(output):
    return IntOutput(*output)


@inline
def _signs(output):
    return SignOutput(*output)


def _straight() -> tuple[Any, Any]:
    """Return the same for a `StraightOutput`: without the product with a factor of 1, which is slow for int32."""
    finish, finish_wide = finisher(StraightOutput), wide_finisher(StraightOutput)

    @inline
    def to_bytes_alone(value, table_at, position, channel, left, constants, output, scratch):
        dot = vector_math.plus(value, int32x8.load(constants.offsets, np.uint64(table_at)))
        finish(vector_math.as_floats(dot), position, channel, left, output)

    @inline
    def to_bytes_alone_wide(value, table_at, position, channel, left, constants, output, scratch):
        dot = vector_math.plus(value, int32x16.load(constants.offsets, np.uint64(table_at)))
        finish_wide(vector_math.as_floats(dot), position, channel, left, output)

    return to_bytes_alone, to_bytes_alone_wide


_WRITERS: dict[type, tuple[tuple[Any, Any], Any]] = {
    IntOutput: ((to_ints, to_ints_wide), _ints),
    SignOutput: ((to_bits, to_bits_wide), _signs),
    EpilogueOutput: (_finishing(EpilogueOutput, "to_floats"), addresses),
    PlanesOutput: (_finishing(PlanesOutput, "to_planes"), addresses),
    BytesOutput: (_finishing(BytesOutput, "to_bytes"), addresses),
    StraightOutput: (_straight(), addresses),
}


def kind_of(output: Output) -> Any:
    """Return the type of an output (`Any`, since mypy takes no type of a NamedTuple for hashable)."""
    return type(output)


def writer(kind: type) -> tuple[Any, Any, str]:
    """Return (write, prepare, name) for a kind of output: a kernel calls `write` with what `prepare` made."""
    (write, _), prepare = _WRITERS[kind]
    return write, prepare, write.py_func.__name__


def prefetcher(kind: type) -> Any:
    """Return prefetch(position, channel, count, output), which a kernel calls well before it writes these filters."""
    return prefetch_floats if kind in (EpilogueOutput, PlanesOutput, BytesOutput) else prefetch_nothing


def row_writer(kind: type) -> Any:
    """Return write_row(sums, at, count, table_at, position, channel, left, constants, output, scratch).

    It writes the filters channel .. channel + count, of which `left` are there, from int32 sums[at : at + count], count
    a multiple of eight: sixteen at a time as long as there are so many.
    """
    (write, write_wide), _ = _WRITERS[kind]

    @inline
    def write_row(sums, at, count, table_at, position, channel, left, constants, output, scratch):
        v = 0
        while v + 16 <= min(count, left):
            value = int32x16.load(sums, np.uint64(at + v))
            write_wide(value, table_at + v, position, channel + v, left - v, constants, output, scratch)
            v += 16
        while v < min(count, left):
            value = int32x8.load(sums, np.uint64(at + v))
            write(value, table_at + v, position, channel + v, left - v, constants, output, scratch)
            v += 8

    return write_row
