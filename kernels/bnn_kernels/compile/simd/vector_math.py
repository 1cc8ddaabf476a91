"""What can be done with vectors of float32 and int32 of any number of lanes: 8 or 16."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bnn_kernels.compile.isa import has
from bnn_kernels.compile.simd.float32x8 import float32x8
from bnn_kernels.compile.simd.float32x16 import float32x16
from bnn_kernels.compile.simd.int32x8 import int32x8
from bnn_kernels.compile.simd.int32x16 import int32x16
from bnn_kernels.compile.simd.vectors import FLOAT, I8, I32, I64, behind, in_all_lanes

# 1.5 * 2^23: added to a float below 2^22 it leaves no bits behind the point, and the sum's last bits are the integer.
_ROUNDS = 12582912.0
_FLOATS = {float32x8: int32x8, float32x16: int32x16}
_INTS = {ints: floats for floats, ints in _FLOATS.items()}


def _same(vector: Any, value: float) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)


def _mask(builder: Any, lanes: Any) -> Any:
    return builder.zext(builder.bitcast(lanes, ir.IntType(lanes.type.count)), I64)


def _of_floats(name: str, meaning: str) -> Any:
    def operation(typing, a, b):
        return a(a, b), lambda context, builder, signature, args: getattr(builder, name)(*args)

    operation.__doc__ = meaning
    operation.__name__ = operation.__qualname__ = name
    return intrinsic(operation)


add = _of_floats("fadd", "a + b of floats.")
subtract = _of_floats("fsub", "a - b of floats.")
multiply = _of_floats("fmul", "a * b of floats.")
divide = _of_floats("fdiv", "a / b of floats.")


@intrinsic
def multiply_add(typing, a, b, c):
    """a * b + c of floats, rounded once: where the CPU cannot, in float64, in which the product is exact."""
    fuses = has("fma") or has("neon")

    def emit(context, builder, signature, args):
        vector = args[0].type
        if not fuses:
            doubles = ir.VectorType(ir.DoubleType(), vector.count)
            a, b, c = (builder.fpext(part, doubles) for part in args)
            return builder.fptrunc(builder.fadd(builder.fmul(a, b), c), vector)
        kind = ir.FunctionType(vector, [vector] * 3)
        name = f"llvm.fmuladd.v{vector.count}f32"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)

    return a(a, a, a), emit


@intrinsic
def scale_negative(typing, a, slope):
    """a * slope where a < 0, else a."""

    def emit(context, builder, signature, args):
        negative = builder.fcmp_ordered("<", args[0], _same(args[0].type, 0.0))
        return builder.select(negative, builder.fmul(*args), args[0])

    return a(a, a), emit


@intrinsic
def clamp(typing, a, low, high):
    """min(max(a, low), high), lane by lane; NaN stays NaN."""

    def emit(context, builder, signature, args):
        value, low, high = args
        value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
        return builder.select(builder.fcmp_ordered(">", value, high), high, value)

    return a(a, a, a), emit


@intrinsic
def below(typing, a, bounds):
    """(mask, nan mask): bit i says whether lane i of a < bounds, and whether it is NaN."""

    def emit(context, builder, signature, args):
        masks = [builder.fcmp_ordered("<", *args), builder.fcmp_unordered("uno", args[0], args[0])]
        return context.make_tuple(builder, signature.return_type, [_mask(builder, mask) for mask in masks])

    return types.UniTuple(types.uint64, 2)(a, a), emit


@intrinsic
def unordered(typing, a):
    """Bit i of the uint64 result: lane i is NaN."""

    def emit(context, builder, signature, args):
        return _mask(builder, builder.fcmp_unordered("uno", args[0], args[0]))

    return types.uint64(a), emit


@intrinsic
def rounded(typing, a):
    """int32 whose low 16 bits are those of a, rounded to the nearest integer, halves to even; |a| < 2^15."""
    ints = _FLOATS[a]

    def emit(context, builder, signature, args):
        vector = args[0].type
        return builder.bitcast(builder.fadd(args[0], _same(vector, _ROUNDS)), ir.VectorType(I32, vector.count))

    return ints(a), emit


@intrinsic
def as_floats(typing, a):
    """int32 as float32."""

    def emit(context, builder, signature, args):
        return builder.sitofp(args[0], ir.VectorType(FLOAT, args[0].type.count))

    return _INTS[a](a), emit


@intrinsic
def bit_mask(typing, a, place):
    """Bit i of the uint64 result: the bit of lane i of int32 at this place."""

    def emit(context, builder, signature, args):
        vector = args[0].type
        single = builder.shl(ir.Constant(I32, 1), builder.trunc(args[1], I32))
        bits = builder.and_(args[0], in_all_lanes(builder, single, vector))
        return _mask(builder, builder.icmp_unsigned("!=", bits, _same(vector, 0)))

    return types.uint64(a, types.int64), emit


@intrinsic
def raised(typing, a, value):
    """int32 a + value, the same in all lanes."""

    def emit(context, builder, signature, args):
        return builder.add(args[0], in_all_lanes(builder, args[1], args[0].type))

    return a(a, types.int32), emit


@intrinsic
def plus(typing, a, b):
    """int32 a + b; sums wrap around."""
    return a(a, a), lambda context, builder, signature, args: builder.add(*args)


@intrinsic
def minus(typing, a, b):
    """int32 a - b; differences wrap around."""
    return a(a, b), lambda context, builder, signature, args: builder.sub(*args)


@intrinsic
def scaled(typing, a, factor, offsets):
    """int32 a * factor + offsets, the factor the same in all lanes; sums wrap around."""

    def emit(context, builder, signature, args):
        product = builder.mul(args[0], in_all_lanes(builder, args[1], args[0].type))
        return builder.add(product, args[2])

    return a(a, types.int32, a), emit


@intrinsic
def store_bytes_to(typing, address, offset, a):
    """Write the low byte of each lane of int32 `offset` bytes behind an address."""

    def emit(context, builder, signature, args):
        vector = ir.VectorType(I8, args[2].type.count)
        builder.store(builder.trunc(args[2], vector), behind(builder, args[0], args[1], I8, vector)).align = 1
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, a), emit
