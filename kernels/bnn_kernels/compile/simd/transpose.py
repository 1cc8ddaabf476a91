"""Sixteen rows of sixteen float32 become sixteen columns, in registers."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bnn_kernels.compile.simd.float32x16 import LANES
from bnn_kernels.compile.simd.vectors import FLOAT, I32, I64, element, loaded

_VECTOR = ir.VectorType(FLOAT, LANES)


def _shuffled(builder, a, b, places):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, LANES), places))


@intrinsic
def transpose(typing, x, at, x_begin, j, y, to, y_begin, i):
    """y[to + y_begin[i + r] + c] = x[at + x_begin[j + c] + r] for r, c < 16, float32; x_begin and y_begin int64.

    In step d = 8, 4, 2, 1 rows c and c + d (c without bit d) exchange: the first gets the columns without bit d of
    both, the second those with it. After all steps bit d of the row and of the column are exchanged for every d.
    """

    def emit(context, builder, signature, args):
        kinds = signature.args
        x, at, x_begin, j, y, to, y_begin, i = zip(kinds, args, strict=True)

        def vector(array, start, begin, first, number):
            place = builder.add(first[1], ir.Constant(I64, number))
            offset = builder.load(element(context, builder, *begin, place, I64))
            return element(context, builder, *array, builder.add(start[1], offset), _VECTOR)

        rows = [loaded(builder, vector(x, at, x_begin, j, c), 4) for c in range(LANES)]
        for d in (8, 4, 2, 1):
            low = [c if not c & d else c - d + LANES for c in range(LANES)]
            high = [c + d if not c & d else c + LANES for c in range(LANES)]
            for c in (c for c in range(LANES) if not c & d):
                a, b = rows[c], rows[c + d]
                rows[c], rows[c + d] = _shuffled(builder, a, b, low), _shuffled(builder, a, b, high)
        for r, row in enumerate(rows):
            builder.store(row, vector(y, to, y_begin, i, r)).align = 4
        return context.get_dummy_value()

    return types.void(x, types.uint64, x_begin, types.uint64, y, types.uint64, y_begin, types.uint64), emit
