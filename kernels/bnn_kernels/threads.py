"""Threads: how many a kernel may use, and how its rows are split among them.

Kernels are compiled without the GIL and take a range of rows, so plain Python threads run them. Every row is
computed by the same code whatever the split, so results do not depend on the number of threads, and several Python
threads may call the same object.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from threadpoolctl import threadpool_limits

# Handing rows to another Python thread and back costs 50-100 us, most of it waiting for the GIL; with less work than
# this for each (steps of a kernel's inner loop, about 200 us) it does not pay.
MIN_WORK_PER_THREAD = 400_000

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def _available() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_threads = _available()


def set_num_threads(n: int) -> None:
    """Let kernels, and the BLAS behind the float layers, use at most `n` threads (n >= 1)."""
    global _threads, _pool
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"the number of threads must be an integer of at least 1, got {n!r}")
    with _lock:
        _threads = n
        if _pool is not None:
            _pool.shutdown(wait=False)
            _pool = None
    threadpool_limits(n, user_api="blas")


def get_num_threads() -> int:
    """Return how many threads a kernel may use."""
    return _threads


def run_rows(kernel: Callable, rows: int, work: int, *args: object) -> None:
    """Call `kernel(*args, first, last)` over all rows, split among threads when `work` is worth it."""
    parts = min(_threads, rows, work // MIN_WORK_PER_THREAD)
    if parts <= 1:
        kernel(*args, 0, rows)
        return
    global _pool
    edges = [rows * i // parts for i in range(parts + 1)]
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(_threads - 1, thread_name_prefix="bnn_kernels")
        futures = [_pool.submit(kernel, *args, edges[i], edges[i + 1]) for i in range(parts - 1)]
    try:
        kernel(*args, edges[-2], edges[-1])
    finally:
        for future in futures:
            future.result()
