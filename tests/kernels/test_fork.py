"""Forks at random moments, while other threads compile, load and run: the child answers right and does not hang."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

# The parent's threads do all that takes locks; its main thread forks. A child that hangs is ended by an alarm.
PROGRAM = """
import os, random, signal, sys, threading, time, warnings
sys.path.insert(0, sys.argv[4])
import numpy as np
import bnn_kernels as bk
from bnn_kernels.runtime import threads
from bnn_kernels.compile.jit import jit
from rich_plan import rich_inputs, rich_model

warnings.simplefilter("ignore")
threads.MIN_WORK_PER_THREAD = threads.MIN_WORK_TO_WAKE = 1
forks, seed, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
inputs = rich_inputs()
bk.set_num_threads(2)
expected = rich_model()(*inputs)
rich_model().save(path)
shared = rich_model()
stop = False

def fresh_kernel(number):
    code = f"def fresh_{number}(x, first, last):\\n    for i in range(first, last):\\n        x[i] += {number}\\n"
    names = {"__name__": "fresh"}
    exec(code, names)
    return jit(names[f"fresh_{number}"])

def compile_something():
    number = 0
    while not stop:
        number += 1
        x = np.zeros(100)
        fresh_kernel(number)(x, 0, 100)
        assert (x == number).all()

def check(model):
    for y, wanted in zip(model(*inputs), expected):
        assert np.array_equal(y, wanted)

def first_calls():
    while not stop:
        check(bk.load(path))

def many_calls():
    while not stop:
        check(shared)

def change_threads():
    while not stop:
        bk.set_num_threads(random.choice([1, 2]))

def child():
    signal.alarm(60)
    check(shared)
    check(bk.load(path))
    x = np.zeros(10)
    fresh_kernel(0)(x, 0, 10)  # compiles
    bk.set_num_threads(2)
    for _ in range(3):
        check(shared)

workers = [threading.Thread(target=f) for f in (compile_something, first_calls, many_calls, change_threads)]
for worker in workers:
    worker.start()
rng = random.Random(seed)
bad = []
for number in range(forks):
    time.sleep(rng.random() * 0.05)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child()
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        bad.append((number, status))
stop = True
for worker in workers:
    worker.join()
print(bad)
sys.exit(bool(bad))
"""


def fork_often(tmp_path, forks, seed, limit):
    environment = {**os.environ, "BNN_KERNELS_CACHE": str(tmp_path / "cache")} if seed else {**os.environ}
    arguments = [str(forks), str(seed), str(tmp_path / "model.safetensors"), str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=limit, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_forks_at_random_moments(tmp_path):
    fork_often(tmp_path, 2, 0, 120)


@pytest.mark.slow
def test_many_forks_at_random_moments(tmp_path):
    fork_often(tmp_path, 400, 1, 1200)


# The child is made while another thread is in the middle of its first call, which compiles all kernels.
FIRST_CALL = """
import os, signal, sys, threading, time
sys.path.insert(0, sys.argv[1])
from rich_plan import rich_inputs, rich_model
import numba.core.event as events
begun = threading.Event()
class Listener(events.Listener):
    def on_start(self, event): begun.set()
    def on_end(self, event): pass
events.register("numba:compile", Listener())
model = rich_model()
results = []
thread = threading.Thread(target=lambda: results.append(model(*rich_inputs())))
thread.start()
assert begun.wait(60)
time.sleep(float(sys.argv[2]))
child = os.fork()
if child == 0:
    signal.alarm(120)
    try:
        y = rich_model()(*rich_inputs())[0]
        os.write(1, y.tobytes().hex().encode())
    finally:
        os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
thread.join()
assert len(results) == 1
print("", results[0][0].tobytes().hex())
"""


def fork_in_first_call(tmp_path, wait):
    environment = {**os.environ, "BNN_KERNELS_CACHE": str(tmp_path / f"cache{wait}")}
    arguments = [sys.executable, "-c", FIRST_CALL, str(Path(__file__).parent), str(wait)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    ours, theirs = done.stdout.split()
    assert ours == theirs


@pytest.mark.slow
def test_a_fork_in_a_first_call(tmp_path):
    for wait in (0, 0.3, 1, 3):
        fork_in_first_call(tmp_path, wait)


COMPILE = """
import os, signal, sys, threading, time
import numpy as np
from bnn_kernels.runtime import fork
from bnn_kernels.compile.jit import jit
if sys.argv[1] == "late":
    fork.MOST_SECONDS = 0.2
inside, leave = threading.Event(), threading.Event()
from numba.core.compiler_lock import global_compiler_lock
def compiles():
    with global_compiler_lock:
        inside.set()
        leave.wait(1.0 if sys.argv[1] == "soon" else 30)
thread = threading.Thread(target=compiles)
thread.start()
inside.wait()
def twice(x):
    return 2 * x
child = os.fork()
if child == 0:
    signal.alarm(20)
    code = 9
    try:
        code = jit(twice)(4)
    except RuntimeError as error:
        code = 3 if "forked while another thread compiled" in str(error) else 4
    finally:
        os._exit(code)
leave.set()
thread.join()
assert jit(twice)(4) == 8  # the parent goes on as before
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(("moment", "status"), [("soon", 8), ("late", 3)])
def test_a_compiler_that_is_busy(moment, status, tmp_path):
    """A fork waits for it; where that takes too long, the child says so instead of hanging."""
    environment = {**os.environ, "BNN_KERNELS_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, moment], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == status, done.stderr


LAZY = """
import os, signal, sys, threading
from bnn_kernels.runtime.lazy import Lazy
inside, leave = threading.Event(), threading.Event()
def make():
    if threading.current_thread() is not threading.main_thread():
        inside.set()
        leave.wait()
    return 5
lazy = Lazy(make)
thread = threading.Thread(target=lazy)
thread.start()
inside.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)
    os._exit(lazy())
leave.set()
thread.join()
assert lazy() == 5
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_what_another_thread_was_making():
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, timeout=60)
    assert done.returncode == 5, done.stderr
