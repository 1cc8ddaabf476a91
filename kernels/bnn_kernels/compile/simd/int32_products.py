"""Vectors of int32 sums and the products that are added to them: four bytes or two shorts a lane.

`dots(lanes, product)` makes the operations for one width: 16 lanes (one register with AVX-512) or 8 (AVX2, NEON). A
lane of an operand is 32 bits wide: four unsigned bytes against four signed ones, or two int16 against two int16.

| product  | one step                                           | needs                        |
|----------|----------------------------------------------------|------------------------------|
| "vnni"   | vpdpbusd: four byte products a lane, exact         | AVX-512 VNNI, or AVX-VNNI    |
| "pairs"  | vpmaddubsw into sums of int16, `widened` before they can overflow | AVX2           |
| "shorts" | two int16 products a lane, exact (vpmaddwd)        | nothing                      |
| "usdot"  | usdot: four byte products a lane, exact            | NEON with i8mm               |
| "sdot"   | sdot: the same of signed bytes by signed ones      | NEON with dotprod            |
| "smull"  | smull, addp, sadalp: the same where two products fit 16 bits | NEON               |

The last two read unsigned bytes below 128, or take 128 from every one: `broadcast` does, by one bit.

Portable operations need nothing either: the same results by way of `portable_products`, for tests.
"""

import functools
from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from llvmlite.binding import llvm_version_info
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bnn_kernels.compile.simd import neon_products, portable_products
from bnn_kernels.compile.simd.vectors import I8, I16, I32, I64, element, in_all_lanes, loaded, vector_type

_VECTORS = {lanes: ir.VectorType(I32, lanes) for lanes in (8, 16)}
_KINDS = {lanes: vector_type(f"sums_int32x{lanes}", vector) for lanes, vector in _VECTORS.items()}


def _call(builder, name, result, *args):
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _vnni(builder, lanes, portable, total, unsigned, signed):
    if portable:
        a, b = (builder.bitcast(v, ir.VectorType(I8, 4 * lanes)) for v in (unsigned, signed))
        return portable_products.vnni(builder, lanes, total, a, b)
    operand = ir.VectorType(I8, 4 * lanes) if llvm_version_info[0] >= 22 else total.type
    a, b = (builder.bitcast(v, operand) for v in (unsigned, signed))
    return _call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", total.type, total, a, b)


def _wide(name):
    return {8: f"llvm.x86.avx2.{name[0]}", 16: f"llvm.x86.avx512.{name[1]}.512"}


_MADD_BYTES, _MADD_SHORTS = _wide(("pmadd.ub.sw", "pmaddubs.w")), _wide(("pmadd.wd", "pmaddw.d"))


def _pairs(builder, lanes, portable, total, unsigned, signed):
    bytes_, shorts = ir.VectorType(I8, 4 * lanes), ir.VectorType(I16, 2 * lanes)
    a, b = (builder.bitcast(v, bytes_) for v in (unsigned, signed))
    if portable:
        pairs = portable_products.pairs(builder, lanes, a, b)
    else:
        pairs = _call(builder, _MADD_BYTES[lanes], shorts, a, b)
    return builder.bitcast(builder.add(builder.bitcast(total, shorts), pairs), total.type)


def _widened(builder, lanes, portable, total):
    shorts = ir.VectorType(I16, 2 * lanes)
    if portable:
        return portable_products.widened(builder, lanes, builder.bitcast(total, shorts))
    ones = ir.Constant(shorts, [1] * (2 * lanes))
    return _call(builder, _MADD_SHORTS[lanes], total.type, builder.bitcast(total, shorts), ones)


