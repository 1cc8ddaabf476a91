"""Forks: a child process finds no lock held by a thread that it does not have.

A forked child is a copy of the whole memory with one thread. Our own locks are made new in it: what they guard is
either done or can be begun anew. Numba's compiler and LLVM must not be copied halfway through, so a fork waits until
no thread compiles.
"""

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

from llvmlite.binding import ffi
from numba.core import compiler_lock

# Seconds that a fork waits for a compiler: many times what the largest kernel takes.
MOST_SECONDS = 60.0

_locks: "weakref.WeakSet[Any]" = weakref.WeakSet()
_fork = threading.local()


def new_lock() -> Any:
    """Return a threading.Lock that is free in a forked child."""
    lock = threading.Lock()
    _locks.add(lock)
    return lock


def in_child(function: Callable[[], None]) -> Callable[[], None]:
    """Call a function in every forked child."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
    return function


class _NoCompiler:
    """In the place of the compiler's lock where that could not be had: whoever asks is told, and does not hang."""

    def acquire(self, *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(
            f"this process was forked while another thread compiled for more than {MOST_SECONDS:.0f} s; it cannot "
            "compile kernels. Fork before the first call of a model or after it, or start processes by spawn"
        )

    def release(self) -> None:
        """Do nothing."""


def _wait_for_compilers() -> None:
    _fork.held = []
    # In the order in which a compilation takes them.
    for lock in (compiler_lock.global_compiler_lock._lock, ffi.lib._lock._lock):
        if not lock.acquire(timeout=MOST_SECONDS):
            return
        _fork.held.append(lock)


def _go_on() -> None:
    while _fork.held:
        _fork.held.pop().release()


def _begin_child() -> None:
    if len(_fork.held) < 2:
        compiler_lock.global_compiler_lock._lock = _NoCompiler()
    _go_on()
    for lock in _locks:
        lock._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait_for_compilers, after_in_parent=_go_on, after_in_child=_begin_child)
