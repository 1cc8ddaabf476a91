"""Threads: how many a kernel may use, and how its rows are split among them.

Kernels are compiled without the GIL and take a range of rows. Every row is computed by the same code whatever the
split, so results do not depend on the number of threads, and several Python threads may call the same object: one of
them gets the workers, the others compute alone.

Workers are Python threads that wait inside compiled code (`_fork_join`), so that a kernel of 30 us is worth sharing.
Those that find no work for a while sleep on a semaphore until the next large kernel.
"""

import os
import threading
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from bnn_kernels import _fork_join

# With less work than this for each thread (steps of a kernel's inner loop, about 6 us) sharing does not pay.
MIN_WORK_PER_THREAD = 8_000


def _available() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Workers:
    """Threads that share rows with a caller, one caller at a time."""

    def __init__(self, count: int):
        self.busy = threading.Lock()
        self.state = _fork_join.new_state()
        self.awake = [np.zeros(1, np.int64) for _ in range(count)]
        self.wake = [threading.Semaphore(0) for _ in range(count)]
        for index in range(count):
            name = f"bnn_kernels {index + 1}"
            threading.Thread(target=self._work, args=(index,), name=name, daemon=True).start()

    def _work(self, index: int) -> None:
        awake, last = self.awake[index], 0
        while not self.state[_fork_join.STOP]:
            self.wake[index].acquire()
            awake[0] = 1
            last = _fork_join.work(self.state, awake, last)

    def run(self, address: int, rows: int, grain: int, arguments: tuple[Any, ...]) -> bool:
        """Run a kernel's rows together with the workers; the caller holds `busy`. True if the kernel failed."""
        for awake, wake in zip(self.awake, self.wake, strict=True):
            if not awake[0]:
                awake[0] = 1
                wake.release()
        return _fork_join.launch(self.state, address, rows, grain, len(self.awake) + 1, arguments)

    def stop(self) -> None:
        """Let the threads end."""
        self.state[_fork_join.STOP] = 1
        for wake in self.wake:
            wake.release()


_lock = threading.Lock()
_workers: _Workers | None = None
_threads = _available()


def _forget_workers() -> None:
    # Threads do not survive a fork, and a lock that one of them held would stay locked.
    global _lock, _workers
    _lock, _workers = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


def set_num_threads(n: int) -> None:
    """Let kernels, and the BLAS behind the float layers, use at most `n` threads (n >= 1)."""
    global _threads, _workers
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"the number of threads must be an integer of at least 1, got {n!r}")
    with _lock:
        _threads = n
        if _workers is not None:
            _workers.stop()
            _workers = None
    threadpool_limits(n, user_api="blas")


def get_num_threads() -> int:
    """Return how many threads a kernel may use."""
    return _threads


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

    multiple: rows that a kernel likes to have together.
    """
    parts = min(_threads, -(-rows // multiple), work // MIN_WORK_PER_THREAD)
    workers = _get_workers() if parts > 1 else None
    if workers is None or not workers.busy.acquire(blocking=False):
        kernel(*args, 0, rows)
        return
    try:
        failed = workers.run(_fork_join.address_of(kernel, args), rows, multiple, args)
    finally:
        workers.busy.release()
    if failed:
        raise MemoryError(f"{kernel.__name__} could not get the memory for its scratch arrays")
