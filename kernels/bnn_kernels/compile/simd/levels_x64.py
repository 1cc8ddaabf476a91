"""Vectors of 64 bytes or 16-bit numbers, made from 64-bit words of bit planes: levels from their bits."""

import functools
from types import SimpleNamespace

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bnn_kernels.compile.simd.vectors import element, in_all_lanes, vector_type


@functools.cache
def spread(bits: int) -> SimpleNamespace:
    """Return filled, add_where and store for 64 elements of 8 or 16 bits, made from words of bit planes."""
    kind_of = ir.IntType(bits)
    vector = ir.VectorType(kind_of, 64)
    kind = vector_type(f"elements{bits}x64", vector)

    def splat(builder, value):
        return in_all_lanes(builder, builder.trunc(value, kind_of), vector)

    @intrinsic
    def filled(typing, value):
        """An int32 in all 64 elements."""
        return kind(types.int32), lambda context, builder, signature, args: splat(builder, args[0])

    @intrinsic
    def add_where(typing, total, word, value):
        """total + value in the elements whose bit of a uint64 is set."""

        def emit(context, builder, signature, args):
            mask = builder.bitcast(args[1], ir.VectorType(ir.IntType(1), 64))
            return builder.select(mask, builder.add(args[0], splat(builder, args[2])), args[0])

        return kind(kind, types.uint64, types.int32), emit

    @intrinsic
    def store(typing, array, offset, value):
        """Write 64 neighbours, from element `offset` on."""

        def emit(context, builder, signature, args):
            builder.store(args[2], element(context, builder, signature.args[0], *args[:2], vector)).align = 1
            return context.get_dummy_value()

        return types.void(array, types.uint64, kind), emit

    return SimpleNamespace(filled=filled, add_where=add_where, store=store)
