"""The inner loop of population counts: windows by vectors of eight filters, with all counts in registers."""

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bnn_kernels.compile.simd.uint64x8 import LANES
from bnn_kernels.compile.simd.vectors import I32, I64, element, in_all_lanes, loaded, low_halves, sums_in_registers

_WORDS = ir.VectorType(I64, LANES)


@functools.cache
def count_tile(windows: int, vectors: int, join: str, adds: bool) -> Any:
    """Return tile(rows, offsets, begin, first, plane, w, j, apart, mask, factor, sums).

    It writes sums int32 (windows, vectors, 8), with k over the offsets,
    sums[i, v] = sum_k popcount(join(rows[begin[first + i] + plane + offsets[k]], w[j + v * apart + 8 k :][:8])),
    join being "xor", "and", or "masked": (row ^ w) & m, with m as far behind w as `mask` says. adds: this times an
    int32 factor is added to the sums instead. All arguments but factor and sums are uint64, or arrays of it.
    """
    name = f"llvm.ctpop.v{LANES}i64"

    @intrinsic
    def run(typing, rows, offsets, begin, first, plane, w, j, apart, mask, factor, sums):
        def emit(context, builder, signature, args):
            rows_type, offsets_type, begin_type, w_type, sums_type = (signature.args[i] for i in (0, 1, 2, 5, 10))
            size = args[3].type
            popcount = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_WORDS, [_WORDS]), name)
            windows_at = []
            for i in range(windows):
                place = builder.add(args[3], ir.Constant(size, i))
                start = builder.load(element(context, builder, begin_type, args[2], place, I64))
                windows_at.append(element(context, builder, rows_type, args[0], builder.add(start, args[4]), I64))
            blocks = [builder.add(args[6], builder.mul(args[7], ir.Constant(size, v))) for v in range(vectors)]
            weights = [element(context, builder, w_type, args[5], block, _WORDS) for block in blocks]
            behind = [builder.add(block, args[8]) for block in blocks]
            masks = [element(context, builder, w_type, args[5], block, _WORDS) for block in behind]
            steps = context.make_array(offsets_type)(context, builder, args[1]).nitems
            zero = ir.Constant(_WORDS, [0] * LANES)
            held = sums_in_registers(builder, zero, windows * vectors)
            with cgutils.for_range(builder, steps) as loop:
                k = loop.index
                offset = builder.load(element(context, builder, offsets_type, args[1], k, I64))
                filters = [loaded(builder, builder.gep(pointer, [k]), 8) for pointer in weights]
                if join == "masked":
                    kept = [loaded(builder, builder.gep(pointer, [k]), 8) for pointer in masks]
                for i in range(windows):
                    row = in_all_lanes(builder, builder.load(builder.gep(windows_at[i], [offset])), _WORDS)
                    for v in range(vectors):
                        bits = builder.and_(row, filters[v]) if join == "and" else builder.xor(row, filters[v])
                        if join == "masked":
                            bits = builder.and_(bits, kept[v])
                        slot = held[i * vectors + v]
                        builder.store(builder.add(builder.load(slot), builder.call(popcount, [bits])), slot)
            # One store for a window's counts: two narrow ones would delay the wide load that follows.
            ints = ir.VectorType(I32, vectors * LANES)
            for i in range(windows):
                to = element(context, builder, sums_type, args[10], ir.Constant(size, i * vectors * LANES), ints)
                parts = [builder.load(slot) for slot in held[i * vectors :][:vectors]]
                count = low_halves(builder, parts)
                if adds:
                    count = builder.mul(count, in_all_lanes(builder, args[9], ints))
                    count = builder.add(count, loaded(builder, to, 4))
                builder.store(count, to).align = 4
            return context.get_dummy_value()

        whole = types.uint64
        return types.void(rows, offsets, begin, whole, whole, w, whole, whole, whole, types.int32, sums), emit

    return run
