"""Inner loops of the products: several windows, or one, by two vectors of filters, with all sums in registers.

Six windows, or eight where a register has 16 lanes (then there are 32 registers), use each vector of weights as often.
One window, a linear layer's at batch 1, reads every weight once: it is bound by memory, so weights of fewer bits than a
byte are expanded in registers.
"""

from typing import Any

import numpy as np

from bnn_kernels.compile.jit import inline
from bnn_kernels.compile.simd.int32_products import dots
from bnn_kernels.compile.simd.product_tiles import TileForm, opening_tile, product_tile
from bnn_kernels.ops.integer_conv.form import Form


def _operations(simd: Any) -> tuple[Any, ...]:
    """Return the operations by themselves: Numba takes compiled functions, not objects that hold them."""
    return simd.zero, simd.load, simd.broadcast, simd.dot, simd.add, simd.store


def _tables_of(simd: Any) -> Any:
    """Return tables(levels): what four bits of packed codes mean, see `lanes.LaneWeights`, as four vectors."""
    table = simd.table

    @inline
    def tables(levels):
        return table(levels[:16]), table(levels[16:32]), table(levels[32:48]), table(levels[48:])

    return tables


def expanders(simd: Any, packed: int) -> tuple[Any, Any]:
    """Return (expand, one) of weights whose codes lie several to a byte.

    Four bits of a byte are the place in a table of 16 levels: with codes of 4 bits one table says it all, with codes
    of 2 bits one says the level of the first code and one that of the second, with codes of 1 bit there are four.
    """
    zero, load, broadcast, dot, add, store = _operations(simd)
    look_up, low_halves, high_halves, keep = simd.look_up, simd.low_halves, simd.high_halves, simd.keep
    tables = _tables_of(simd)
    second, stride = np.uint64(4 * simd.lanes), np.uint64(8 * simd.lanes)

    @inline
    def expand_1(v, t):
        low, high = low_halves(v), high_halves(v)
        return (
            look_up(t[0], low), look_up(t[1], low), look_up(t[2], low), look_up(t[3], low),
            look_up(t[0], high), look_up(t[1], high), look_up(t[2], high), look_up(t[3], high),
        )  # fmt: skip

    @inline
    def expand_2(v, t):
        low, high = low_halves(v), high_halves(v)
        return look_up(t[0], low), look_up(t[1], low), look_up(t[0], high), look_up(t[1], high)

    @inline
    def expand_4(v, t):
        return look_up(t[0], low_halves(v)), look_up(t[0], high_halves(v))

    expand = {1: expand_1, 2: expand_2, 4: expand_4}[packed]
    fields = 8 // packed

    @inline
    def spread_block(w, j, steps, levels, to):
        """Write the levels of a block's steps as bytes: to (steps, 2, 4 * lanes)."""
        t = tables(levels)
        at = np.uint64(0)
        for _ in range(0, steps, fields):
            u, v = expand(load(w, j), t), expand(load(w, j + second), t)
            j += stride
            for f in range(fields):
                keep(to, at, u[f])
                keep(to, at + second, v[f])
                at += stride

    @inline
    def one_1(x, offsets, at, w, j, levels, sums):
        t = tables(levels)
        s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = zero()
        for k in range(0, len(offsets), 8):
            u, v = expand(load(w, j), t), expand(load(w, j + second), t)
            j += stride
            b = broadcast(x, at + offsets[k])
            s0, t0 = dot(s0, b, u[0]), dot(t0, b, v[0])
            b = broadcast(x, at + offsets[k + 1])
            s1, t1 = dot(s1, b, u[1]), dot(t1, b, v[1])
            b = broadcast(x, at + offsets[k + 2])
            s2, t2 = dot(s2, b, u[2]), dot(t2, b, v[2])
            b = broadcast(x, at + offsets[k + 3])
            s3, t3 = dot(s3, b, u[3]), dot(t3, b, v[3])
            b = broadcast(x, at + offsets[k + 4])
            s0, t0 = dot(s0, b, u[4]), dot(t0, b, v[4])
            b = broadcast(x, at + offsets[k + 5])
            s1, t1 = dot(s1, b, u[5]), dot(t1, b, v[5])
            b = broadcast(x, at + offsets[k + 6])
            s2, t2 = dot(s2, b, u[6]), dot(t2, b, v[6])
            b = broadcast(x, at + offsets[k + 7])
            s3, t3 = dot(s3, b, u[7]), dot(t3, b, v[7])
        store(sums, np.uint64(0), add(add(s0, s1), add(s2, s3)))
        store(sums, np.uint64(simd_lanes), add(add(t0, t1), add(t2, t3)))

    @inline
    def one_2(x, offsets, at, w, j, levels, sums):
        t = tables(levels)
        s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = zero()
        for k in range(0, len(offsets), 4):
            u, v = expand(load(w, j), t), expand(load(w, j + second), t)
            j += stride
            b = broadcast(x, at + offsets[k])
            s0, t0 = dot(s0, b, u[0]), dot(t0, b, v[0])
            b = broadcast(x, at + offsets[k + 1])
            s1, t1 = dot(s1, b, u[1]), dot(t1, b, v[1])
            b = broadcast(x, at + offsets[k + 2])
            s2, t2 = dot(s2, b, u[2]), dot(t2, b, v[2])
            b = broadcast(x, at + offsets[k + 3])
            s3, t3 = dot(s3, b, u[3]), dot(t3, b, v[3])
        store(sums, np.uint64(0), add(add(s0, s1), add(s2, s3)))
        store(sums, np.uint64(simd_lanes), add(add(t0, t1), add(t2, t3)))

    @inline
    def one_4(x, offsets, at, w, j, levels, sums):
        t = tables(levels)
        s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = zero()
        for k in range(0, len(offsets), 4):
            u, v = expand(load(w, j), t), expand(load(w, j + second), t)
            j += stride
            b = broadcast(x, at + offsets[k])
            s0, t0 = dot(s0, b, u[0]), dot(t0, b, v[0])
            b = broadcast(x, at + offsets[k + 1])
            s1, t1 = dot(s1, b, u[1]), dot(t1, b, v[1])
            u, v = expand(load(w, j), t), expand(load(w, j + second), t)
            j += stride
            b = broadcast(x, at + offsets[k + 2])
            s2, t2 = dot(s2, b, u[0]), dot(t2, b, v[0])
            b = broadcast(x, at + offsets[k + 3])
            s3, t3 = dot(s3, b, u[1]), dot(t3, b, v[1])
        store(sums, np.uint64(0), add(add(s0, s1), add(s2, s3)))
        store(sums, np.uint64(simd_lanes), add(add(t0, t1), add(t2, t3)))

    simd_lanes = simd.lanes
    return spread_block, {1: one_1, 2: one_2, 4: one_4}[packed]


