"""Inner loops of products of levels: windows by two vectors of filters, with all sums in registers.

One reads weights that are as wide as operands. The other opens packed ones on its way and keeps them for the tiles that
follow: what a look-up and a store beside sixteen products add is less than a pass of its own, which waits for stores.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bnn_kernels.compile.simd.byte import prefetch_behind
from bnn_kernels.compile.simd.int32_products import (
    emit_high_halves,
    emit_look_up,
    emit_low_halves,
    sum_kind,
    sum_vector,
    to_add_products,
)
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


class TileForm(NamedTuple):
    """What a tile multiplies: so many windows, and the rest as in `int32_products.dots`.

    elements: that a lane multiplies in a step, four bytes or two shorts.
    """

    windows: int
    lanes: int
    product: str
    portable: bool
    shift: int
    elements: int


class _Tile:
    """The sums of a tile while its code is made."""

    def __init__(self, form: TileForm, context: Any, builder: ir.IRBuilder, x: Any, begin: Any, first: Any, last: Any):
        self.form, self.context, self.builder = form, context, builder
        self.vector, self._add_products = sum_vector(form.lanes), to_add_products(form.product)
        places = up_to(builder, first, last, form.windows)
        self._windows = windows_from(context, builder, x, begin, places, context.get_data_type(x[0].dtype))
        self._sums = sums_in_registers(builder, ir.Constant(self.vector, [0] * form.lanes), 2 * form.windows)

    def add_step(self, offset: ir.Value, filters: list[ir.Value]) -> None:
        """Add the products of what lies `offset` elements behind the windows' beginnings with two filter vectors."""
        form, builder = self.form, self.builder
        for i in range(form.windows):
            pointer = builder.bitcast(builder.gep(self._windows[i], [offset]), I32.as_pointer())
            value = loaded(builder, pointer, 1)
            if form.shift:
                value = builder.xor(value, ir.Constant(I32, 0x80808080))
            inputs = in_all_lanes(builder, value, self.vector)
            for v in range(2):
                slot = self._sums[2 * i + v]
                total = self._add_products(builder, form.lanes, form.portable, builder.load(slot), inputs, filters[v])
                builder.store(total, slot)

    def keep_sums(self, sums_type: Any, sums: ir.Value) -> None:
        """Write the sums to an array int32 (windows, 2, lanes)."""
        for place, slot in enumerate(self._sums):
            at = ir.Constant(I64, place * self.form.lanes)
            to = element(self.context, self.builder, sums_type, sums, at, self.vector)
            self.builder.store(self.builder.load(slot), to).align = 4


@functools.cache
def product_tile(form: TileForm) -> Any:
    """Return tile(x, offsets, begin, first, last, w, j, later, ahead, by, sums): sums int32 (windows, 2, lanes).

    sums[i, v] = sum_k dot(x[begin[min(first + i, last)] + offsets[k] :], w[j + (2 k + v) * lanes * elements :]), in
    each lane over `elements` neighbours: four bytes or two shorts, see `int32_products.dots`, which also says what
    product, portable and shift are. offsets, begin, first, last, j uint64. Meanwhile it asks for memory that is read
    later: in step k for that of later[ahead + k * by], uint64 too.
    """

    @intrinsic
    def run(typing, x, offsets, begin, first, last, w, j, later, ahead, by, sums):
        def emit(context, builder, signature, args):
            x_type, offsets_type, begin_type, _, _, w_type, _, later_type, _, _, sums_type = signature.args
            tile = _Tile(form, context, builder, (x_type, args[0]), (begin_type, args[2]), args[3], args[4])
            weights = element(context, builder, w_type, args[5], args[6], tile.vector)
            asked = element(context, builder, later_type, args[7], args[8], context.get_data_type(later_type.dtype))
            steps = context.make_array(offsets_type)(context, builder, args[1]).nitems
            with cgutils.for_range(builder, steps) as loop:
                offset = builder.load(element(context, builder, offsets_type, args[1], loop.index, I64))
                prefetch_behind(builder, builder.gep(asked, [builder.mul(loop.index, args[9])]))
                row = builder.mul(loop.index, ir.Constant(loop.index.type, 2))
                places = [builder.add(row, ir.Constant(row.type, v)) for v in range(2)]
                tile.add_step(offset, [loaded(builder, builder.gep(weights, [place]), 1) for place in places])
            tile.keep_sums(sums_type, args[10])
            return context.get_dummy_value()

        whole = types.uint64
        return types.void(x, offsets, begin, whole, whole, w, whole, later, whole, whole, sums), emit

    return run


def table_places(packed: int) -> list[tuple[int, Callable[..., ir.Value]]]:
    """Return for each step of a packed byte (table, what takes its place in it out of the byte), see `expanders`.

    Of 4 bits one table says it all, of 2 bits one says the level of the first code and one that of the second, of 1
    bit there are four.
    """
    tables = 4 // packed
    return [(table, half) for half in (emit_low_halves, emit_high_halves) for table in range(tables)]


@functools.cache
def opening_tile(form: TileForm, packed: int) -> Any:
    """Return tile(x, offsets, begin, first, last, w, j, tables, to, sums): what `product_tile` computes, of packed w.

    w: codes of `packed` bits, from byte j on; tables: four vectors, see `int32_products.dots`. The operands are also
    written to `to` (steps, 2, 4 * lanes) bytes, in the form that `product_tile` reads. The steps are a multiple of
    those that a byte holds.
    """
    kind = sum_kind(form.lanes)

    @intrinsic
    def run(typing, x, offsets, begin, first, last, w, j, tables, to, sums):
        def emit(context, builder, signature, args):
            x_type, offsets_type, begin_type, _, _, w_type, _, _, to_type, sums_type = signature.args
            tile = _Tile(form, context, builder, (x_type, args[0]), (begin_type, args[2]), args[3], args[4])
            codes = element(context, builder, w_type, args[5], args[6], tile.vector)
            opened = element(context, builder, to_type, args[8], ir.Constant(I64, 0), tile.vector)
            held = [builder.extract_value(args[7], i) for i in range(4)]
            steps = context.make_array(offsets_type)(context, builder, args[1]).nitems
            fields = table_places(packed)
            count = ir.Constant(steps.type, len(fields))
            with cgutils.for_range(builder, builder.sdiv(steps, count)) as loop:
                row = builder.mul(loop.index, ir.Constant(loop.index.type, 2))
                both = [builder.add(row, ir.Constant(row.type, v)) for v in range(2)]
                bytes_ = [loaded(builder, builder.gep(codes, [place]), 1) for place in both]
                step = builder.mul(loop.index, count)
                for f, (table, half) in enumerate(fields):
                    k = builder.add(step, ir.Constant(step.type, f))
                    offset = builder.load(element(context, builder, offsets_type, args[1], k, I64))
                    filters = [emit_look_up(form, builder, held[table], half(builder, value)) for value in bytes_]
                    row = builder.mul(k, ir.Constant(k.type, 2))
                    for v, value in enumerate(filters):
                        place = builder.gep(opened, [builder.add(row, ir.Constant(row.type, v))])
                        builder.store(value, place).align = 1
                    tile.add_step(offset, filters)
            tile.keep_sums(sums_type, args[9])
            return context.get_dummy_value()

        whole, vectors = types.uint64, types.UniTuple(kind, 4)
        return types.void(x, offsets, begin, whole, whole, w, whole, vectors, to, sums), emit

    return run