def _shorts(builder, lanes, portable, total, a, b):
    shorts, wide = ir.VectorType(I16, 2 * lanes), ir.VectorType(I32, 2 * lanes)
    a, b = (builder.sext(builder.bitcast(v, shorts), wide) for v in (a, b))
    product, none = builder.mul(a, b), ir.Constant(wide, ir.Undefined)
    even, odd = (
        builder.shuffle_vector(product, none, ir.Constant(total.type, list(range(first, 2 * lanes, 2))))
        for first in (0, 1)
    )
    return builder.add(total, builder.add(even, odd))


def _look_up(builder, lanes, product, portable, table, places):
    if portable:
        return portable_products.look_up(builder, lanes, table, places)
    if product in NEON:
        return neon_products.look_up(builder, table, places)
    if lanes == 16:
        return _call(builder, "llvm.x86.avx512.pshuf.b.512", table.type, table, places)
    return _call(builder, "llvm.x86.avx2.pshuf.b", table.type, table, places)


def _neon(instruction, portable_twin):
    """Return what emits a product of bytes, given what does so with its own instruction, and for any CPU."""

    def emit(builder, lanes, portable, total, a, b):
        operands = [builder.bitcast(v, ir.VectorType(I8, 4 * lanes)) for v in (a, b)]
        return (portable_twin if portable else instruction)(builder, lanes, total, *operands)

    return emit


_PRODUCTS = {
    "vnni": _vnni,
    "pairs": _pairs,
    "shorts": _shorts,
    "usdot": _neon(neon_products.usdot, portable_products.vnni),
    "sdot": _neon(neon_products.sdot, portable_products.sdot),
    "smull": _neon(neon_products.smull, portable_products.smull),
}
NEON = ("usdot", "sdot", "smull")


def sum_vector(lanes: int) -> ir.VectorType:
    """Return LLVM's vector of so many sums."""
    return _VECTORS[lanes]


def sum_kind(lanes: int) -> Any:
    """Return Numba's type of so many sums."""
    return _KINDS[lanes]


def to_add_products(product: str) -> Any:
    """Return what emits total + the products of a and b: add(builder, lanes, portable, total, a, b)."""
    return _PRODUCTS[product]


def emit_look_up(form: Any, builder: ir.IRBuilder, table: ir.Value, places: ir.Value) -> ir.Value:
    """Return the bytes of a table at places 0 .. 15; form: its lanes, product and portable are read."""
    bytes_ = ir.VectorType(I8, 4 * form.lanes)
    operands = [builder.bitcast(v, bytes_) for v in (table, places)]
    return builder.bitcast(_look_up(builder, form.lanes, form.product, form.portable, *operands), table.type)


def emit_low_halves(builder: ir.IRBuilder, a: ir.Value) -> ir.Value:
    """Return the low four bits of each byte."""
    return builder.and_(a, ir.Constant(a.type, [0x0F0F0F0F] * a.type.count))


def emit_high_halves(builder: ir.IRBuilder, a: ir.Value) -> ir.Value:
    """Return the high four bits of each byte."""
    return emit_low_halves(builder, builder.lshr(a, ir.Constant(a.type, [4] * a.type.count)))


