"""Memory of a running model: used again, never shared by two calls, never handed out."""

import threading
import tracemalloc

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels.runtime import workspace
from bnn_kernels.runtime.workspace import SMALLEST, Workspace, Workspaces, in_use
from rich_plan import rich_inputs, rich_model


def test_without_a_model_it_is_plain_memory():
    array = workspace.empty((3, SMALLEST), np.float32)
    assert array.shape == (3, SMALLEST)
    assert array.dtype == np.float32
    assert (workspace.zeros(5, np.uint64) == 0).all()


def test_memory_begins_at_cache_lines():
    """Also that of results, which a played call writes into the caller's own memory."""
    sizes = (SMALLEST // 4, SMALLEST, 3 * SMALLEST + 1)
    with in_use(Workspace()):
        arrays = [workspace.empty(size, np.float32) for size in (1, 5, *sizes)]
    arrays += [make(size, np.float32) for make in (workspace.empty, workspace.zeros) for size in sizes]
    steps = [bk.StepSpec("elementwise", ["x"], ["y"], {"channels": 3, "low": 0.0}, {})]
    model = bk.PackedModel((3, 64, 64), steps)
    x = np.ones((2, 64, 64, 3), np.float32).transpose(0, 3, 1, 2)
    results = [model(x) for _ in range(5)][2:]  # the first call is no recording yet, the second one makes it
    assert not any(np.shares_memory(results[0], y) for y in results[1:])
    assert {array.ctypes.data % 64 for array in [*arrays, *results]} == {0}


def test_a_dropped_register_serves_the_next_request():
    with in_use(space := Workspace()):
        first = workspace.empty((2, SMALLEST), np.uint8)
        space.keep([first])
        scratch = workspace.empty((2, SMALLEST), np.uint8)
        view = first.reshape(-1)[:10]
        space.keep([view])  # a second register in the same memory
        again = workspace.empty((2, SMALLEST), np.uint8)
        assert np.shares_memory(again, scratch), "scratch is free after its step"
        assert not np.shares_memory(again, first)
        space.keep([again])
        space.drop(first)
        assert not np.shares_memory(workspace.empty((2, SMALLEST), np.uint8), first), "the view still needs it"
        space.keep([])
        space.drop(view)
        found = [workspace.empty((2, SMALLEST), np.uint8) for _ in range(2)]
        assert any(np.shares_memory(array, first) for array in found)


def test_what_a_call_found_no_use_for_is_dropped():
    space = Workspace()
    for _ in range(2):
        with in_use(space):
            space.keep([])
            workspace.empty(8 * SMALLEST, np.uint8)
    assert space.nbytes == 8 * SMALLEST
    with in_use(space):
        workspace.empty(SMALLEST, np.uint8)
    assert space.nbytes == SMALLEST


def test_a_workspace_is_one_calls_at_a_time():
    spaces = Workspaces()
    first, second = spaces.take(), spaces.take()
    assert first is not second
    spaces.give_back(second)
    assert spaces.take() is second


def test_sizes_that_nearly_agree_share():
    space = Workspace()
    first = space.take(1_000_000)
    space.keep([])
    assert np.shares_memory(space.take(990_000), first)


def test_outputs_are_the_callers(monkeypatch):
    monkeypatch.setattr(workspace, "SMALLEST", 1)
    model = rich_model()
    first = model(*rich_inputs(4, seed=1))
    copies = [y.copy() for y in first]
    for seed in range(5):
        model(*rich_inputs(4, seed))
    for y, copy in zip(first, copies, strict=True):
        np.testing.assert_array_equal(y, copy)


def test_many_threads_call_one_model(monkeypatch):
    monkeypatch.setattr(workspace, "SMALLEST", 1)
    model = rich_model()
    inputs = [rich_inputs(n, n) for n in range(1, 7)]
    expected = [rich_model()(*x) for x in inputs]
    wrong = []

    def call(i):
        for _ in range(20):
            found = model(*inputs[i])
            if not all(np.array_equal(a, b) for a, b in zip(found, expected[i], strict=True)):
                wrong.append(i)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_failed_call_leaves_the_model_usable():
    model = rich_model()
    expected = model(*rich_inputs())
    broken = rich_inputs()
    broken[0][0, 0, 0, 0] = np.nan
    for _ in range(3):
        try:
            model(*broken)
        except ValueError as error:
            assert "NaN" in str(error)
    for found, right in zip(model(*rich_inputs()), expected, strict=True):
        np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("recorded", [True, False])
def test_later_calls_allocate_little(recorded):
    """What large maps take in the first calls is there later; a recorded call allocates its output alone."""
    conv = {"shape": [32, 4, 1, 1], "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    pool = {"kernel": [2, 2], "stride": [1, 1], "padding": [0, 0]}
    weight = np.ones((32, 4, 1, 1), np.float32)
    steps = [
        bk.StepSpec("float_conv", ["x"], ["a"], {**conv, "pad_value": 0.0}, {"weight": weight}),
        bk.StepSpec("max_pool", ["a"], ["b"], pool),
        bk.StepSpec("avg_pool", ["b"], ["c"], pool),
        bk.StepSpec("max_pool", ["c"], ["d"], {"kernel": [61, 61], "stride": [1, 1], "padding": [0, 0]}),
    ]
    for step in steps:
        step.sources = [""]
    model = bk.PackedModel((4, 64, 64), steps)
    x = np.ones((2, 4, 64, 64), np.float32)
    threads = bk.get_num_threads()
    bk.set_num_threads(1)  # others would load their machine code meanwhile
    for _ in range(4):
        model(x)
        if not recorded:  # only a call of the same size as the one before is
            model._executor._workspaces._waiting[0].last = -1
    tracemalloc.start()
    model(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    bk.set_num_threads(threads)
    assert peak < (4096 if recorded else 2 * 32 * 64 * 64 * 4 / 4), "the output, or less than a quarter of one map"
