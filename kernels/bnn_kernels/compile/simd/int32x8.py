"""Vectors of eight int32, whose sums wrap around."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bnn_kernels.compile.simd.uint64x8 import uint64x8
from bnn_kernels.compile.simd.vectors import (
    I8,
    I32,
    I64,
    element,
    in_all_lanes,
    loaded,
    vector_type,
)

LANES = 8
_INTS = ir.VectorType(I32, LANES)
_BYTES = ir.VectorType(I8, LANES)
int32x8 = vector_type("int32x8", _INTS)


@intrinsic
def splat(typing, value):
    """An int32 in all lanes."""

    def emit(context, builder, signature, args):
        return in_all_lanes(builder, args[0], _INTS)

    return int32x8(types.int32), emit


@intrinsic
def load(typing, array, offset):
    """Eight neighbours of an int32 array."""

    def emit(context, builder, signature, args):
        return loaded(builder, element(context, builder, signature.args[0], args[0], args[1], _INTS), 4)

    return int32x8(array, types.uint64), emit


@intrinsic
def load_uint16(typing, array, offset):
    """Eight neighbours of a uint16 array as int32."""

    def emit(context, builder, signature, args):
        short = ir.VectorType(ir.IntType(16), LANES)
        value = builder.load(element(context, builder, signature.args[0], args[0], args[1], short))
        value.align = 2
        return builder.zext(value, _INTS)

    return int32x8(array, types.uint64), emit


@intrinsic
def narrow(typing, words):
    """The low 32 bits of eight words."""
    return int32x8(uint64x8), lambda context, builder, signature, args: builder.trunc(args[0], _INTS)


@intrinsic
def store(typing, array, offset, value):
    """Write eight neighbours of an int32 array, from element `offset` on."""

    def emit(context, builder, signature, args):
        address = element(context, builder, signature.args[0], args[0], args[1], _INTS)
        builder.store(args[2], address).align = 4
        return context.get_dummy_value()

    return types.void(array, types.uint64, int32x8), emit


@intrinsic
def add(typing, a, b):
    """a + b."""
    return int32x8(int32x8, int32x8), lambda context, builder, signature, args: builder.add(*args)


@intrinsic
def multiply(typing, a, b):
    """a * b."""
    return int32x8(int32x8, int32x8), lambda context, builder, signature, args: builder.mul(*args)


@intrinsic
def below(typing, a, bounds, at):
    """Bit i of the uint64 result: lane i of a < bounds[at + i], int32."""

    def emit(context, builder, signature, args):
        t = loaded(builder, element(context, builder, signature.args[1], args[1], args[2], _INTS), 4)
        return builder.zext(builder.bitcast(builder.icmp_signed("<", args[0], t), I8), I64)

    return types.uint64(int32x8, bounds, types.uint64), emit


@intrinsic
def low_bytes(typing, a):
    """The low byte of each lane, side by side in a uint64, lane 0 lowest."""

    def emit(context, builder, signature, args):
        return builder.bitcast(builder.trunc(args[0], _BYTES), I64)

    return types.uint64(int32x8), emit