@functools.cache
def dots(lanes: int, product: str, portable: bool = False, shift: int = 0) -> SimpleNamespace:
    """Return zero, load, broadcast, dot, add and store for sums of this width and this kind of product.

    portable: in instructions that every CPU has, whatever the product needs. shift: 0, or 128 to take that from every
    byte that is broadcast, so that what was unsigned is signed.
    """
    kind, vector, emit_product = _KINDS[lanes], _VECTORS[lanes], _PRODUCTS[product]
    form = SimpleNamespace(lanes=lanes, product=product, portable=portable)

    @intrinsic
    def zero(typing):
        """All lanes 0."""
        return kind(), lambda context, builder, signature, args: ir.Constant(vector, [0] * lanes)

    @intrinsic
    def load(typing, array, offset):
        """Neighbours of an array of bytes or shorts, from element `offset` on."""

        def emit(context, builder, signature, args):
            return loaded(builder, element(context, builder, signature.args[0], *args, vector), 1)

        return kind(array, types.uint64), emit

    @intrinsic
    def load_widened(typing, array, offset):
        """Neighbours of an array of signed bytes, from element `offset` on, as shorts."""

        def emit(context, builder, signature, args):
            bytes_, shorts = (ir.VectorType(kind, 2 * lanes) for kind in (I8, I16))
            value = loaded(builder, element(context, builder, signature.args[0], *args, bytes_), 1)
            return builder.bitcast(builder.sext(value, shorts), vector)

        return kind(array, types.uint64), emit

    @intrinsic
    def broadcast(typing, array, offset):
        """The 32 bits from element `offset` of an array of bytes or shorts on, in all lanes."""

        def emit(context, builder, signature, args):
            value = loaded(builder, element(context, builder, signature.args[0], *args, I32), 1)
            if shift:
                value = builder.xor(value, ir.Constant(I32, 0x80808080))
            return in_all_lanes(builder, value, vector)

        return kind(array, types.uint64), emit

    @intrinsic
    def dot(typing, total, a, b):
        """total + the products of a (unsigned bytes, or shorts) and b (signed bytes, or shorts), lane by lane."""

        def emit(context, builder, signature, args):
            return emit_product(builder, lanes, portable, *args)

        return kind(kind, kind, kind), emit

    @intrinsic
    def table(typing, array):
        """The first 16 bytes of an array, in every 16 bytes of a vector: a table for `look_up`."""

        def emit(context, builder, signature, args):
            row = ir.VectorType(I8, 16)
            value = loaded(builder, element(context, builder, signature.args[0], args[0], ir.Constant(I64, 0), row), 1)
            places = ir.Constant(ir.VectorType(I32, 4 * lanes), [i % 16 for i in range(4 * lanes)])
            return builder.bitcast(builder.shuffle_vector(value, ir.Constant(row, ir.Undefined), places), vector)

        return kind(array), emit

    @intrinsic
    def look_up(typing, table, places):
        """The bytes of a table at places 0 .. 15 (vpshufb, tbl)."""

        def emit(context, builder, signature, args):
            return emit_look_up(form, builder, *args)

        return kind(kind, kind), emit

    @intrinsic
    def low_halves(typing, a):
        """The low four bits of each byte."""
        return kind(kind), lambda context, builder, signature, args: emit_low_halves(builder, *args)

    @intrinsic
    def high_halves(typing, a):
        """The high four bits of each byte."""
        return kind(kind), lambda context, builder, signature, args: emit_high_halves(builder, *args)

    @intrinsic
    def keep(typing, array, offset, value):
        """Write a vector to an array of bytes, from element `offset` on."""

        def emit(context, builder, signature, args):
            builder.store(args[2], element(context, builder, signature.args[0], *args[:2], vector)).align = 1
            return context.get_dummy_value()

        return types.void(array, types.uint64, kind), emit

    @intrinsic
    def widened(typing, total):
        """The int32 sums of neighbouring int16 sums ("pairs" alone)."""

        def emit(context, builder, signature, args):
            return _widened(builder, lanes, portable, *args)

        return kind(kind), emit

    @intrinsic
    def add(typing, a, b):
        """a + b."""
        return kind(kind, kind), lambda context, builder, signature, args: builder.add(*args)

    @intrinsic
    def store(typing, array, offset, value):
        """Write neighbours of an int32 array, from element `offset` on."""

        def emit(context, builder, signature, args):
            builder.store(args[2], element(context, builder, signature.args[0], *args[:2], vector)).align = 4
            return context.get_dummy_value()

        return types.void(array, types.uint64, kind), emit

    return SimpleNamespace(
        lanes=lanes, zero=zero, load=load, load_widened=load_widened, broadcast=broadcast, dot=dot, widened=widened,
        add=add, store=store,
        table=table, look_up=look_up, low_halves=low_halves, high_halves=high_halves, keep=keep,
    )  # fmt: skip
