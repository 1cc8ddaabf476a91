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
    held_finisher,
    is_plain,
    plain_finisher,
    prefetch_floats,
    prefetch_nothing,
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
    offsets = int32x16.load(constants.offsets, np.uint64(table_at))
    # Products of int32 are slow; these factors are those of most layers of levels and of signs.
    if constants.factor == 1:
        return vector_math.plus(value, offsets)
    if constants.factor == -2:
        return vector_math.minus(vector_math.minus(offsets, value), value)
    return vector_math.scaled(value, constants.factor, offsets)


@inline
def to_ints(value, table_at, position, channel, left, held, constants, output, scratch):
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
def to_bits(value, table_at, position, channel, left, held, constants, output, scratch):
    """Write to a `SignOutput`."""
    byte = channel >> 3
    mask = int32x8.below(value, output.bounds, np.uint64(table_at))
    output.bits[position * output.row_bytes + byte] = np.uint8(mask) ^ output.flip[byte]


@inline
def hold_nothing(channel, output):
    """Return what writing integers or their signs needs that is the same at all positions: nothing."""
    return 0


@inline
def to_ints_wide(value, table_at, position, channel, left, held, constants, output):
    """Write sixteen filters that are all there to an `IntOutput`."""
    at = position * output.filters + channel
    int32x16.store(output.out, np.uint64(at), _wide_dot(value, table_at, constants))


@inline
def to_bits_wide(value, table_at, position, channel, left, held, constants, output):
    """Write sixteen filters that are all there to a `SignOutput`."""
    byte = channel >> 3
    mask = int32x16.below(value, output.bounds, np.uint64(table_at))
    at = position * output.row_bytes + byte
    output.bits[at] = np.uint8(mask) ^ output.flip[byte]
    output.bits[at + 1] = np.uint8(mask >> np.uint64(8)) ^ output.flip[byte + 1]


class _Writer(NamedTuple):
    """How filters are written to a kind of output.

    write(value, table_at, position, channel, left, held, constants, output, scratch): eight filters, of which `left`
    are there, with what hold(channel, output) made; write_wide, without scratch, and hold_wide: the same of sixteen
    that are all there; write_plain: the same where is_plain(output); prepare(output): what they take for the output.
    """

    hold: Any
    write: Any
    hold_wide: Any
    write_wide: Any
    write_plain: Any
    is_plain: Any
    prepare: Any


def _finishing(kind: type, name: str) -> _Writer:
    """Return the writer to an output of `ops.finishing`, prepared as `EpilogueAddresses`."""
    hold, finish = held_finisher(kind, 8)
    hold_wide, finish_wide = held_finisher(kind, 16)
    finish_plain = plain_finisher(kind)

    def write(value, table_at, position, channel, left, held, constants, output, scratch):
        finish(vector_math.as_floats(_dot(value, table_at, constants)), position, channel, left, held, output)

    def write_wide(value, table_at, position, channel, left, held, constants, output):
        finish_wide(vector_math.as_floats(_wide_dot(value, table_at, constants)), position, channel, left, held, output)

    def write_plain(value, table_at, position, channel, left, held, constants, output):
        y = vector_math.as_floats(_wide_dot(value, table_at, constants))
        finish_plain(y, position, channel, left, held, output)

    write.__name__ = write.__qualname__ = name
    return _Writer(hold, inline(write), hold_wide, inline(write_wide), inline(write_plain), is_plain, addresses)


@inline
def _never(output):
    return False


@inline
def _ints(output):
    return IntOutput(*output)


@inline
def _signs(output):
    return SignOutput(*output)


def _straight() -> _Writer:
    """Return the same for a `StraightOutput`: without the product with a factor of 1, which is slow for int32."""
    hold, finish = held_finisher(StraightOutput, 8)
    hold_wide, finish_wide = held_finisher(StraightOutput, 16)

    @inline
    def to_bytes_alone(value, table_at, position, channel, left, held, constants, output, scratch):
        dot = vector_math.plus(value, int32x8.load(constants.offsets, np.uint64(table_at)))
        finish(vector_math.as_floats(dot), position, channel, left, held, output)

    @inline
    def to_bytes_alone_wide(value, table_at, position, channel, left, held, constants, output):
        dot = vector_math.plus(value, int32x16.load(constants.offsets, np.uint64(table_at)))
        finish_wide(vector_math.as_floats(dot), position, channel, left, held, output)

    wide = to_bytes_alone_wide
    return _Writer(hold, to_bytes_alone, hold_wide, wide, wide, _never, addresses)


