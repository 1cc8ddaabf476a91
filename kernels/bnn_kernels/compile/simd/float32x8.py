"""Vectors of eight float32."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bnn_kernels.compile.isa import has
from bnn_kernels.compile.simd.vectors import (
    FLOAT,
    I8,
    I32,
    I64,
    behind,
    element,
    in_all_lanes,
    loaded,
    vector_type,
)

LANES = 8
_FLOATS = ir.VectorType(FLOAT, LANES)
_DOUBLES = ir.VectorType(ir.DoubleType(), LANES)
_INTS = ir.VectorType(I32, LANES)
float32x8 = vector_type("float32x8", _FLOATS)


def _first_lanes(builder, count):
    lanes = ir.Constant(_INTS, list(range(LANES)))
    return builder.icmp_signed("<", lanes, in_all_lanes(builder, builder.trunc(count, I32), _INTS))


@intrinsic
def zero(typing):
    """Eight zeros."""
    return float32x8(), lambda context, builder, signature, args: ir.Constant(_FLOATS, [0.0] * LANES)


@intrinsic
def load(typing, array, offset):
    """Eight neighbours of a float32 array, from element `offset` on."""

    def emit(context, builder, signature, args):
        return loaded(builder, element(context, builder, signature.args[0], *args, _FLOATS), 4)

    return float32x8(array, types.uint64), emit


@intrinsic
def broadcast(typing, array, offset):
    """Element `offset` of a float32 array in all lanes."""

    def emit(context, builder, signature, args):
        value = builder.load(element(context, builder, signature.args[0], *args, FLOAT))
        return in_all_lanes(builder, value, _FLOATS)

    return float32x8(array, types.uint64), emit


@intrinsic
def store(typing, array, offset, value):
    """Write eight neighbours of a float32 array, from element `offset` on."""

    def emit(context, builder, signature, args):
        array_value, offset_value, vector = args
        address = element(context, builder, signature.args[0], array_value, offset_value, _FLOATS)
        builder.store(vector, address).align = 4
        return context.get_dummy_value()

    return types.void(array, types.uint64, float32x8), emit


@intrinsic
def load_from(typing, address, offset):
    """Eight neighbours of the float32 at an address, from element `offset` on."""

    def emit(context, builder, signature, args):
        value = builder.load(behind(builder, *args, FLOAT, _FLOATS))
        value.align = 4
        return value

    return float32x8(types.int64, types.int64), emit


@intrinsic
def store_to(typing, address, offset, value):
    """Write eight neighbours of the float32 at an address, from element `offset` on."""

    def emit(context, builder, signature, args):
        builder.store(args[2], behind(builder, args[0], args[1], FLOAT, _FLOATS)).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, float32x8), emit


@intrinsic
def load_some(typing, address, offset, count):
    """The first `count` lanes, 1 .. 8, of the float32 at an address; 0 in the others, which are not read."""

    def emit(context, builder, signature, args):
        pointer = behind(builder, args[0], args[1], FLOAT, _FLOATS)
        mask = _first_lanes(builder, args[2])
        kind = ir.FunctionType(_FLOATS, [pointer.type, I32, mask.type, _FLOATS])
        load = cgutils.get_or_insert_function(builder.module, kind, "llvm.masked.load.v8f32.p0")
        return builder.call(load, [pointer, ir.Constant(I32, 4), mask, ir.Constant(_FLOATS, [0.0] * LANES)])

    return float32x8(types.int64, types.int64, types.int64), emit


@intrinsic
def store_some(typing, address, offset, value, count):
    """Write the first `count` lanes, 1 .. 8, to the float32 at an address."""

    def emit(context, builder, signature, args):
        pointer = behind(builder, args[0], args[1], FLOAT, _FLOATS)
        mask = _first_lanes(builder, args[3])
        kind = ir.FunctionType(ir.VoidType(), [_FLOATS, pointer.type, I32, mask.type])
        store = cgutils.get_or_insert_function(builder.module, kind, "llvm.masked.store.v8f32.p0")
        builder.call(store, [args[2], pointer, ir.Constant(I32, 4), mask])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, float32x8, types.int64), emit


@intrinsic
def load_as_floats(typing, array, offset):
    """Eight neighbours of a float32 or int32 array, as float32."""
    real = array.dtype == types.float32

    def emit(context, builder, signature, args):
        value = loaded(builder, element(context, builder, signature.args[0], *args, _FLOATS if real else _INTS), 4)
        return value if real else builder.sitofp(value, _FLOATS)

    return float32x8(array, types.uint64), emit


@intrinsic
def multiply_add(typing, a, b, c):
    """a * b + c, rounded once: where the CPU cannot, in float64, in which the product is exact."""
    fuses = has("fma") or has("neon")

    def emit(context, builder, signature, args):
        if not fuses:
            a, b, c = (builder.fpext(part, _DOUBLES) for part in args)
            return builder.fptrunc(builder.fadd(builder.fmul(a, b), c), _FLOATS)
        kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v8f32"), args)

    return float32x8(float32x8, float32x8, float32x8), emit


@intrinsic
def less_mask(typing, array, offset, bounds, at):
    """Bit i of the uint64 result: array[offset + i] < bounds[at + i], both float32 or both int32; False for NaN."""
    real = array.dtype == types.float32

    def emit(context, builder, signature, args):
        vector = _FLOATS if real else _INTS
        x = loaded(builder, element(context, builder, signature.args[0], args[0], args[1], vector), 4)
        t = loaded(builder, element(context, builder, signature.args[2], args[2], args[3], vector), 4)
        less = builder.fcmp_ordered("<", x, t) if real else builder.icmp_signed("<", x, t)
        return builder.zext(builder.bitcast(less, I8), I64)

    return types.uint64(array, types.uint64, bounds, types.uint64), emit


@intrinsic
def nan_mask(typing, array, offset):
    """Bit i of the uint64 result: array[offset + i] is NaN; 0 for int32."""
    real = array.dtype == types.float32

    def emit(context, builder, signature, args):
        if not real:
            return ir.Constant(I64, 0)
        x = loaded(builder, element(context, builder, signature.args[0], args[0], args[1], _FLOATS), 4)
        return builder.zext(builder.bitcast(builder.fcmp_unordered("uno", x, x), I8), I64)

    return types.uint64(array, types.uint64), emit


@intrinsic
def either_nan_mask(typing, array, offset, other):
    """Bit i of the uint64 result: array[offset + i] or array[other + i] of a float32 array is NaN; one comparison."""

    def emit(context, builder, signature, args):
        x, y = (
            loaded(builder, element(context, builder, signature.args[0], args[0], place, _FLOATS), 4)
            for place in args[1:]
        )
        return builder.zext(builder.bitcast(builder.fcmp_unordered("uno", x, y), I8), I64)

    return types.uint64(array, types.uint64, types.uint64), emit


@intrinsic
def transpose(typing, array, offset, stride, target, to, target_stride):
    """Write eight rows of eight neighbours of a float32 array as eight columns of another one.

    Row i begins at element offset + i * stride, column j at element to + j * target_stride. Three rounds of exchanges,
    each of neighbours twice as far from each other: 24 shuffles instead of 64 single numbers.
    """

    def emit(context, builder, signature, args):
        source, start, step, out, place, out_step = args

        def at(base, stride_, i):
            return builder.add(base, builder.mul(stride_, ir.Constant(base.type, i)))

        rows = [
            loaded(builder, element(context, builder, signature.args[0], source, at(start, step, i), _FLOATS), 4)
            for i in range(LANES)
        ]
        for half in (1, 2, 4):
            made = list(rows)
            for i in range(LANES):
                if i & half:
                    continue
                a, b = rows[i], rows[i + half]
                lanes = range(LANES)
                low = [j if not j & half else LANES + j - half for j in lanes]
                high = [j + half if not j & half else LANES + j for j in lanes]
                made[i], made[i + half] = (
                    builder.shuffle_vector(a, b, ir.Constant(_INTS, part)) for part in (low, high)
                )
            rows = made
        for j, column in enumerate(rows):
            pointer = element(context, builder, signature.args[3], out, at(place, out_step, j), _FLOATS)
            builder.store(column, pointer).align = 4
        return context.get_dummy_value()

    return types.void(array, types.uint64, types.uint64, target, types.uint64, types.uint64), emit
