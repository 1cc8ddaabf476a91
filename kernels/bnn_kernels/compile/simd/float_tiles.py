"""The inner loop of FP32 products: windows by vectors of filters, with all sums in registers."""

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bnn_kernels.compile.simd.float32x16 import LANES
from bnn_kernels.compile.simd.vectors import (
    FLOAT,
    element,
    in_all_lanes,
    loaded,
    sums_in_registers,
    up_to,
    windows_from,
)


@functools.cache
def tile(windows: int, vectors: int, lanes: int) -> Any:
    """Return tile(x, offsets, begin, first, last, w, j, apart, sums), which writes sums float32 (windows, vectors, 16).

    sums[i, v, :lanes] = sum_k x[begin[min(first + i, last)] + offsets[k]] * w[j + v * apart + 16 k, :lanes], in the
    order k = 0, 1, ..., each product added with one rounding where the CPU can: every tile gives the same sums.
    x, w, sums float32; offsets, begin, first, last, j, apart uint64.
    """
    vector = ir.VectorType(FLOAT, lanes)

    @intrinsic
    def run(typing, x, offsets, begin, first, last, w, j, apart, sums):
        def emit(context, builder, signature, args):
            x_type, offsets_type, begin_type, _, _, w_type, _, _, sums_type = signature.args
            size = context.get_value_type(types.uint64)
            places = up_to(builder, args[3], args[4], windows)
            windows_at = windows_from(context, builder, (x_type, args[0]), (begin_type, args[2]), places, FLOAT)
            rows = [builder.add(args[6], builder.mul(args[7], ir.Constant(size, v))) for v in range(vectors)]
            weights = [element(context, builder, w_type, args[5], row, FLOAT) for row in rows]
            steps = context.make_array(offsets_type)(context, builder, args[1]).nitems
            zero = ir.Constant(vector, [0.0] * lanes)
            held = sums_in_registers(builder, zero, windows * vectors)
            name = f"llvm.fmuladd.v{lanes}f32"
            fused = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
            with cgutils.for_range(builder, steps) as loop:
                offset = builder.load(element(context, builder, offsets_type, args[1], loop.index, size))
                here = builder.mul(loop.index, ir.Constant(loop.index.type, LANES))
                factors = [
                    loaded(builder, builder.bitcast(builder.gep(w, [here]), vector.as_pointer()), 4) for w in weights
                ]
                for i in range(windows):
                    value = in_all_lanes(builder, builder.load(builder.gep(windows_at[i], [offset])), vector)
                    for v in range(vectors):
                        slot = held[i * vectors + v]
                        builder.store(builder.call(fused, [value, factors[v], builder.load(slot)]), slot)
            for place, slot in enumerate(held):
                to = element(context, builder, sums_type, args[8], ir.Constant(size, place * LANES), vector)
                builder.store(builder.load(slot), to).align = 4
            return context.get_dummy_value()

        whole = types.uint64
        return types.void(x, offsets, begin, whole, whole, w, whole, whole, sums), emit

    return run
