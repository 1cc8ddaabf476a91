"""Population count of a 64-bit word as LLVM's `ctpop` (Numba has no builtin; NumPy's does not compile)."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic
def popcount(typing, word):
    """popcount(uint64) -> uint64. In a loop over contiguous words LLVM vectorizes it with byte shuffles."""

    def emit(context, builder, signature, args):
        word_type = ir.IntType(64)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(word_type, [word_type]), "llvm.ctpop.i64"
        )
        return builder.call(function, args)

    return types.uint64(types.uint64), emit
