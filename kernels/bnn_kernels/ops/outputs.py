"""Where a convolution's sums go: integers, bits behind thresholds, or floats through an epilogue.

A kernel hands each sink eight neighbouring filters at one position as int32. With one pair of planes that is the bare
popcount, with several their weighted sum; what is left to do is one factor and what taps and weights add:

    dot = sum * factor + offsets[kind of border, filter]

For bits, thresholds have that solved for the sum beforehand: bit = (sum < bounds[kind of border, filter]) xor flip.
"""

import numpy as np

from bnn_kernels.compile.jit import inline
from bnn_kernels.compile.simd import float32x8, int32x8
from bnn_kernels.ops.epilogue import addresses, finish_block


@inline
def _dot(value, table_at, tables):
    factor, offsets = tables
    return int32x8.add(int32x8.multiply(value, int32x8.splat(factor)), int32x8.load(offsets, np.uint64(table_at)))


@inline
def to_ints(value, table_at, position, channel, left, tables, sink, scratch):
    """sink = (out int32 flat (positions, O), O); left: filters from `channel` on."""
    out, channels = sink
    at = position * channels + channel
    dot = _dot(value, table_at, tables)
    if left >= 8:
        int32x8.store(out, np.uint64(at), dot)
    else:
        int32x8.store(scratch, np.uint64(0), dot)
        for k in range(left):
            out[at + k] = scratch[k]


@inline
def to_bits(value, table_at, position, channel, left, tables, sink, scratch):
    """sink = (bounds int32 flat like the offsets, flip uint8 (O / 8,), bits uint8 flat, bytes of a position)."""
    bounds, flip, bits, row_bytes = sink
    byte = channel >> 3
    mask = int32x8.below(value, bounds, np.uint64(table_at))
    bits[position * row_bytes + byte] = np.uint8(mask) ^ flip[byte]


@inline
def to_floats(value, table_at, position, channel, left, tables, sink, scratch):
    """sink: see `epilogue.addresses`."""
    finish_block(float32x8.from_int32(_dot(value, table_at, tables)), position, channel, left, sink)


@inline
def as_is(sink):
    """Return a sink that its kernel takes as it is given."""
    return sink


# What a kernel makes of its sink before it begins.
PREPARE = {"to_ints": as_is, "to_bits": as_is, "to_floats": addresses}