def single(simd: Any, elements: int, load: Any = None) -> Any:
    """Return the inner loop over one window with two vectors of filters.

    load: of weights, if they are not operands in memory.
    """
    zero, operands, broadcast, dot, add, store = _operations(simd)
    load = operands if load is None else load
    lanes = simd.lanes
    second, stride = np.uint64(lanes * elements), np.uint64(2 * lanes * elements)

    @inline
    def one(x, offsets, at, w, j, room, sums):
        """Write the products of one window with 2 * lanes filters to sums (2 * lanes,): weights are one stream."""
        s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = zero()
        steps = len(offsets)
        whole = steps - steps % 4
        for k in range(0, whole, 4):
            b = broadcast(x, at + offsets[k])
            s0, t0 = dot(s0, b, load(w, j)), dot(t0, b, load(w, j + second))
            j += stride
            b = broadcast(x, at + offsets[k + 1])
            s1, t1 = dot(s1, b, load(w, j)), dot(t1, b, load(w, j + second))
            j += stride
            b = broadcast(x, at + offsets[k + 2])
            s2, t2 = dot(s2, b, load(w, j)), dot(t2, b, load(w, j + second))
            j += stride
            b = broadcast(x, at + offsets[k + 3])
            s3, t3 = dot(s3, b, load(w, j)), dot(t3, b, load(w, j + second))
            j += stride
        for k in range(whole, steps):
            b = broadcast(x, at + offsets[k])
            s0, t0 = dot(s0, b, load(w, j)), dot(t0, b, load(w, j + second))
            j += stride
        store(sums, np.uint64(0), add(add(s0, s1), add(s2, s3)))
        store(sums, np.uint64(lanes), add(add(t0, t1), add(t2, t3)))

    return one


def windows_of(form: Form) -> int:
    """Return how many windows a tile has."""
    return 8 if form.lanes == 16 else 6


def _tile_form(form: Form) -> TileForm:
    return TileForm(windows_of(form), form.lanes, form.product, form.portable, form.shift, form.elements)


def several(form: Form) -> Any:
    """Return the inner loop over the windows first, first + 1, ... of `begin`, up to the last one."""
    tile = product_tile(_tile_form(form))

    @inline
    def windows(x, offsets, begin, first, last, w, j, later, ahead, by, room, sums):
        tile(x, offsets, begin, np.uint64(first), np.uint64(last), w, j, later, ahead, by, sums)

    return windows


