"""Vectors of 32 bytes as Numba values, and the steps of the lookup kernel on them (AVX2).

Offsets count elements of their array and are unsigned. Vectors live only inside compiled code.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bnn_kernels.compile.simd.vectors import I8, I16, I32, I64, element, loaded, vector_type

LANES = 32
_BYTES = ir.VectorType(I8, LANES)
_ROW = ir.VectorType(I8, 16)
_SHORTS = ir.VectorType(I16, 16)
uint8x32 = vector_type("uint8x32", _BYTES)


@intrinsic
def zero(typing):
    """32 zeros."""
    return uint8x32(), lambda context, builder, signature, args: ir.Constant(_BYTES, [0] * LANES)


@intrinsic
def load(typing, array, offset):
    """32 neighbours of a uint8 array, from element `offset` on."""

    def emit(context, builder, signature, args):
        return loaded(builder, element(context, builder, signature.args[0], *args, _BYTES), 1)

    return uint8x32(array, types.uint64), emit


@intrinsic
def load_row(typing, table, offset):
    """16 neighbours of a uint8 array, repeated in both halves (vbroadcasti128)."""

    def emit(context, builder, signature, args):
        half = loaded(builder, element(context, builder, signature.args[0], *args, _ROW), 1)
        places = ir.Constant(ir.VectorType(I32, LANES), [i % 16 for i in range(LANES)])
        return builder.shuffle_vector(half, ir.Constant(_ROW, ir.Undefined), places)

    return uint8x32(table, types.uint64), emit


@intrinsic
def load_place(typing, array, offset):
    """Element `offset` of a uint16 array, as uint64."""

    def emit(context, builder, signature, args):
        return builder.zext(builder.load(element(context, builder, signature.args[0], *args, I16)), I64)

    return types.uint64(array, types.uint64), emit


@intrinsic
def add(typing, a, b):
    """a + b, byte by byte."""
    return uint8x32(uint8x32, uint8x32), lambda context, builder, signature, args: builder.add(*args)


@intrinsic
def look_up(typing, row, places):
    """row[places], within each half (vpshufb); places 0 .. 15."""

    def emit(context, builder, signature, args):
        kind = ir.FunctionType(_BYTES, [_BYTES, _BYTES])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pshuf.b"), args)

    return uint8x32(uint8x32, uint8x32), emit


@intrinsic
def low_of(typing, a, high):
    """a - 16 * high, byte by byte modulo 256."""

    def emit(context, builder, signature, args):
        shifted = builder.shl(builder.bitcast(args[1], _SHORTS), ir.Constant(_SHORTS, [4] * 16))
        high = builder.and_(builder.bitcast(shifted, _BYTES), ir.Constant(_BYTES, [240] * LANES))
        return builder.sub(args[0], high)

    return uint8x32(uint8x32, uint8x32), emit


@intrinsic
def low_halves(typing, a):
    """The low four bits of every byte."""

    def emit(context, builder, signature, args):
        return builder.and_(args[0], ir.Constant(_BYTES, [15] * LANES))

    return uint8x32(uint8x32), emit


@intrinsic
def high_halves(typing, a):
    """The high four bits of every byte, shifted down."""

    def emit(context, builder, signature, args):
        shifted = builder.lshr(builder.bitcast(args[0], _SHORTS), ir.Constant(_SHORTS, [4] * 16))
        return builder.and_(builder.bitcast(shifted, _BYTES), ir.Constant(_BYTES, [15] * LANES))

    return uint8x32(uint8x32), emit


@intrinsic
def store(typing, array, offset, a):
    """Write 32 neighbours of a uint8 array, from element `offset` on."""

    def emit(context, builder, signature, args):
        builder.store(args[2], element(context, builder, signature.args[0], *args[:2], _BYTES)).align = 1
        return context.get_dummy_value()

    return types.void(array, types.uint64, uint8x32), emit


@intrinsic
def add_to_uint16(typing, array, offset, a):
    """array[offset : offset + 32] += a, for a uint16 array."""

    def emit(context, builder, signature, args):
        for half in range(2):
            places = ir.Constant(ir.VectorType(I32, 16), [16 * half + i for i in range(16)])
            part = builder.zext(builder.shuffle_vector(args[2], ir.Constant(_BYTES, ir.Undefined), places), _SHORTS)
            at = builder.add(args[1], ir.Constant(I64, 16 * half))
            address = element(context, builder, signature.args[0], args[0], at, _SHORTS)
            builder.store(builder.add(loaded(builder, address, 1), part), address).align = 1
        return context.get_dummy_value()

    return types.void(array, types.uint64, uint8x32), emit
