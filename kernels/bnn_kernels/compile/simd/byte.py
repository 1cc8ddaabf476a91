"""Bytes behind plain addresses: an array in a tuple costs a reference count each time the tuple is taken apart."""

from numba import types
from numba.extending import intrinsic

from bnn_kernels.compile.simd.vectors import I8, I64, behind


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