def loops_of_pairs(simd: Any, elements: int) -> tuple[Any, Any]:
    """Return both loops with sums of int16, added to those of int32 every `room` steps."""
    zero, load, broadcast, dot, add, store = _operations(simd)
    widened, lanes = simd.widened, simd.lanes
    second, stride = np.uint64(lanes * elements), np.uint64(2 * lanes * elements)

    @inline
    def flush(pairs, first, sums):
        to = np.uint64(0)
        for pair in pairs:
            total = widened(pair)
            store(sums, to, total if first else add(total, load(sums, to)))
            to += np.uint64(lanes)

    @inline
    def six(x, offsets, begin, first, last, w, j, later, ahead, by, room, sums):
        a0, a1, a2 = begin[first], begin[min(first + 1, last)], begin[min(first + 2, last)]
        a3, a4, a5 = begin[min(first + 3, last)], begin[min(first + 4, last)], begin[min(first + 5, last)]
        steps = len(offsets)
        for start in range(0, steps, room):
            s0 = s1 = s2 = s3 = s4 = s5 = t0 = t1 = t2 = t3 = t4 = t5 = zero()
            for k in range(start, min(start + room, steps)):
                o = offsets[k]
                u = load(w, j)
                v = load(w, j + second)
                j += stride
                b = broadcast(x, a0 + o)
                s0, t0 = dot(s0, b, u), dot(t0, b, v)
                b = broadcast(x, a1 + o)
                s1, t1 = dot(s1, b, u), dot(t1, b, v)
                b = broadcast(x, a2 + o)
                s2, t2 = dot(s2, b, u), dot(t2, b, v)
                b = broadcast(x, a3 + o)
                s3, t3 = dot(s3, b, u), dot(t3, b, v)
                b = broadcast(x, a4 + o)
                s4, t4 = dot(s4, b, u), dot(t4, b, v)
                b = broadcast(x, a5 + o)
                s5, t5 = dot(s5, b, u), dot(t5, b, v)
            flush((s0, t0, s1, t1, s2, t2, s3, t3, s4, t4, s5, t5), start == 0, sums)

    @inline
    def one(x, offsets, at, w, j, room, sums):
        steps = len(offsets)
        for begin in range(0, steps, room):
            s0 = t0 = zero()
            for k in range(begin, min(begin + room, steps)):
                b = broadcast(x, at + offsets[k])
                s0, t0 = dot(s0, b, load(w, j)), dot(t0, b, load(w, j + second))
                j += stride
            flush((s0, t0), begin == 0, sums)

    return six, one


def opens_in_tile(form: Form) -> bool:
    """Whether a block's first tile opens its weights on the way, see `product_tiles.opening_tile`."""
    return form.fields > 1 and form.product != "pairs"


def first_of_block(form: Form, windows: Any) -> Any:
    """Return the inner loop of a block's first tile, which also opens the weights if it `opens_in_tile`."""
    if opens_in_tile(form):
        tables = _tables_of(dots(form.lanes, form.product, form.portable, form.shift))
        tile = opening_tile(_tile_form(form), form.packed)

        @inline
        def first_tile(x, offsets, begin, first, last, w, j, levels, to, room, sums):
            tile(x, offsets, begin, np.uint64(first), np.uint64(last), w, j, tables(levels), to, sums)

        return first_tile

    @inline
    def same_tile(x, offsets, begin, first, last, w, j, levels, to, room, sums):
        windows(x, offsets, begin, first, last, w, j, w, j, np.uint64(0), room, sums)

    return same_tile


def loops(form: Form) -> tuple[Any, Any, Any, Any]:
    """Return the inner loops (open_block, windows, one, alone) of a form.

    open_block(w, j, steps, levels, to) returns (array, offset): where the next two read a block's weights, as they lie
    in memory or expanded into `to`. windows and one read them there, see `several` and `single`. alone is `one` for a
    layer of one position, which reads each weight once: from memory, and expands it in registers.
    """
    simd, opens_alone = dots(form.lanes, form.product, form.portable, form.shift), form.opens_alone
    if form.product == "pairs":
        windows, one = loops_of_pairs(simd, form.elements)
    else:
        windows, one = several(form), single(simd, form.elements)
    if form.fields > 1:
        spread_block, one_packed = expanders(simd, form.packed)

        @inline
        def expanded_block(w, j, steps, levels, to):
            spread_block(w, j, steps, levels, to)
            return to, np.uint64(0)

        @inline
        def expanded_alone(x, offsets, at, w, j, levels, room, sums):
            if opens_alone:
                one_packed(x, offsets, at, w, j, levels, sums)

        return expanded_block, windows, one, expanded_alone

    if form.opens:
        widened, keep = simd.load_widened, simd.keep
        vector = np.uint64(2 * form.lanes)
        one_widened = single(simd, form.elements, widened)

        @inline
        def widened_block(w, j, steps, levels, to):
            at = np.uint64(0)
            for _ in range(2 * steps):
                keep(to, at, widened(w, j))
                at += vector
                j += vector
            return to, np.uint64(0)

        @inline
        def widened_alone(x, offsets, at, w, j, levels, room, sums):
            one_widened(x, offsets, at, w, j, room, sums)

        return widened_block, windows, one, widened_alone

    @inline
    def same_block(w, j, steps, levels, to):
        return w, j

    @inline
    def same_alone(x, offsets, at, w, j, levels, room, sums):
        one(x, offsets, at, w, j, room, sums)

    return same_block, windows, one, same_alone
