"""Vectors of eight float32 as Numba values, and the few operations that kernels need on them.

LLVM's own vector types: each CPU gets its own instructions (one AVX register, two NEON or SSE ones), and an
accumulator that is a value stays in a register. Offsets count elements and are unsigned: a signed index costs a
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
_I8 = ir.IntType(8)
_I64 = ir.IntType(64)


class _Float32x8(types.Type):
    def __init__(self):
        super().__init__(name="float32x8")


float32x8 = _Float32x8()


@register_model(_Float32x8)
class _Float32x8Model(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _VECTOR)


def _address(context, builder, array_type, array, offset, to):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), to.as_pointer())


def _load(context, builder, array_type, array, offset):
    value = builder.load(_address(context, builder, array_type, array, offset, _VECTOR))
    value.align = 4
    return value


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
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        single = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))

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
    """Bit i of the uint64 result: array[offset + i] < bounds[at + i], both float32."""

    def emit(context, builder, signature, args):
        x = _load(context, builder, signature.args[0], args[0], args[1])
        t = _load(context, builder, signature.args[2], args[2], args[3])
        return builder.zext(builder.bitcast(builder.fcmp_ordered("<", x, t), _I8), _I64)

    return types.uint64(array, types.uint64, bounds, types.uint64), emit


@intrinsic
def nan_mask(typing, array, offset):
    """Bit i of the uint64 result: array[offset + i] is NaN."""

    def emit(context, builder, signature, args):
        x = _load(context, builder, signature.args[0], args[0], args[1])
        return builder.zext(builder.bitcast(builder.fcmp_unordered("uno", x, x), _I8), _I64)

    return types.uint64(array, types.uint64), emit
