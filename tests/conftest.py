"""What holds for all tests: costs of kernels are those built in, workers share the cores, some cases alone are quick.

`@pytest.mark.quick_cases(n)` on a parametrized test: n of its cases run in the quick suite, the others are slow. Those
are taken that bring the most values of parameters which no case before had, so few cases show most values.
"""

import gc
import hashlib
import os
from itertools import groupby

import pytest

os.environ["BNN_KERNELS_COSTS"] = "built-in"  # not those of a file that somebody measured here
# Threads of PyTorch that wait for each other in turns of the scheduler take five times as long as one thread.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


def quick_cases(names, count):
    """Return the names of the quick cases among these, `count` at most; the same whatever their order.

    >>> quick_cases(["f[a-1]", "f[a-2]", "f[b-1]", "f[b-2]"], 2) in ({"f[a-1]", "f[b-2]"}, {"f[a-2]", "f[b-1]"})
    True
    """
    # By hash: what stands in a row is alike.
    left = {name: _values(name) for name in sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())}
    chosen, seen = set(), set()
    while left and len(chosen) < count:
        best = max(left, key=lambda name: len(left[name] - seen))
        chosen.add(best)
        seen |= left.pop(best)
    return chosen


def _values(name):
    """Return {(which parameter, its value's name)} of a case."""
    return set(enumerate(name.partition("[")[2].removesuffix("]").split("-")))


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` takes its share
def pytest_collection_modifyitems(items):
    """Mark the cases that are not quick as slow."""
    marked = [item for item in items if item.get_closest_marker("quick_cases")]
    for (_, count), cases in groupby(
        marked, lambda item: (item.function, item.get_closest_marker("quick_cases").args[0])
    ):
        cases = list(cases)
        quick = quick_cases([case.name for case in cases], count)
        for case in cases:
            if case.name not in quick:
                case.add_marker(pytest.mark.slow)


def pytest_configure():
    """Collect cases without a garbage collector: it finds nothing in them, and takes a quarter of the time."""
    gc.disable()


def pytest_collection_finish():
    """Spare the garbage collector the thousands of cases and all that was imported: half a second each time."""
    gc.freeze()
    gc.enable()
