"""The one place where kernels get their compiler flags and their cache (`compile.cache`)."""

from collections.abc import Callable
from typing import Any

import numba

from bnn_kernels.compile.cache import KernelCache
from bnn_kernels.compile.isa import complete_features_on_arm

complete_features_on_arm()


def jit(function: Callable) -> Any:
    """Compile a kernel.

    nogil: kernels run in several threads at once. boundscheck off and error_model numpy: no hidden branches in inner
    loops; every public function checks shapes before it calls a kernel. No fastmath: the order of float operations
    is part of what a packed model promises.
    """
    dispatcher = numba.njit(nogil=True, boundscheck=False, error_model="numpy")(function)
    dispatcher._cache = KernelCache(function)
    return dispatcher


def inline(function: Callable) -> Any:
    """Compile a helper that is called from kernels only and always inlined into them (not cached by itself).

    Left to LLVM, a helper that hands back several vectors is called through memory, at 50-100 ns a call.
    """
    return numba.njit(nogil=True, boundscheck=False, error_model="numpy", forceinline=True)(function)
