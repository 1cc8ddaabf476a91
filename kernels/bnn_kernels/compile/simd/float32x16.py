"""Vectors of sixteen float32: one register with AVX-512, two with AVX, four with NEON."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bnn_kernels.compile.simd.vectors import FLOAT, I32, behind, element, in_all_lanes, loaded, vector_type

LANES = 16
_VECTOR = ir.VectorType(FLOAT, LANES)
float32x16 = vector_type("float32x16", _VECTOR)


@intrinsic
def zero(typing):
    """Sixteen zeros."""
    return float32x16(), lambda context, builder, signature, args: ir.Constant(_VECTOR, [0.0] * LANES)


@intrinsic
def load(typing, array, offset):
    """Sixteen neighbours of a float32 array, from element `offset` on."""

    def emit(context, builder, signature, args):
        return loaded(builder, element(context, builder, signature.args[0], *args, _VECTOR), 4)

    return float32x16(array, types.uint64), emit


@intrinsic
def store(typing, array, offset, value):
    """Write sixteen neighbours of a float32 array, from element `offset` on."""

    def emit(context, builder, signature, args):
        builder.store(args[2], element(context, builder, signature.args[0], *args[:2], _VECTOR)).align = 4
        return context.get_dummy_value()

    return types.void(array, types.uint64, float32x16), emit


@intrinsic
def load_as_floats(typing, array, offset):
    """Sixteen neighbours of a float32 or int32 array, as float32."""
    real = array.dtype == types.float32

    def emit(context, builder, signature, args):
        vector = _VECTOR if real else ir.VectorType(I32, LANES)
        value = loaded(builder, element(context, builder, signature.args[0], *args, vector), 4)
        return value if real else builder.sitofp(value, _VECTOR)

    return float32x16(array, types.uint64), emit


@intrinsic
def load_from(typing, address, offset):
    """Sixteen neighbours of the float32 at an address, from element `offset` on."""

    def emit(context, builder, signature, args):
        return loaded(builder, behind(builder, *args, FLOAT, _VECTOR), 4)

    return float32x16(types.int64, types.int64), emit


@intrinsic
def store_to(typing, address, offset, value):
    """Write sixteen neighbours of the float32 at an address, from element `offset` on."""

    def emit(context, builder, signature, args):
        builder.store(args[2], behind(builder, args[0], args[1], FLOAT, _VECTOR)).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, float32x16), emit


@intrinsic
def broadcast(typing, array, offset):
    """Element `offset` of a float32 array in all lanes."""

    def emit(context, builder, signature, args):
        return in_all_lanes(builder, builder.load(element(context, builder, signature.args[0], *args, FLOAT)), _VECTOR)

    return float32x16(array, types.uint64), emit


@intrinsic
def multiply_add(typing, a, b, c):
    """a * b + c, with one rounding where the CPU can."""

    def emit(context, builder, signature, args):
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v16f32"), args)

    return float32x16(float32x16, float32x16, float32x16), emit


@intrinsic
def maximum(typing, a, b):
    """The larger of a and b, lane by lane; NaN if one of them is."""

    def emit(context, builder, signature, args):
        takes_a = builder.or_(builder.fcmp_ordered(">", *args), builder.fcmp_unordered("uno", args[0], args[0]))
        return builder.select(takes_a, *args)

    return float32x16(float32x16, float32x16), emit


@intrinsic
def add(typing, a, b):
    """a + b."""
    return float32x16(float32x16, float32x16), lambda context, builder, signature, args: builder.fadd(*args)


@intrinsic
def subtract(typing, a, b):
    """a - b."""
    return float32x16(float32x16, float32x16), lambda context, builder, signature, args: builder.fsub(*args)


@intrinsic
def multiply(typing, a, b):
    """a * b."""
    return float32x16(float32x16, float32x16), lambda context, builder, signature, args: builder.fmul(*args)


@intrinsic
def divide(typing, a, value):
    """a / value, the same float32 for all lanes."""

    def emit(context, builder, signature, args):
        return builder.fdiv(args[0], in_all_lanes(builder, args[1], _VECTOR))

    return float32x16(float32x16, types.float32), emit
