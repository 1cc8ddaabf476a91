"""What the instructions of `int32_products` do, in LLVM that every CPU runs: slow, and bit for bit the same.

Tests run the kernels of CPUs that are not at hand with these. Operands are bytes, <4 * lanes x i8>, as the instructions
take them.
"""

from llvmlite import ir

from bnn_kernels.compile.simd.vectors import I8, I16, I32


def _constant(kind, count, value):
    return ir.Constant(ir.VectorType(kind, count), [value] * count)


def _every(builder, v, first, step):
    """Elements first, first + step, ... of a vector."""
    places = list(range(first, v.type.count, step))
    return builder.shuffle_vector(
        v, ir.Constant(v.type, ir.Undefined), ir.Constant(ir.VectorType(I32, len(places)), places)
    )


def _products(builder, lanes, unsigned, signed):
    wide = ir.VectorType(I32, 4 * lanes)
    return builder.mul(builder.zext(unsigned, wide), builder.sext(signed, wide))


def _signed_products(builder, lanes, a, b):
    wide = ir.VectorType(I32, 4 * lanes)
    return builder.mul(builder.sext(a, wide), builder.sext(b, wide))


def _fours(builder, total, products):
    for first in range(4):
        total = builder.add(total, _every(builder, products, first, 4))
    return total


def vnni(builder, lanes, total, unsigned, signed):
    """vpdpbusd, usdot: total int32 + four products of bytes a lane, modulo 2**32."""
    return _fours(builder, total, _products(builder, lanes, unsigned, signed))


def sdot(builder, lanes, total, a, b):
    """sdot: total int32 + four products of signed bytes a lane, modulo 2**32."""
    return _fours(builder, total, _signed_products(builder, lanes, a, b))


def smull(builder, lanes, total, a, b):
    """smull, addp, sadalp: the same by way of sums of two products modulo 2**16."""
    products = _signed_products(builder, lanes, a, b)
    sums = builder.add(_every(builder, products, 0, 2), _every(builder, products, 1, 2))
    return builder.add(total, widened(builder, lanes, builder.trunc(sums, ir.VectorType(I16, 2 * lanes))))


def pairs(builder, lanes, unsigned, signed):
    """vpmaddubsw: sums of two products of bytes as <2 * lanes x i16>, saturated."""
    products = _products(builder, lanes, unsigned, signed)
    sums = builder.add(_every(builder, products, 0, 2), _every(builder, products, 1, 2))
    for limit, beyond in ((32_767, ">"), (-32_768, "<")):
        end = _constant(I32, 2 * lanes, limit)
        sums = builder.select(builder.icmp_signed(beyond, sums, end), end, sums)
    return builder.trunc(sums, ir.VectorType(I16, 2 * lanes))


def widened(builder, lanes, shorts):
    """vpmaddwd by ones: sums of two neighbours of <2 * lanes x i16> as int32."""
    wide = builder.sext(shorts, ir.VectorType(I32, 2 * lanes))
    return builder.add(_every(builder, wide, 0, 2), _every(builder, wide, 1, 2))


def look_up(builder, lanes, table, places):
    """vpshufb: byte i of the result is table[i // 16 * 16 + places[i] % 16], or 0 where places[i] >= 128.

    tbl gives the same for places below 16.
    """
    count = 4 * lanes
    nothing = _constant(I8, count, 0)
    low, found = builder.and_(places, _constant(I8, count, 15)), nothing
    for place in range(16):
        rows = ir.Constant(ir.VectorType(I32, count), [i // 16 * 16 + place for i in range(count)])
        level = builder.shuffle_vector(table, ir.Constant(table.type, ir.Undefined), rows)
        found = builder.select(builder.icmp_unsigned("==", low, _constant(I8, count, place)), level, found)
    return builder.select(builder.icmp_signed("<", places, nothing), nothing, found)
