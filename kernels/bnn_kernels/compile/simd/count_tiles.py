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
# The three operands of a function of three bits, in the order of its table's bits.
_A, _B, _C = 0xF0, 0xCC, 0xAA


@functools.cache
def count_tile(windows: int, vectors: int, join: str, adds: bool, saves: bool) -> Any:
    """Return tile(rows, offsets, begin, first, plane, w, j, apart, mask, factor, sums).

    It writes sums int32 (windows, vectors, 8), with k over the offsets,
    sums[i, v] = sum_k popcount(join(rows[begin[first + i] + plane + offsets[k]], w[j + v * apart + 8 k :][:8])),
    join being "xor", "and", or "masked": (row ^ w) & m, with m as far behind w as `mask` says. adds: this times an
    int32 factor is added to the sums instead. All arguments but factor and sums are uint64, or arrays of it.
    saves: take one count for two words, with instructions of AVX-512, see `_saving_counts`; ValueError if "masked".
    """
    if saves and join == "masked":
        raise ValueError("signs and masks are counted word by word: two operands and a sum are all that fits a table")

    @intrinsic
    def run(typing, rows, offsets, begin, first, plane, w, j, apart, mask, factor, sums):
        def emit(context, builder, signature, args):
            rows_type, offsets_type, begin_type, w_type, sums_type = (signature.args[i] for i in (0, 1, 2, 5, 10))
            size = args[3].type
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
            offsets = element(context, builder, offsets_type, args[1], ir.Constant(size, 0), I64)
            if saves:
                held = _saving_counts(builder, windows_at, offsets, steps, weights, join)
            else:
                held = _counts(builder, windows_at, offsets, steps, weights, masks, join)
            # One store for a window's counts: two narrow ones would delay the wide load that follows.
            ints = ir.VectorType(I32, vectors * LANES)
            for i in range(windows):
                to = element(context, builder, sums_type, args[10], ir.Constant(size, i * vectors * LANES), ints)
                count = low_halves(builder, held[i * vectors :][:vectors])
                if adds:
                    count = builder.mul(count, in_all_lanes(builder, args[9], ints))
                    count = builder.add(count, loaded(builder, to, 4))
                builder.store(count, to).align = 4
            return context.get_dummy_value()

        whole = types.uint64
        return types.void(rows, offsets, begin, whole, whole, w, whole, whole, whole, types.int32, sums), emit

    return run


def _popcount(builder, words):
    function = ir.FunctionType(_WORDS, [_WORDS])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, f"llvm.ctpop.v{LANES}i64"), [words])


def _counts(builder, windows_at, offsets, steps, weights, masks, join):
    """Return the counts of each window and vector, one after the other: one count a word."""
    vectors = len(weights)
    held = sums_in_registers(builder, ir.Constant(_WORDS, [0] * LANES), len(windows_at) * vectors)
    with cgutils.for_range(builder, steps) as loop:
        k = loop.index
        offset = builder.load(builder.gep(offsets, [k]))
        filters = [loaded(builder, builder.gep(pointer, [k]), 8) for pointer in weights]
        if join == "masked":
            kept = [loaded(builder, builder.gep(pointer, [k]), 8) for pointer in masks]
        for i, window in enumerate(windows_at):
            row = in_all_lanes(builder, builder.load(builder.gep(window, [offset])), _WORDS)
            for v in range(vectors):
                bits = builder.and_(row, filters[v]) if join == "and" else builder.xor(row, filters[v])
                if join == "masked":
                    bits = builder.and_(bits, kept[v])
                slot = held[i * vectors + v]
                builder.store(builder.add(builder.load(slot), _popcount(builder, bits)), slot)
    return [builder.load(slot) for slot in held]


def _saving_counts(builder, windows_at, offsets, steps, weights, join):
    """Return the same with one count for two words, by carry-save addition.

    Three words a, b, c have in each place a + b + c = s + 2 r, with s = a ^ b ^ c and r where at least two are set. Of
    a = what is left from before, b = x1 ^ w1 and c = x2 ^ w2, with AVX-512's instruction for any function of three bits
        t = a ^ x1 ^ w1        s = t ^ x2 ^ w2        r = t ? ~s : a
    for where t is 0, a and b are the same, and r is a; where it is 1 one of them is set, and r is c, which s tells. So
    the joins cost nothing beside it: with one count and one addition of it two words take five instructions instead of
    six. s is left for the next two words, and counted at the end. The same holds for b = x1 & w1, c = x2 & w2.
    """
    one, two = ir.Constant(steps.type, 1), ir.Constant(steps.type, 2)
    zero = ir.Constant(_WORDS, [0] * LANES)

    def of_three(table, a, b, c):
        name, kinds = "llvm.x86.avx512.pternlog.q.512", [_WORDS, _WORDS, _WORDS, I32]
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_WORDS, kinds), name)
        return builder.call(function, [a, b, c, ir.Constant(I32, table)])

    def joined(before, window, offset, words):
        row = in_all_lanes(builder, builder.load(builder.gep(window, [offset])), _WORDS)
        if before is not None:
            return of_three(_A ^ (_B & _C if join == "and" else _B ^ _C), before, words, row)
        return builder.and_(row, words) if join == "and" else builder.xor(row, words)

    def words_at(pointer, k):
        return builder.load(builder.gep(offsets, [k])), loaded(builder, builder.gep(pointer, [k]), 8)

    def add_count(slot, words):
        builder.store(builder.add(builder.load(slot), _popcount(builder, words)), slot)

    found = []
    for pointer in weights:
        held = sums_in_registers(builder, zero, len(windows_at))
        left = sums_in_registers(builder, zero, len(windows_at))
        offset, words = words_at(pointer, ir.Constant(steps.type, 0))
        for i, window in enumerate(windows_at):
            builder.store(joined(None, window, offset, words), left[i])
        pairs = builder.lshr(builder.sub(steps, one), one)
        with cgutils.for_range(builder, pairs) as loop:
            k = builder.add(builder.mul(loop.index, two), one)
            (offset1, words1), (offset2, words2) = words_at(pointer, k), words_at(pointer, builder.add(k, one))
            for i, window in enumerate(windows_at):
                a = builder.load(left[i])
                t = joined(a, window, offset1, words1)
                s = joined(t, window, offset2, words2)
                add_count(held[i], of_three(_A & ~_B | ~_A & _C & 0xFF, t, s, a))
                builder.store(s, left[i])
        for slot in held:
            builder.store(builder.add(builder.load(slot), builder.load(slot)), slot)
        # Of an even number of words one is over.
        over = builder.sub(builder.sub(steps, one), builder.mul(pairs, two))
        with cgutils.for_range(builder, over):
            offset, words = words_at(pointer, builder.sub(steps, one))
            for i, window in enumerate(windows_at):
                add_count(held[i], joined(None, window, offset, words))
        for slot, rest in zip(held, left, strict=True):
            add_count(slot, builder.load(rest))
        found.append([builder.load(slot) for slot in held])
    return [counts[i] for i in range(len(windows_at)) for counts in found]
