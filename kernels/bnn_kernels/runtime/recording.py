"""Recording: for a repeated batch size kernels and buffers are the same, and only the data changes.

So while a model runs, what it calls can be recorded, and the next time the recording is played back in compiled code:
no step runs Python, no argument is unpacked, and nothing is allocated. What steps do besides kernels (a matrix product
of BLAS, a copy) is recorded with `do`.

A step that does anything else to numbers in Python would be forgotten when a call is played back.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from bnn_kernels.runtime import fork_join as _fork_join

_local = threading.local()

# Steps of one recording that can meet a NaN.
MOST_FLAGS = 4096
_CALL = 5  # task, context, rows, work, grain


class Recording:
    """Kernel calls and Python calls in order. Not for two threads at a time."""

    def __init__(self) -> None:
        self._items: list[np.ndarray | tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self._open: list[tuple[int, ...]] = []
        # Arguments and frames, which compiled code knows by their addresses only.
        self._kept: list[Any] = []
        self._flags = np.zeros(MOST_FLAGS, np.uint8)
        self._flag_count = 0
        self._raise: Callable[[], None] | None = None

    def add_kernel(self, kernel: Any, rows: int, work: int, grain: int, arguments: tuple[Any, ...]) -> None:
        """Note a call of kernel(*arguments, 0, rows)."""
        frame = np.zeros(_fork_join.FRAME_WORDS, np.int64)
        task = _fork_join.store_task(_fork_join.address_of(kernel, arguments), frame, arguments)
        self._kept.append((frame, arguments))
        self._open.append((task, frame.ctypes.data, rows, work, grain))

    def add_call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Note a call of function(*arguments)."""
        self._close()
        self._items.append((function, arguments))

    def _close(self) -> None:
        if self._open:
            self._items.append(np.array(self._open, np.int64).reshape(-1, _CALL))
            self._open = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record what this thread calls meanwhile."""
        outer = current()
        _local.recording = self
        try:
            yield
        finally:
            _local.recording = outer
            self._close()
            self._flags = self._flags[: max(self._flag_count, 1)]

    def flag(self, raise_it: Callable[[], None]) -> np.ndarray:
        """Return uint8 (1,), 0: if a kernel sets it, playing ends with `raise_it`."""
        if self._flag_count == MOST_FLAGS:
            raise RuntimeError(f"more than {MOST_FLAGS} steps that can meet a NaN")
        self._flag_count += 1
        self._raise = raise_it
        return self._flags[self._flag_count - 1 : self._flag_count]

    def play(self, run_kernels: Callable[[np.ndarray], None]) -> None:
        """Do it again; run_kernels gets int64 (calls, 5): task, context, rows, work and grain of kernel calls."""
        try:
            for item in self._items:
                if isinstance(item, np.ndarray):
                    run_kernels(item)
                else:
                    function, arguments = item
                    function(*arguments)
        except BaseException:
            self._flags[:] = 0
            raise
        if self._flags.any():
            self._flags[:] = 0
            assert self._raise is not None
            self._raise()


def current() -> Recording | None:
    """Return the recording that this thread's calls go to, if there is one."""
    return getattr(_local, "recording", None)


def do(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function that writes into one of its arguments, now and whenever the recording is played."""
    function(*arguments)
    recording = current()
    if recording is not None:
        recording.add_call(function, arguments)


def new_flag(raise_it: Callable[[], None]) -> np.ndarray:
    """Return uint8 (1,), 0, for a kernel that says whether it met what `raise_it` complains about."""
    recording = current()
    return np.zeros(1, np.uint8) if recording is None else recording.flag(raise_it)
