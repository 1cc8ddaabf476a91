"""The one place where kernels get their compiler flags and their cache (`compile.cache`)."""

from collections.abc import Callable
from typing import Any

import numba
from numba.core.registry import CPUDispatcher

from bnn_kernels.compile.cache import KernelCache
from bnn_kernels.compile.isa import complete_features_on_arm

complete_features_on_arm()


def jit(function: Callable) -> Any:
    """Compile a kernel.

    nogil: kernels run in several threads at once. boundscheck off and error_model numpy: no hidden branches in inner
    loops; every public function checks shapes before it calls a kernel. No fastmath: the order of float operations
    is part of what a packed model promises.
    """
    dispatcher = numba.njit(nogil=True, boundscheck=False, error_model="numpy", no_cfunc_wrapper=True)(function)
    dispatcher._cache = KernelCache(function)
    return dispatcher


class _Inlined(CPUDispatcher):
    """A helper without the entry by which Python calls compiled code."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"{self.py_func.__qualname__} is called from compiled kernels only; Python calls its py_func")


def inline(function: Callable) -> Any:
    """Compile a helper that is called from kernels only and always inlined into them (not cached by itself).

    Left to LLVM, a helper that hands back several vectors is called through memory, at 50-100 ns a call. The entries
    for Python and C would be a seventh of the time that a kernel takes to compile; a call from Python is a TypeError.
    """
    dispatcher = numba.njit(
        nogil=True,
        boundscheck=False,
        error_model="numpy",
        forceinline=True,
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
    )(function)
    dispatcher.__class__ = _Inlined
    return dispatcher