_WRITERS: dict[type, _Writer] = {
    IntOutput: _Writer(hold_nothing, to_ints, hold_nothing, to_ints_wide, to_ints_wide, _never, _ints),
    SignOutput: _Writer(hold_nothing, to_bits, hold_nothing, to_bits_wide, to_bits_wide, _never, _signs),
    EpilogueOutput: _finishing(EpilogueOutput, "to_floats"),
    PlanesOutput: _finishing(PlanesOutput, "to_planes"),
    BytesOutput: _finishing(BytesOutput, "to_bytes"),
    StraightOutput: _straight(),
}


def kind_of(output: Output) -> Any:
    """Return the type of an output (`Any`, since mypy takes no type of a NamedTuple for hashable)."""
    return type(output)


def prepare_of(kind: type) -> tuple[Any, str]:
    """Return (prepare, name) for a kind of output: what writes to it takes what prepare(output) made."""
    found = _WRITERS[kind]
    return found.prepare, found.write.py_func.__name__


def prefetcher(kind: type) -> Any:
    """Return prefetch(position, channel, count, output), which a kernel calls well before it writes these filters."""
    return prefetch_floats if kind in (EpilogueOutput, PlanesOutput, BytesOutput) else prefetch_nothing


def rows_writer(kind: type) -> Any:
    """Return what writes some filters of one position after the other.

    write_rows(sums, apart, rows, count, kinds, first, above, position, channel, left, constants, output, scratch):
    filters channel .. channel + count, count a multiple of eight, of which `left` are there, of positions
    position .. position + rows. Those of the k-th lie in int32 sums[k * apart:], its table row begins at
    kinds[first + k] + above. Sixteen filters at a time as long as there are so many: what these share at all positions
    stays in registers.
    """
    hold, write, hold_wide, write_wide, write_plain, is_plain, _ = _WRITERS[kind]

    @inline
    def write_rows(sums, apart, rows, count, kinds, first, above, position, channel, left, constants, output, scratch):
        v, end = 0, min(count, left)
        plain = is_plain(output)
        while v + 16 <= end:
            held = hold_wide(channel + v, output)
            if plain:
                for k in range(rows):
                    value = int32x16.load(sums, np.uint64(k * apart + v))
                    at = kinds[np.uint64(first + k)] + above + v
                    write_plain(value, at, position + k, channel + v, left - v, held, constants, output)
            else:
                for k in range(rows):
                    value = int32x16.load(sums, np.uint64(k * apart + v))
                    at = kinds[np.uint64(first + k)] + above + v
                    write_wide(value, at, position + k, channel + v, left - v, held, constants, output)
            v += 16
        while v < end:
            few = hold(channel + v, output)
            for k in range(rows):
                value = int32x8.load(sums, np.uint64(k * apart + v))
                at = kinds[np.uint64(first + k)] + above + v
                write(value, at, position + k, channel + v, left - v, few, constants, output, scratch)
            v += 8

    return write_rows


def counts_writer(kind: type) -> Any:
    """Return what writes filters of one position after the other, eight at a time, from counts or from sums of them.

    write_counts(counts, sums, only, apart, rows, count, kinds, above, position, channel, left, constants, output,
    scratch): as `rows_writer`'s write_rows, of uint16 counts if they are the only ones, else of int32 sums.
    """
    hold, write, *_ = _WRITERS[kind]

    @inline
    def write_counts(
        counts, sums, only, apart, rows, count, kinds, above, position, channel, left, constants, output, scratch
    ):
        for v in range(0, min(count, left), 8):
            few = hold(channel + v, output)
            for k in range(rows):
                at = np.uint64(k * apart + v)
                value = int32x8.load_uint16(counts, at) if only else int32x8.load(sums, at)
                table_at = kinds[np.uint64(k)] + above + v
                write(value, table_at, position + k, channel + v, left - v, few, constants, output, scratch)

    return write_counts


def block_writer(kind: type) -> Any:
    """Return what writes up to sixteen filters of positions that lie anywhere.

    write_block(sums, apart, first, last, count, table_at, places, at, position, channel, left, constants, output,
    scratch): those of the k-th, first <= k < last, lie in int32 sums[k * apart:] and go to position + places[at + k].
    """
    hold, write, hold_wide, write_wide, *_ = _WRITERS[kind]

    @inline
    def write_block(
        sums, apart, first, last, count, table_at, places, at, position, channel, left, constants, output, scratch
    ):
        if min(count, left) >= 16:
            held = hold_wide(channel, output)
            for k in range(first, last):
                value = int32x16.load(sums, np.uint64(k * apart))
                place = position + np.int64(places[np.uint64(at + k)])
                write_wide(value, table_at, place, channel, left, held, constants, output)
        else:
            for v in range(0, min(count, left), 8):
                few = hold(channel + v, output)
                for k in range(first, last):
                    value = int32x8.load(sums, np.uint64(k * apart + v))
                    place = position + np.int64(places[np.uint64(at + k)])
                    write(value, table_at + v, place, channel + v, left - v, few, constants, output, scratch)

    return write_block
