"""Words of bits for sixteen lanes, and float32 made of them: entries of a table in a register, or codes as numbers.

A register of AVX-512 holds 16 entries, chosen by four bits of a lane; one of AVX2 holds 8, chosen by three. On other
CPUs there is no such instruction, see `TABLE_BITS`.
"""

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bnn_kernels.compile.isa import isa
from bnn_kernels.compile.simd.float32x16 import float32x16
from bnn_kernels.compile.simd.vectors import FLOAT, I32, element, in_all_lanes, loaded, vector_type

# Bits of a lane that choose an entry of a table.
TABLE_BITS = {"avx512": 4, "avx2": 3}
_WORDS, _FLOATS, _EIGHT = ir.VectorType(I32, 16), ir.VectorType(FLOAT, 16), ir.VectorType(FLOAT, 8)
_HALF = ir.VectorType(I32, 8)
uint32x16 = vector_type("uint32x16", _WORDS)


def _call(builder, name, result, *args):
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _part(builder, value, places):
    return builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(I32, len(places)), places))


@intrinsic
def load_words(typing, array, offset):
    """Sixteen neighbours of a uint32 array, from element `offset` on."""

    def emit(context, builder, signature, args):
        return loaded(builder, element(context, builder, signature.args[0], *args, _WORDS), 4)

    return uint32x16(array, types.uint64), emit


@intrinsic
def shifted(typing, words):
    """The words without the bits that chose the last entry."""
    bits = TABLE_BITS.get(isa(), 4)
    return uint32x16(uint32x16), lambda context, builder, signature, args: builder.lshr(
        args[0], ir.Constant(_WORDS, [bits] * 16)
    )


@intrinsic
def look_up(typing, array, offset, words):
    """Entries of the table from element `offset` of a float32 array on, which the lowest bits of each lane choose."""
    wide = isa() == "avx512"

    def emit(context, builder, signature, args):
        kind = _FLOATS if wide else _EIGHT
        table = loaded(builder, element(context, builder, signature.args[0], *args[:2], kind), 4)
        if wide:
            return _call(builder, "llvm.x86.avx512.permvar.sf.512", _FLOATS, table, args[2])
        low, high = (_part(builder, args[2], list(range(first, first + 8))) for first in (0, 8))
        parts = [_call(builder, "llvm.x86.avx2.permps", _EIGHT, table, half) for half in (low, high)]
        return builder.shuffle_vector(*parts, ir.Constant(_WORDS, list(range(16))))

    return float32x16(array, types.uint64, uint32x16), emit


@intrinsic
def chosen(typing, words, bit, clear, set_):
    """`set_` in the lanes whose word has the bit, `clear` in the others; both float32."""

    def emit(context, builder, signature, args):
        words, bit, clear, set_ = args
        place = in_all_lanes(builder, builder.shl(ir.Constant(I32, 1), builder.trunc(bit, I32)), _WORDS)
        has_it = builder.icmp_unsigned("!=", builder.and_(words, place), ir.Constant(_WORDS, [0] * 16))
        return builder.select(has_it, in_all_lanes(builder, set_, _FLOATS), in_all_lanes(builder, clear, _FLOATS))

    return float32x16(uint32x16, types.uint64, types.float32, types.float32), emit


@intrinsic
def lowest_chooses(typing, words, clear, set_):
    """`set_` in the lanes whose lowest bit is set, `clear` in the others; float32x16 both."""

    def emit(context, builder, signature, args):
        words, clear, set_ = args
        return builder.select(builder.trunc(words, ir.VectorType(ir.IntType(1), 16)), set_, clear)

    return float32x16(uint32x16, float32x16, float32x16), emit


@functools.cache
def codes(bits: int) -> tuple[Any, Any]:
    """Return (lowest, rest): the lowest code of so many bits of each lane as float32, and the words without it."""

    @intrinsic
    def lowest(typing, words):
        def emit(context, builder, signature, args):
            return builder.sitofp(builder.and_(args[0], ir.Constant(_WORDS, [(1 << bits) - 1] * 16)), _FLOATS)

        return float32x16(uint32x16), emit

    @intrinsic
    def rest(typing, words):
        def emit(context, builder, signature, args):
            return builder.lshr(args[0], ir.Constant(_WORDS, [bits] * 16))

        return uint32x16(uint32x16), emit

    return lowest, rest


@intrinsic
def entry(typing, table, words):
    """The entries of a table of sixteen in a register that the lowest four bits of each lane choose; AVX-512 only."""

    def emit(context, builder, signature, args):
        return _call(builder, "llvm.x86.avx512.permvar.sf.512", _FLOATS, *args)

    return float32x16(float32x16, uint32x16), emit
