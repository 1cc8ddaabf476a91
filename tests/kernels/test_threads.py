"""Sharing of rows: each is computed once, whoever is awake, asleep, forked or failing."""

import subprocess
import sys
import time

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels.compile.jit import jit
from bnn_kernels.runtime import fork_join, threads
from bnn_kernels.runtime.recording import Recording


@jit
def count_rows(out, first, last):
    for row in range(first, last):
        out[row] += 1


@jit
def fail(out, first, last):
    if last > 0:
        raise ValueError("no memory")


@pytest.fixture(autouse=True)
def _always_share(monkeypatch):
    monkeypatch.setattr(threads, "MIN_WORK_PER_THREAD", 1)
    monkeypatch.setattr(threads, "MIN_WORK_TO_WAKE", 1)
    before = bk.get_num_threads()
    yield
    bk.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("multiple", [1, 8])
def test_every_row_is_computed_once(count, multiple):
    bk.set_num_threads(count)
    for rows in (1, 2, 7, 8, 9, 100, 1001):
        out = np.zeros(rows, np.int64)
        for _ in range(20):
            threads.run_rows(count_rows, rows, 1_000_000, out, multiple=multiple)
        assert (out == 20).all()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("grain", [1, 8])
def test_ranges_of_threads_are_all_rows(count, grain):
    for rows in (1, 2, 7, 8, 9, 100, 1001):
        begins = [fork_join._begin.py_func(rows, grain, count, thread) for thread in range(count + 1)]
        assert begins[0] == 0
        assert begins[-1] == rows
        sizes = np.diff(begins)
        assert (sizes >= 0).all()
        assert sizes.max() - sizes.min() < 2 * grain, "ranges are alike"
        assert all(begin % grain == 0 for begin in begins[:-1] if begin < rows)


def test_a_recording_is_played_while_another_thread_changes_how_many_there_are(monkeypatch):
    """The workers that play it are still those of before."""
    bk.set_num_threads(2)
    out = np.zeros(1001, np.int64)
    recording = Recording()
    with recording.running():
        threads.run_rows(count_rows, 1001, 1001, out)
    with monkeypatch.context() as patch:
        patch.setattr(threads, "_threads", 99)
        for _ in range(20):
            recording.play(threads.play_kernels)
    monkeypatch.undo()
    assert (out == 21).all()


def test_workers_sleep_and_wake():
    bk.set_num_threads(2)
    out = np.zeros(1000, np.int64)
    threads.run_rows(count_rows, 1000, 1_000_000, out)
    workers = threads._get_workers()
    end = time.monotonic() + 10
    while not workers.all_asleep and time.monotonic() < end:
        time.sleep(0.01)
    assert workers.all_asleep
    threads.run_rows(count_rows, 1000, 1_000_000, out)
    assert (out == 2).all()


def test_small_work_wakes_nobody(monkeypatch):
    monkeypatch.setattr(threads, "MIN_WORK_TO_WAKE", 1000)
    bk.set_num_threads(2)
    out = np.zeros(10, np.int64)
    threads.run_rows(count_rows, 10, 999, out)
    assert threads._get_workers().all_asleep and (out == 1).all()


def test_a_failing_kernel_raises_and_leaves_the_workers_free():
    bk.set_num_threads(2)
    with pytest.raises(MemoryError, match="fail"):
        threads.run_rows(fail, 10, 1_000_000, np.zeros(10, np.int64))
    out = np.zeros(10, np.int64)
    threads.run_rows(count_rows, 10, 1_000_000, out)
    assert (out == 1).all()


FORK = """
import os, warnings
import numpy as np, bnn_kernels as bk
warnings.simplefilter("ignore")
bk.set_num_threads(2)
x = bk.pack(np.ones((8, 64, 14, 14), np.float32))
conv = bk.PackedConv2d(np.ones((64, 64, 3, 3), np.float32))
expected = conv(x)
child = os.fork()
same = np.array_equal(conv(x), expected)
if child == 0:
    os._exit(0 if same else 1)
assert same and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
def test_a_forked_process_gets_workers_of_its_own():
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=120)


# What macOS and Windows do not have.
ABSENT = """
import os
for name in ("sched_getaffinity", "sched_setaffinity", "register_at_fork", "sysconf", "fork"):
    if hasattr(os, name):
        delattr(os, name)
import builtins, ctypes
real_open, real_dll = builtins.open, ctypes.PyDLL
def no_proc(path, *args, **more):
    if str(path).startswith("/proc"):
        raise FileNotFoundError(path)
    return real_open(path, *args, **more)
def no_dll(name, *args, **more):
    if name is None:
        raise TypeError("no library of the process itself")
    return real_dll(name, *args, **more)
builtins.open, ctypes.PyDLL = no_proc, no_dll
import numpy as np, bnn_kernels as bk
from bnn_kernels.runtime import arrays as memory
from bnn_kernels.runtime import fork_join, threads
from bnn_kernels.runtime.recording import Recording
assert memory.available_memory() is None
assert threads._current_cpu is None
threads.MIN_WORK_PER_THREAD = threads.MIN_WORK_TO_WAKE = 1
bk.set_num_threads(2)
conv = bk.PackedConv2d(np.ones((64, 64, 3, 3), np.float32))
for _ in range(5):
    assert (conv(np.ones((2, 64, 14, 14), np.float32)) == 576).all()
"""


def test_what_other_systems_do_not_have():
    subprocess.run([sys.executable, "-c", ABSENT], check=True, timeout=120)
