"""Recording: for a repeated batch size kernels and buffers are the same, and only the data changes.

So while a model runs, what it calls can be recorded, and the next time the recording is played back in compiled code:
no step runs Python, no argument is unpacked, and nothing is allocated. What steps do besides kernels (a matrix product
of BLAS, a copy) is recorded with `do`.

A step that does anything else to numbers in Python would be forgotten when a call is played back.

What a caller hands in need not be copied into the recording's memory, nor what he gets out of it: `Movable` lets the
kernels read and write elsewhere.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from bnn_kernels.runtime import fork_join as _fork_join
from bnn_kernels.runtime.cache_lines import LINE

_local = threading.local()

# Steps of one recording that can meet a NaN.
MOST_FLAGS = 4096
_CALL = 5  # task, context, rows, work, grain


class Movable:
    """Memory of a recording whose kernels can be sent elsewhere: to an array of the caller's, and back."""

    def __init__(self, memory: np.ndarray, words: Sequence[tuple[np.ndarray, int]]):
        self._memory = memory
        # Addresses: of the memory, and of what the kernels use now.
        self._own = self._now = _address(memory)
        self._words = words
        # Of the view that `elsewhere` was last asked for: where it begins in the memory.
        self._view: np.ndarray | None = None
        self._start = 0

    def move(self, array: np.ndarray | None) -> None:
        """Let the kernels use the memory of a contiguous array, which the caller keeps, or their own (None)."""
        self._send(self._own if array is None else _address(array))

    def _send(self, to: int) -> None:
        if to != self._now:
            for frame, place in self._words:
                frame[place] += to - self._now
            self._now = to

    def elsewhere(self, view: np.ndarray) -> np.ndarray:
        """Let the kernels use new memory, and return the place there of a contiguous view of their own."""
        if self._view is not view:
            self._view, self._start = view, _address(view) - self._own
        memory = np.empty(self._memory.nbytes + LINE, np.uint8)
        address = _address(memory)
        behind_line = (self._own - address) % LINE  # what began at a cache line does so again
        self._send(address + behind_line)
        return np.ndarray(view.shape, view.dtype, memory, behind_line + self._start)


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _overlapping(arguments: Any, start: int, end: int) -> int | None:
    """Return how many arrays among arguments begin at addresses start .. end - 1; None if they could be hidden."""
    if isinstance(arguments, np.ndarray):
        return int(start <= _address(arguments) < end) if arguments.dtype != object else None
    if isinstance(arguments, tuple):
        counts = [_overlapping(part, start, end) for part in arguments]
        return None if None in counts else sum(filter(None, counts))
    return 0 if arguments is None or isinstance(arguments, bool | int | float | str | np.generic) else None


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

    def movable(self, memory: np.ndarray) -> Movable | None:
        """Return what sends the kernels elsewhere that use a contiguous memory; None where that is not certain.

        It is not if a call of Python has the memory too, or if no kernel has it. What a kernel is given lies in its
        frame as addresses: they are counted against its arguments.
        """
        start = _address(memory)
        end = start + memory.nbytes
        for item in self._items:
            if not isinstance(item, np.ndarray) and _overlapping(item[1], start, end) != 0:
                return None
        words = []
        for frame, arguments in self._kept:
            places = np.flatnonzero((frame >= start) & (frame < end))
            if len(places) != _overlapping(arguments, start, end):
                return None
            words += [(frame, int(place)) for place in places]
        return Movable(memory, words) if words else None

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
