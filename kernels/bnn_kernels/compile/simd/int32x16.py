"""Vectors of sixteen int32."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bnn_kernels.compile.simd.vectors import I32, element, loaded, vector_type

LANES = 16
_VECTOR = ir.VectorType(I32, LANES)
int32x16 = vector_type("int32x16", _VECTOR)


@intrinsic
def load(typing, array, offset):
    """Sixteen neighbours of an int32 array, from element `offset` on."""

    def emit(context, builder, signature, args):
        return loaded(builder, element(context, builder, signature.args[0], *args, _VECTOR), 4)

    return int32x16(array, types.uint64), emit


@intrinsic
def store(typing, array, offset, value):
    """Write sixteen neighbours of an int32 array, from element `offset` on."""

    def emit(context, builder, signature, args):
        builder.store(args[2], element(context, builder, signature.args[0], *args[:2], _VECTOR)).align = 4
        return context.get_dummy_value()

    return types.void(array, types.uint64, int32x16), emit


@intrinsic
def below(typing, a, bounds, at):
    """Bit i of the uint64 result: lane i of a < bounds[at + i], int32."""

    def emit(context, builder, signature, args):
        t = loaded(builder, element(context, builder, signature.args[1], args[1], args[2], _VECTOR), 4)
        lanes = builder.icmp_signed("<", args[0], t)
        return builder.zext(builder.bitcast(lanes, ir.IntType(LANES)), ir.IntType(64))

    return types.uint64(int32x16, bounds, types.uint64), emit
