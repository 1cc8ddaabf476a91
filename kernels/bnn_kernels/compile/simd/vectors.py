"""How vectors become Numba values, and the LLVM that their loads and stores share.

LLVM's own vector types: each CPU gets its own instructions (AVX, AVX-512, NEON, SSE), and an accumulator that is a
value stays in a register. Each file of this folder holds one type and what kernels do with it. Offsets count elements
and are unsigned: a signed index costs a wrap-around test. Vectors live only inside compiled code.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import register_model

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOAT = ir.FloatType()


def vector_type(name: str, vector: ir.VectorType) -> types.Type:
    """Return a new Numba type whose values are vectors of this LLVM type."""

    class Vector(types.Type):
        def __init__(self) -> None:
            super().__init__(name=name)

    @register_model(Vector)
    class VectorModel(models.PrimitiveModel):
        def __init__(self, manager: Any, numba_type: types.Type) -> None:
            super().__init__(manager, numba_type, vector)

    return Vector()


def in_all_lanes(builder: ir.IRBuilder, value: ir.Value, vector: ir.VectorType) -> ir.Value:
    """Return a vector with a value in all lanes."""
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, value, ir.Constant(I32, 0))
    places = ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(single, undefined, places)


def element(
    context: Any, builder: ir.IRBuilder, array_type: Any, array: ir.Value, offset: ir.Value, to: Any
) -> ir.Value:
    """Return a pointer of type `to` to element `offset` of an array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), to.as_pointer())


def loaded(builder: ir.IRBuilder, pointer: ir.Value, align: int) -> ir.Value:
    """Return what lies behind a pointer; align: bytes."""
    value = builder.load(pointer)
    value.align = align
    return value


def windows_from(
    context: Any, builder: ir.IRBuilder, array: tuple[Any, Any], begin: tuple[Any, Any], places: list[ir.Value], to: Any
) -> list[ir.Value]:
    """Return pointers of type `to` to the elements of an array where windows begin.

    array, begin: (Numba type, value); places: of the windows in begin, uint64.
    """
    starts = [builder.load(element(context, builder, *begin, place, I64)) for place in places]
    return [element(context, builder, *array, start, to) for start in starts]


def sums_in_registers(builder: ir.IRBuilder, zero: ir.Constant, count: int) -> list[ir.Value]:
    """Return places for so many sums that begin as zero: LLVM keeps them in registers."""
    held = [cgutils.alloca_once_value(builder, zero) for _ in range(count)]
    for slot in held:
        builder.store(zero, slot)  # a place is made once, and a loop around it comes back
    return held


def up_to(builder: ir.IRBuilder, first: ir.Value, last: ir.Value, count: int) -> list[ir.Value]:
    """Return first, first + 1, ..., so many of them and none above `last`, uint64."""
    places = [builder.add(first, ir.Constant(first.type, i)) for i in range(count)]
    return [builder.select(builder.icmp_unsigned("<", place, last), place, last) for place in places]


def behind(builder: ir.IRBuilder, address: ir.Value, offset: ir.Value, kind: Any, to: Any) -> ir.Value:
    """Return a pointer of type `to` to the `offset`-th value of LLVM type `kind` behind a plain address."""
    pointer = builder.inttoptr(address, kind.as_pointer())
    return builder.bitcast(builder.gep(pointer, [offset]), to.as_pointer())


def low_halves(builder: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    """Return the low halves of the lanes of one or two vectors of int64 side by side, as int32.

    With AVX-512 two vectors take one permutation; a truncation of each takes two, and another one to join them.
    """
    lanes = 2 * parts[0].type.count
    halves = [builder.bitcast(part, ir.VectorType(I32, lanes)) for part in parts]
    places = list(range(0, lanes * len(parts), 2))
    return builder.shuffle_vector(halves[0], halves[-1], ir.Constant(ir.VectorType(I32, len(places)), places))
