"""Vectors of eight 64-bit words: the bits that kernels count."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bnn_kernels.compile.simd.vectors import (
    FLOAT,
    I32,
    I64,
    element,
    in_all_lanes,
    loaded,
    vector_type,
)

LANES = 8
_WORDS = ir.VectorType(I64, LANES)
_FLOATS = ir.VectorType(FLOAT, LANES)
uint64x8 = vector_type("uint64x8", _WORDS)


def _popcount(builder, words):
    kind = ir.FunctionType(_WORDS, [_WORDS])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.ctpop.v8i64"), [words])


@intrinsic
def zero(typing):
    """Eight zeros."""
    return uint64x8(), lambda context, builder, signature, args: ir.Constant(_WORDS, [0] * LANES)


@intrinsic
def load(typing, array, offset):
    """Eight neighbours of a 64-bit array, from element `offset` on."""

    def emit(context, builder, signature, args):
        return loaded(builder, element(context, builder, signature.args[0], args[0], args[1], _WORDS), 4)

    return uint64x8(array, types.uint64), emit


@intrinsic
def broadcast(typing, array, offset):
    """Element `offset` of a 64-bit array in all lanes."""

    def emit(context, builder, signature, args):
        value = builder.load(element(context, builder, signature.args[0], *args, I64))
        return in_all_lanes(builder, value, _WORDS)

    return uint64x8(array, types.uint64), emit


@intrinsic
def store(typing, array, offset, value):
    """Write eight neighbours of a 64-bit array, from element `offset` on."""

    def emit(context, builder, signature, args):
        address = element(context, builder, signature.args[0], args[0], args[1], _WORDS)
        builder.store(args[2], address).align = 8
        return context.get_dummy_value()

    return types.void(array, types.uint64, uint64x8), emit


@intrinsic
def funnel(typing, words, following, shift):
    """(words >> shift) | (following << (64 - shift)), lane by lane, shift 1 .. 63."""

    def emit(context, builder, signature, args):
        down = in_all_lanes(builder, args[2], _WORDS)
        up = builder.sub(ir.Constant(_WORDS, [64] * LANES), down)
        return builder.or_(builder.lshr(args[0], down), builder.shl(args[1], up))

    return uint64x8(uint64x8, uint64x8, types.uint64), emit


@intrinsic
def and_popcount(typing, a, b):
    """Population count of a & b, lane by lane."""
    return uint64x8(uint64x8, uint64x8), lambda context, builder, signature, args: _popcount(
        builder, builder.and_(*args)
    )


@intrinsic
def xor_popcount(typing, a, b):
    """Population count of a ^ b, lane by lane."""
    return uint64x8(uint64x8, uint64x8), lambda context, builder, signature, args: _popcount(
        builder, builder.xor(*args)
    )


@intrinsic
def add(typing, a, b):
    """a + b."""
    return uint64x8(uint64x8, uint64x8), lambda context, builder, signature, args: builder.add(*args)


@intrinsic
def either(typing, a, b):
    """a | b."""
    return uint64x8(uint64x8, uint64x8), lambda context, builder, signature, args: builder.or_(*args)


@intrinsic
def word_if_negative(typing, array, offset, word):
    """`word` in the lanes where a float32 array[offset + i] < 0, else 0."""

    def emit(context, builder, signature, args):
        x = loaded(builder, element(context, builder, signature.args[0], args[0], args[1], _FLOATS), 4)
        negative = builder.fcmp_ordered("<", x, ir.Constant(_FLOATS, [0.0] * LANES))
        return builder.select(negative, in_all_lanes(builder, args[2], _WORDS), ir.Constant(_WORDS, [0] * LANES))

    return uint64x8(array, types.uint64, types.uint64), emit


@intrinsic
def lane(typing, words, place):
    """One lane of eight words."""

    def emit(context, builder, signature, args):
        return builder.extract_element(args[0], builder.trunc(args[1], I32))

    return types.uint64(uint64x8, types.int64), emit
