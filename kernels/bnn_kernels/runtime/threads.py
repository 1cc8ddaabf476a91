"""Threads: how many a kernel may use, and how its rows are split among them.

Kernels are compiled without the GIL and take a range of rows. Every row is computed by the same code whatever the
split, so results do not depend on the number of threads, and several Python threads may call the same object: one of
them gets the workers, the others compute alone.

Workers are Python threads that wait inside compiled code (`fork_join`), so that a kernel of 30 us is worth sharing.
Those that find no work for a while sleep on a semaphore until the next large kernel.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from bnn_kernels import checks
from bnn_kernels.runtime import fork_join as _fork_join
from bnn_kernels.runtime import recording
from bnn_kernels.runtime.fork import in_child, new_lock

# With less work than this for each thread (steps of a kernel's inner loop, about 6 us) sharing does not pay.
MIN_WORK_PER_THREAD = 8_000
# Waking a worker takes up to 100 us.
MIN_WORK_TO_WAKE = 200_000
# More than any machine has; each is a thread of the operating system.
MOST_THREADS = 1 << 12


def _available() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


try:
    _current_cpu: Any = ctypes.PyDLL(None).sched_getcpu
except (AttributeError, OSError, TypeError):
    _current_cpu = None


def _compile_work() -> None:
    """Compile what workers run, here: the compiler exchanges Python's warning filters, which all threads share."""
    state = _fork_join.new_state(1)
    state[_fork_join.STOP] = 1
    _fork_join.work(state, np.zeros(1, np.int64), 0, 1)


class _Workers:
    """Threads that share rows with a caller, one caller at a time."""

    def __init__(self, count: int):
        self.busy = threading.Lock()
        self.state = _fork_join.new_state(count + 1)
        self.awake = [np.zeros(1, np.int64) for _ in range(count)]
        self.wake = [threading.Semaphore(0) for _ in range(count)]
        self.threads: list[int] = [0] * count
        self.cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        _compile_work()
        for index in range(count):
            name = f"bnn_kernels {index + 1}"
            threading.Thread(target=self._work, args=(index,), name=name, daemon=True).start()

    @property
    def count(self) -> int:
        """How many threads share rows: the workers and the caller."""
        return len(self.awake) + 1

    def _work(self, index: int) -> None:
        awake, last = self.awake[index], 0
        self.threads[index] = threading.get_native_id()
        while not self.state[_fork_join.STOP]:
            self.wake[index].acquire()
            awake[0] = 1
            last = _fork_join.work(self.state, awake, last, index + 1)

    def run(self, address: int, rows: int, grain: int, arguments: tuple[Any, ...]) -> bool:
        """Run a kernel's rows together with the workers; the caller holds `busy`. True if the kernel failed."""
        self.wake_all()
        return _fork_join.launch(self.state, address, rows, grain, self.count, arguments)

    def wake_all(self) -> None:
        """Wake who sleeps."""
        for index, awake in enumerate(self.awake):
            if not awake[0]:
                self._keep_off_this_cpu(index)
                awake[0] = 1
                self.wake[index].release()

    def _keep_off_this_cpu(self, index: int) -> None:
        """Let a sleeping worker wake on another CPU than the caller's.

        On the caller's it would find every job done: it only gets the CPU when the caller has been there for a time
        slice, sees no job, sleeps, and is woken at the same place again.
        """
        if _current_cpu is None or len(self.cpus) < 2 or not self.threads[index]:
            return
        with contextlib.suppress(OSError):
            os.sched_setaffinity(self.threads[index], self.cpus - {_current_cpu()})

    @property
    def all_asleep(self) -> bool:
        """Whether every worker would have to be woken."""
        return not any(awake[0] for awake in self.awake)

    def stop(self) -> None:
        """Let the threads end."""
        self.state[_fork_join.STOP] = 1
        for wake in self.wake:
            wake.release()


_lock = new_lock()
_workers: _Workers | None = None
_threads = _available()


@in_child
def _forget_workers() -> None:
    # Threads do not survive a fork, nor does what a lock of theirs stands for.
    global _workers
    _workers = None


def set_num_threads(n: int) -> None:
    """Let kernels use at most `n` threads (n >= 1)."""
    global _threads, _workers
    n = checks.integer(n, "the number of threads", 1, MOST_THREADS)
    with _lock:
        _threads = n
        if _workers is not None:
            _workers.stop()
            _workers = None


def get_num_threads() -> int:
    """Return how many threads a kernel may use."""
    return _threads


@contextlib.contextmanager
def sharing_everything() -> Iterator[None]:
    """Share kernels among threads whatever their size, for whoever wants every way to be taken once."""
    global MIN_WORK_PER_THREAD, MIN_WORK_TO_WAKE
    before = MIN_WORK_PER_THREAD, MIN_WORK_TO_WAKE
    MIN_WORK_PER_THREAD = MIN_WORK_TO_WAKE = 1
    try:
        yield
    finally:
        MIN_WORK_PER_THREAD, MIN_WORK_TO_WAKE = before


def _get_workers() -> _Workers | None:
    global _workers
    workers = _workers
    if workers is None:
        with _lock:
            if _workers is None and _threads > 1:
                _workers = _Workers(_threads - 1)
            workers = _workers
    return workers


def run_rows(kernel: Any, rows: int, work: int, *args: Any, multiple: int = 1) -> None:
    """Call `kernel(*args, first, last)` over all rows, shared among threads when `work` is worth it.

    multiple: rows that a kernel likes to have together. A NamedTuple goes as a plain tuple, and the kernel begins with
    `size = Sizes(*size)`: that costs nothing, while each NamedTuple that crosses into compiled code takes 0.7 us.
    """
    record = recording.current()
    if record is not None:
        record.add_kernel(kernel, rows, work, multiple, args)
    parts = min(_threads, -(-rows // multiple), work // MIN_WORK_PER_THREAD)
    workers = _get_workers() if parts > 1 else None
    drowsy = workers is not None and workers.all_asleep and work < MIN_WORK_TO_WAKE
    if workers is None or drowsy or not workers.busy.acquire(blocking=False):
        kernel(*args, 0, rows)
        return
    try:
        failed = workers.run(_fork_join.address_of(kernel, args), rows, multiple, args)
    finally:
        workers.busy.release()
    if failed:
        raise MemoryError(f"{kernel.__name__} could not get the memory for its scratch arrays")


_NO_STATE = _fork_join.new_state(1)


def play_kernels(calls: np.ndarray) -> None:
    """Run recorded kernel calls int64 (C, 5), see `recording`; each shared among threads where its work is worth it."""
    shared = calls[:, 3][calls[:, 3] >= 2 * MIN_WORK_PER_THREAD] if _threads > 1 else calls[:0, 3]
    workers = _get_workers() if len(shared) else None
    drowsy = workers is not None and workers.all_asleep and int(shared.sum()) < MIN_WORK_TO_WAKE
    if workers is None or drowsy or not workers.busy.acquire(blocking=False):
        failed = _fork_join.play(calls, _NO_STATE, 1, MIN_WORK_PER_THREAD)
    else:
        try:
            workers.wake_all()
            # Not `_threads`, which another thread may have changed: the state has a place for each of these.
            failed = _fork_join.play(calls, workers.state, workers.count, MIN_WORK_PER_THREAD)
        finally:
            workers.busy.release()
    if failed:
        raise MemoryError("a kernel could not get the memory for its scratch arrays")
