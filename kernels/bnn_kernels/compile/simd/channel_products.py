"""Products of sixteen channels with a weight each, bytes or 16-bit numbers in memory, summed in 16 or 32 bits.

`channel_products(form)` makes the operations of a form:

- sums of 16 bits take one tap at a time: sixteen products that fit 16 bits, exact as long as their sums do;
- sums of 32 bits take two: a lane holds both taps of its channel as 16-bit numbers, and both products are added at once
  (vpmaddwd). The taps come from different places, so they are interleaved on the way into registers;
- or four of bytes, in the same way (vpdpbusd): three insertions from memory, one permutation and one instruction for 64
  products, where pairs take thirteen.
"""

import functools
from types import SimpleNamespace
from typing import NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bnn_kernels.compile.isa import has
from bnn_kernels.compile.simd import portable_products
from bnn_kernels.compile.simd.int32_products import to_add_products
from bnn_kernels.compile.simd.vectors import I8, I16, I32, element, loaded, vector_type

LANES = 16
_BYTES, _SHORTS, _INTS = (ir.VectorType(kind, LANES) for kind in (I8, I16, I32))
_PAIRS, _FOURS = ir.VectorType(I16, 2 * LANES), ir.VectorType(I8, 4 * LANES)
_sums16 = vector_type("sums_int16x16", _SHORTS)
_sums32 = vector_type("pairs_int16x32", _INTS)


class ChannelForm(NamedTuple):
    """inputs, weights: bits of an element in memory, 8 (inputs unsigned, weights signed) or 16 (both signed).

    sums: 16 or 32 bits. width: bits of the instruction that multiplies several taps, 512 or 256, or 0 for what every
    CPU has. taps: how many at a time; four are of bytes.
    """

    inputs: int
    weights: int
    sums: int
    width: int
    taps: int


def _shuffled(builder, a, b, places):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(places)), places))


