"""The inner loop of products of levels: windows by two vectors of filters, with all sums in registers."""

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bnn_kernels.compile.simd.byte import prefetch_behind
from bnn_kernels.compile.simd.int32_products import sum_vector, to_add_products
from bnn_kernels.compile.simd.vectors import (
    I32,
    I64,
    element,
    in_all_lanes,
    loaded,
    sums_in_registers,
    up_to,
    windows_from,
)


@functools.cache
def product_tile(windows: int, lanes: int, product: str, portable: bool, shift: int, elements: int) -> Any:
    """Return tile(x, offsets, begin, first, last, w, j, ahead, by, sums), which writes sums int32 (windows, 2, lanes).

    sums[i, v] = sum_k dot(x[begin[min(first + i, last)] + offsets[k] :], w[j + (2 k + v) * lanes * elements :]), in
    each lane over `elements` neighbours: four bytes or two shorts, see `int32_products.dots`, which also says what
    product, portable and shift are. offsets, begin, first, last, j uint64. Meanwhile it asks for memory that is read
    later: in step k for that of w[ahead + k * by], uint64 too.
    """
    vector, add_products = sum_vector(lanes), to_add_products(product)

    @intrinsic
    def run(typing, x, offsets, begin, first, last, w, j, ahead, by, sums):
        def emit(context, builder, signature, args):
            x_type, offsets_type, begin_type, _, _, w_type, _, _, _, sums_type = signature.args
            size, kind = args[3].type, context.get_data_type(x_type.dtype)
            places = up_to(builder, args[3], args[4], windows)
            windows_at = windows_from(context, builder, (x_type, args[0]), (begin_type, args[2]), places, kind)
            weights = element(context, builder, w_type, args[5], args[6], vector)
            later = element(context, builder, w_type, args[5], args[7], context.get_data_type(w_type.dtype))
            steps = context.make_array(offsets_type)(context, builder, args[1]).nitems
            zero = ir.Constant(vector, [0] * lanes)
            held = sums_in_registers(builder, zero, 2 * windows)
            with cgutils.for_range(builder, steps) as loop:
                offset = builder.load(element(context, builder, offsets_type, args[1], loop.index, I64))
                prefetch_behind(builder, builder.gep(later, [builder.mul(loop.index, args[8])]))
                row = builder.mul(loop.index, ir.Constant(loop.index.type, 2))
                places = [builder.add(row, ir.Constant(row.type, v)) for v in range(2)]
                filters = [loaded(builder, builder.gep(weights, [place]), 1) for place in places]
                for i in range(windows):
                    pointer = builder.bitcast(builder.gep(windows_at[i], [offset]), I32.as_pointer())
                    value = loaded(builder, pointer, 1)
                    if shift:
                        value = builder.xor(value, ir.Constant(I32, 0x80808080))
                    inputs = in_all_lanes(builder, value, vector)
                    for v in range(2):
                        slot = held[2 * i + v]
                        total = add_products(builder, lanes, portable, builder.load(slot), inputs, filters[v])
                        builder.store(total, slot)
            for place, slot in enumerate(held):
                to = element(context, builder, sums_type, args[9], ir.Constant(size, place * lanes), vector)
                builder.store(builder.load(slot), to).align = 4
            return context.get_dummy_value()

        whole = types.uint64
        return types.void(x, offsets, begin, whole, whole, w, whole, whole, whole, sums), emit

    return run
