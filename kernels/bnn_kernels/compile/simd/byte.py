"""Bytes behind plain addresses: an array in a tuple costs a reference count each time the tuple is taken apart."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bnn_kernels.compile.simd.vectors import I8, I32, I64, behind

CACHE_LINE = 64


@intrinsic
def load(typing, address, offset):
    """The byte `offset` behind an address, as uint64."""

    def emit(context, builder, signature, args):
        return builder.zext(builder.load(behind(builder, *args, I8, I8)), I64)

    return types.uint64(types.int64, types.int64), emit


@intrinsic
def store(typing, address, offset, value):
    """Write the low byte of a uint64 `offset` behind an address."""

    def emit(context, builder, signature, args):
        builder.store(builder.trunc(args[2], I8), behind(builder, args[0], args[1], I8, I8))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.uint64), emit


def prefetch_behind(builder: ir.IRBuilder, pointer: ir.Value, writes: bool = False) -> None:
    """Ask for the cache line behind an LLVM pointer."""
    address = builder.bitcast(pointer, I8.as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [address.type, I32, I32, I32])
    llvm_prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    nearest, data = 3, 1
    builder.call(llvm_prefetch, [address, *(I32(n) for n in (int(writes), nearest, data))])


def _prefetch(name: str, doc: str, writes: bool) -> Any:
    def prefetch(typing, address, offset):
        def emit(context, builder, signature, args):
            prefetch_behind(builder, behind(builder, *args, I8, I8), writes)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), emit

    prefetch.__name__ = prefetch.__qualname__ = name
    prefetch.__doc__ = doc
    return intrinsic(prefetch)


prefetch = _prefetch("prefetch", "Ask for the cache line of a byte behind an address, which is read soon.", False)
prefetch_to_write = _prefetch("prefetch_to_write", "The same for a line that is written soon.", True)
