"""Vectors of eight float32 or eight int64 as Numba values, and the few operations that kernels need on them.

LLVM's own vector types: each CPU gets its own instructions (AVX, AVX-512, NEON, SSE), and an accumulator that is a
value stays in a register. Offsets count elements and are unsigned: a signed index costs a
wrap-around test. Vectors live only inside compiled code.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

LANES = 8
_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_WORDS = ir.VectorType(_I64, LANES)
_INTS = ir.VectorType(_I32, LANES)


class _Float32x8(types.Type):
    def __init__(self):
        super().__init__(name="float32x8")


float32x8 = _Float32x8()


@register_model(_Float32x8)
class _Float32x8Model(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _VECTOR)


class _Int64x8(types.Type):
    def __init__(self):
        super().__init__(name="int64x8")


int64x8 = _Int64x8()


@register_model(_Int64x8)
class _Int64x8Model(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _WORDS)


class _Int32x8(types.Type):
    def __init__(self):
        super().__init__(name="int32x8")


int32x8 = _Int32x8()


@register_model(_Int32x8)
class _Int32x8Model(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _INTS)


def _address(context, builder, array_type, array, offset, to):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), to.as_pointer())


def _load(context, builder, array_type, array, offset, vector=_VECTOR):
    value = builder.load(_address(context, builder, array_type, array, offset, vector))
    value.align = 4
    return value


def _in_all_lanes(builder, value, vector):
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))


@intrinsic
def zero(typing):
    """Eight zeros."""
    return float32x8(), lambda context, builder, signature, args: ir.Constant(_VECTOR, [0.0] * LANES)


@intrinsic
def load(typing, array, offset):
    """Eight neighbours of a float32 array, from element `offset` on."""

    def emit(context, builder, signature, args):
        return _load(context, builder, signature.args[0], *args)

    return float32x8(array, types.uint64), emit


@intrinsic
def broadcast(typing, array, offset):
    """Element `offset` of a float32 array in all lanes."""

    def emit(context, builder, signature, args):
        value = builder.load(_address(context, builder, signature.args[0], *args, _FLOAT))
        return _in_all_lanes(builder, value, _VECTOR)

    return float32x8(array, types.uint64), emit


@intrinsic
def multiply_add(typing, a, b, c):
    """a * b + c, with one rounding where the CPU can."""

    def emit(context, builder, signature, args):
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v8f32"), args)

    return float32x8(float32x8, float32x8, float32x8), emit


@intrinsic
def store(typing, array, offset, value):
    """Write eight neighbours of a float32 array, from element `offset` on."""

    def emit(context, builder, signature, args):
        array_value, offset_value, vector = args
        address = _address(context, builder, signature.args[0], array_value, offset_value, _VECTOR)
        builder.store(vector, address).align = 4
        return context.get_dummy_value()

    return types.void(array, types.uint64, float32x8), emit


@intrinsic
def less_mask(typing, array, offset, bounds, at):
    """Bit i of the uint64 result: array[offset + i] < bounds[at + i], both float32 or both int32; False for NaN."""
    real = array.dtype == types.float32

    def emit(context, builder, signature, args):
        vector = _VECTOR if real else _INTS
        x = _load(context, builder, signature.args[0], args[0], args[1], vector)
        t = _load(context, builder, signature.args[2], args[2], args[3], vector)
        less = builder.fcmp_ordered("<", x, t) if real else builder.icmp_signed("<", x, t)
        return builder.zext(builder.bitcast(less, _I8), _I64)

    return types.uint64(array, types.uint64, bounds, types.uint64), emit


@intrinsic
def nan_mask(typing, array, offset):
    """Bit i of the uint64 result: array[offset + i] is NaN; 0 for int32."""
    real = array.dtype == types.float32

    def emit(context, builder, signature, args):
        if not real:
            return ir.Constant(_I64, 0)
        x = _load(context, builder, signature.args[0], args[0], args[1])
        return builder.zext(builder.bitcast(builder.fcmp_unordered("uno", x, x), _I8), _I64)

    return types.uint64(array, types.uint64), emit


# -- eight 64-bit words ------------------------------------------------------------------------------------------------


@intrinsic
def zero_words(typing):
    """Eight zeros."""
    return int64x8(), lambda context, builder, signature, args: ir.Constant(_WORDS, [0] * LANES)


@intrinsic
def load_words(typing, array, offset):
    """Eight neighbours of a 64-bit array, from element `offset` on."""

    def emit(context, builder, signature, args):
        return _load(context, builder, signature.args[0], args[0], args[1], _WORDS)

    return int64x8(array, types.uint64), emit


@intrinsic
def broadcast_word(typing, array, offset):
    """Element `offset` of a 64-bit array in all lanes."""

    def emit(context, builder, signature, args):
        value = builder.load(_address(context, builder, signature.args[0], *args, _I64))
        return _in_all_lanes(builder, value, _WORDS)

    return int64x8(array, types.uint64), emit


@intrinsic
def store_words(typing, array, offset, value):
    """Write eight neighbours of a 64-bit array, from element `offset` on."""

    def emit(context, builder, signature, args):
        address = _address(context, builder, signature.args[0], args[0], args[1], _WORDS)
        builder.store(args[2], address).align = 8
        return context.get_dummy_value()

    return types.void(array, types.uint64, int64x8), emit


@intrinsic
def funnel(typing, words, following, shift):
    """(words >> shift) | (following << (64 - shift)), lane by lane, shift 1 .. 63."""

    def emit(context, builder, signature, args):
        down = _in_all_lanes(builder, args[2], _WORDS)
        up = builder.sub(ir.Constant(_WORDS, [64] * LANES), down)
        return builder.or_(builder.lshr(args[0], down), builder.shl(args[1], up))

    return int64x8(int64x8, int64x8, types.uint64), emit


def _popcount(builder, words):
    kind = ir.FunctionType(_WORDS, [_WORDS])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.ctpop.v8i64"), [words])


@intrinsic
def and_popcount(typing, a, b):
    """Population count of a & b, lane by lane."""
    return int64x8(int64x8, int64x8), lambda context, builder, signature, args: _popcount(builder, builder.and_(*args))


@intrinsic
def xor_popcount(typing, a, b):
    """Population count of a ^ b, lane by lane."""
    return int64x8(int64x8, int64x8), lambda context, builder, signature, args: _popcount(builder, builder.xor(*args))


@intrinsic
def add_words(typing, a, b):
    """a + b."""
    return int64x8(int64x8, int64x8), lambda context, builder, signature, args: builder.add(*args)


@intrinsic
def word_if_negative(typing, array, offset, word):
    """`word` in the lanes where a float32 array[offset + i] < 0, else 0."""

    def emit(context, builder, signature, args):
        x = _load(context, builder, signature.args[0], args[0], args[1])
        negative = builder.fcmp_ordered("<", x, ir.Constant(_VECTOR, [0.0] * LANES))
        return builder.select(negative, _in_all_lanes(builder, args[2], _WORDS), ir.Constant(_WORDS, [0] * LANES))

    return int64x8(array, types.uint64, types.uint64), emit


@intrinsic
def or_words(typing, a, b):
    """a | b."""
    return int64x8(int64x8, int64x8), lambda context, builder, signature, args: builder.or_(*args)


@intrinsic
def lane(typing, words, place):
    """One lane of eight words."""

    def emit(context, builder, signature, args):
        return builder.extract_element(args[0], builder.trunc(args[1], _I32))

    return types.uint64(int64x8, types.int64), emit


# -- eight int32, whose sums wrap around ----------------------------------------------------------------------------


@intrinsic
def narrow(typing, words):
    """The low 32 bits of eight words."""
    return int32x8(int64x8), lambda context, builder, signature, args: builder.trunc(args[0], _INTS)


@intrinsic
def load_uint16(typing, array, offset):
    """Eight neighbours of a uint16 array as int32."""

    def emit(context, builder, signature, args):
        short = ir.VectorType(ir.IntType(16), LANES)
        value = builder.load(_address(context, builder, signature.args[0], args[0], args[1], short))
        value.align = 2
        return builder.zext(value, _INTS)

    return int32x8(array, types.uint64), emit


@intrinsic
def load_int32(typing, array, offset):
    """Eight neighbours of an int32 array."""

    def emit(context, builder, signature, args):
        return _load(context, builder, signature.args[0], args[0], args[1], _INTS)

    return int32x8(array, types.uint64), emit


@intrinsic
def splat(typing, value):
    """An int32 in all lanes."""

    def emit(context, builder, signature, args):
        return _in_all_lanes(builder, args[0], _INTS)

    return int32x8(types.int32), emit


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
        t = _load(context, builder, signature.args[1], args[1], args[2], _INTS)
        return builder.zext(builder.bitcast(builder.icmp_signed("<", args[0], t), _I8), _I64)

    return types.uint64(int32x8, bounds, types.uint64), emit


@intrinsic
def store_int32(typing, array, offset, value):
    """Write eight neighbours of an int32 array, from element `offset` on."""

    def emit(context, builder, signature, args):
        address = _address(context, builder, signature.args[0], args[0], args[1], _INTS)
        builder.store(args[2], address).align = 4
        return context.get_dummy_value()

    return types.void(array, types.uint64, int32x8), emit


# -- plain addresses: an array in a tuple costs a reference count each time the tuple is taken apart ------------------


def _at(builder, address, offset, element, to):
    pointer = builder.inttoptr(address, element.as_pointer())
    return builder.bitcast(builder.gep(pointer, [offset]), to.as_pointer())


@intrinsic
def load_from(typing, address, offset):
    """Eight neighbours of the float32 at an address, from element `offset` on."""

    def emit(context, builder, signature, args):
        value = builder.load(_at(builder, *args, _FLOAT, _VECTOR))
        value.align = 4
        return value

    return float32x8(types.int64, types.int64), emit


@intrinsic
def store_to(typing, address, offset, value):
    """Write eight neighbours of the float32 at an address, from element `offset` on."""

    def emit(context, builder, signature, args):
        builder.store(args[2], _at(builder, args[0], args[1], _FLOAT, _VECTOR)).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, float32x8), emit


@intrinsic
def load_some(typing, address, offset, count):
    """The first `count` lanes, 1 .. 8, of the float32 at an address; 0 in the others, which are not read."""

    def emit(context, builder, signature, args):
        pointer = _at(builder, args[0], args[1], _FLOAT, _VECTOR)
        mask = _first_lanes(builder, args[2])
        kind = ir.FunctionType(_VECTOR, [pointer.type, _I32, mask.type, _VECTOR])
        load = cgutils.get_or_insert_function(builder.module, kind, "llvm.masked.load.v8f32.p0")
        return builder.call(load, [pointer, ir.Constant(_I32, 4), mask, ir.Constant(_VECTOR, [0.0] * LANES)])

    return float32x8(types.int64, types.int64, types.int64), emit


@intrinsic
def store_some(typing, address, offset, value, count):
    """Write the first `count` lanes, 1 .. 8, to the float32 at an address."""

    def emit(context, builder, signature, args):
        pointer = _at(builder, args[0], args[1], _FLOAT, _VECTOR)
        mask = _first_lanes(builder, args[3])
        kind = ir.FunctionType(ir.VoidType(), [_VECTOR, pointer.type, _I32, mask.type])
        store = cgutils.get_or_insert_function(builder.module, kind, "llvm.masked.store.v8f32.p0")
        builder.call(store, [args[2], pointer, ir.Constant(_I32, 4), mask])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, float32x8, types.int64), emit


def _first_lanes(builder, count):
    lanes = ir.Constant(_INTS, list(range(LANES)))
    return builder.icmp_signed("<", lanes, _in_all_lanes(builder, builder.trunc(count, _I32), _INTS))


@intrinsic
def byte_from(typing, address, offset):
    """The byte `offset` behind an address, as uint64."""

    def emit(context, builder, signature, args):
        return builder.zext(builder.load(_at(builder, *args, _I8, _I8)), _I64)

    return types.uint64(types.int64, types.int64), emit


@intrinsic
def byte_to(typing, address, offset, value):
    """Write the low byte of a uint64 `offset` behind an address."""

    def emit(context, builder, signature, args):
        builder.store(builder.trunc(args[2], _I8), _at(builder, args[0], args[1], _I8, _I8))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.uint64), emit


# -- eight floats ---------------------------------------------------------------------------------------------------


@intrinsic
def load_as_floats(typing, array, offset):
    """Eight neighbours of a float32 or int32 array, as float32."""
    real = array.dtype == types.float32

    def emit(context, builder, signature, args):
        value = _load(context, builder, signature.args[0], args[0], args[1], _VECTOR if real else _INTS)
        return value if real else builder.sitofp(value, _VECTOR)

    return float32x8(array, types.uint64), emit


@intrinsic
def to_floats(typing, a):
    """Eight int32 as float32."""
    return float32x8(int32x8), lambda context, builder, signature, args: builder.sitofp(args[0], _VECTOR)


@intrinsic
def add_floats(typing, a, b):
    """a + b."""
    return float32x8(float32x8, float32x8), lambda context, builder, signature, args: builder.fadd(*args)


@intrinsic
def subtract_floats(typing, a, b):
    """a - b."""
    return float32x8(float32x8, float32x8), lambda context, builder, signature, args: builder.fsub(*args)


@intrinsic
def multiply_floats(typing, a, b):
    """a * b."""
    return float32x8(float32x8, float32x8), lambda context, builder, signature, args: builder.fmul(*args)


@intrinsic
def scale_negative(typing, a, slope):
    """a * slope where a < 0, else a."""

    def emit(context, builder, signature, args):
        negative = builder.fcmp_ordered("<", args[0], ir.Constant(_VECTOR, [0.0] * LANES))
        return builder.select(negative, builder.fmul(*args), args[0])

    return float32x8(float32x8, float32x8), emit


@intrinsic
def clamp(typing, a, low, high):
    """min(max(a, low), high), lane by lane; NaN stays NaN."""

    def emit(context, builder, signature, args):
        value, low, high = args
        value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
        return builder.select(builder.fcmp_ordered(">", value, high), high, value)

    return float32x8(float32x8, float32x8, float32x8), emit


@intrinsic
def below_floats(typing, a, bounds):
    """(mask, nan mask): bit i says whether lane i of a < bounds, and whether it is NaN."""

    def emit(context, builder, signature, args):
        masks = [builder.fcmp_ordered("<", *args), builder.fcmp_unordered("uno", args[0], args[0])]
        values = [builder.zext(builder.bitcast(mask, _I8), _I64) for mask in masks]
        return context.make_tuple(builder, signature.return_type, values)

    return types.UniTuple(types.uint64, 2)(float32x8, float32x8), emit