def _multiply_pairs(builder, width, a, b):
    """Sums of the products of neighbours, <32 x i16> each, as <16 x i32>."""
    if width == 512:
        kind = ir.FunctionType(_INTS, [_PAIRS, _PAIRS])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.pmaddw.d.512")
        return builder.call(call, [a, b])
    if width == 256:
        half, eight = ir.VectorType(I16, LANES), ir.VectorType(I32, LANES // 2)
        kind = ir.FunctionType(eight, [half, half])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pmadd.wd")
        halves = [list(range(LANES)), list(range(LANES, 2 * LANES))]
        low, high = (builder.call(call, [_shuffled(builder, v, v, places) for v in (a, b)]) for places in halves)
        return _shuffled(builder, low, high, list(range(LANES)))
    products = []
    for first in (0, 1):
        places = list(range(first, 2 * LANES, 2))
        x, y = (builder.sext(_shuffled(builder, v, v, places), _INTS) for v in (a, b))
        products.append(builder.mul(x, y))
    return builder.add(*products)


def _by_channel(builder, width, low, high):
    """Return four taps of sixteen channels, <32 x i8> twice, with the taps of a channel next to each other."""
    places = [i // 4 + i % 4 * LANES for i in range(4 * LANES)]
    if width == 0 or not has("avx512vbmi"):
        return _shuffled(builder, low, high, places)
    # LLVM would take vpermt2b, which is three operations.
    kind = ir.FunctionType(_FOURS, [_FOURS, _FOURS])
    call = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.permvar.qi.512")
    return builder.call(call, [_shuffled(builder, low, high, list(range(4 * LANES))), ir.Constant(_FOURS, places)])


def _multiply_fours(builder, width, total, unsigned, signed):
    """total + sums of the products of four neighbouring bytes, unsigned by signed, as <16 x i32>."""
    a, b = (builder.bitcast(v, _FOURS) for v in (unsigned, signed))
    if width == 0:
        return portable_products.vnni(builder, LANES, total, a, b)
    return to_add_products("vnni")(builder, LANES, False, total, a, b)


@functools.cache
def channel_products(form: ChannelForm) -> SimpleNamespace:
    """Return zero, inputs and weights, which load, dot, and store and add_to, which write sums as int32."""
    kind, vector = (_sums16, _SHORTS) if form.sums == 16 else (_sums32, _INTS)

    def read(context, builder, array_type, array, offset, bits):
        memory = _BYTES if bits == 8 else _SHORTS
        return loaded(builder, element(context, builder, array_type, array, offset, memory), 1)

    def load_of(bits, signed):
        """What loads sixteen neighbours of one or two places, as `dot` takes them."""

        def wider(builder, value, to):
            if bits == 16:
                return value
            return builder.sext(value, to) if signed else builder.zext(value, to)

        @intrinsic
        def load_one(typing, array, offset):
            def emit(context, builder, signature, args):
                return wider(builder, read(context, builder, signature.args[0], *args, bits), _SHORTS)

            return _sums16(array, types.uint64), emit

        @intrinsic
        def load_two(typing, array, offset, other):
            def emit(context, builder, signature, args):
                array, *offsets = args
                a, b = (read(context, builder, signature.args[0], array, offset, bits) for offset in offsets)
                both = _shuffled(builder, a, b, [i // 2 + i % 2 * LANES for i in range(2 * LANES)])
                return builder.bitcast(wider(builder, both, _PAIRS), _INTS)

            return _sums32(array, types.uint64, types.uint64), emit

        @intrinsic
        def load_four(typing, array, first, second, third, fourth):
            def emit(context, builder, signature, args):
                array, *offsets = args
                a, b, c, d = (read(context, builder, signature.args[0], array, offset, bits) for offset in offsets)
                halves = [_shuffled(builder, *pair, list(range(2 * LANES))) for pair in ((a, b), (c, d))]
                return builder.bitcast(_by_channel(builder, form.width, *halves), _INTS)

            return _sums32(array, *[types.uint64] * 4), emit

        return {1: load_one, 2: load_two, 4: load_four}[form.taps]

    @intrinsic
    def zero(typing):
        """All lanes 0."""
        return kind(), lambda context, builder, signature, args: ir.Constant(vector, [0] * LANES)

    @intrinsic
    def dot(typing, total, a, b):
        """total + the products of inputs a with weights b."""

        def emit(context, builder, signature, args):
            total, a, b = args
            if form.sums == 16:
                return builder.add(total, builder.mul(a, b))
            if form.taps == 4:
                return _multiply_fours(builder, form.width, total, a, b)
            pairs = (builder.bitcast(v, _PAIRS) for v in (a, b))
            return builder.add(total, _multiply_pairs(builder, form.width, *pairs))

        return kind(kind, kind, kind), emit

    @intrinsic
    def store(typing, array, offset, total):
        """Write sums to sixteen neighbours of an int32 array."""

        def emit(context, builder, signature, args):
            total = builder.sext(args[2], _INTS) if form.sums == 16 else args[2]
            builder.store(total, element(context, builder, signature.args[0], *args[:2], _INTS)).align = 4
            return context.get_dummy_value()

        return types.void(array, types.uint64, kind), emit

    @intrinsic
    def add_to(typing, array, offset, total):
        """Add sums to sixteen neighbours of an int32 array."""

        def emit(context, builder, signature, args):
            total = builder.sext(args[2], _INTS) if form.sums == 16 else args[2]
            pointer = element(context, builder, signature.args[0], *args[:2], _INTS)
            builder.store(builder.add(loaded(builder, pointer, 4), total), pointer).align = 4
            return context.get_dummy_value()

        return types.void(array, types.uint64, kind), emit

    inputs, weights = load_of(form.inputs, False), load_of(form.weights, True)
    return SimpleNamespace(zero=zero, inputs=inputs, weights=weights, dot=dot, store=store, add_to=add_to)
