"""What `int32_products` takes on NEON: products of bytes and table look-ups, one register of 16 bytes at a time."""

import functools

from llvmlite import ir
from numba.core import cgutils

from bnn_kernels.compile.simd.vectors import I8, I16, I32


def _call(builder, name, result, *args):
    kind = ir.FunctionType(result, [a.type for a in args])
    name = f"llvm.aarch64.neon.{name}"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _part(builder, v, begin, count):
    places = ir.Constant(ir.VectorType(I32, count), list(range(begin, begin + count)))
    return builder.shuffle_vector(v, ir.Constant(v.type, ir.Undefined), places)


def _joined(builder, parts):
    while len(parts) > 1:
        count = 2 * parts[0].type.count
        places = ir.Constant(ir.VectorType(I32, count), list(range(count)))
        parts = [builder.shuffle_vector(a, b, places) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _by_registers(emit, builder, lanes, total, a, b):
    """Return the results of emit(builder, total, a, b) for four lanes at a time, side by side."""
    parts = []
    for first in range(0, lanes, 4):
        x, y = (_part(builder, v, 4 * first, 16) for v in (a, b))
        parts.append(emit(builder, _part(builder, total, first, 4), x, y))
    return _joined(builder, parts)


def _four_products(name):
    def emit(builder, total, a, b):
        return _call(builder, f"{name}.v4i32.v16i8", total.type, total, a, b)

    return functools.partial(_by_registers, emit)


def _multiply_long(builder, total, a, b):
    shorts = ir.VectorType(I16, 8)
    halves = [
        builder.mul(*(builder.sext(_part(builder, v, begin, 8), shorts) for v in (a, b)))  # smull
        for begin in (0, 8)
    ]
    pairs = _call(builder, "addp.v8i16", shorts, *halves)
    return builder.add(total, _call(builder, "saddlp.v4i32.v8i16", total.type, pairs))  # sadalp


# Each returns total, int32, + four products of bytes a lane, <4 * lanes x i8> each: unsigned by signed ones, signed
# ones, and signed ones by way of sums of two products in 16 bits.
usdot = _four_products("usdot")
sdot = _four_products("sdot")
smull = functools.partial(_by_registers, _multiply_long)


def look_up(builder, table, places):
    """tbl: byte i of the result is table[i // 16 * 16 + places[i]], or 0 where places[i] >= 16."""
    row = ir.VectorType(I8, 16)
    found = []
    for begin in range(0, table.type.count, 16):
        found.append(_call(builder, "tbl1.v16i8", row, *(_part(builder, v, begin, 16) for v in (table, places))))
    return _joined(builder, found)
