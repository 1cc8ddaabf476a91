"""Recorded calls: the same numbers as running the steps, for any input, number of images and threads."""

import gc

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels.compile.jit import jit
from bnn_kernels.model import executor
from bnn_kernels.runtime import threads
from bnn_kernels.runtime.recording import Recording, do, new_flag
from bnn_kernels.runtime.threads import play_kernels, run_rows
from bnn_kernels.steps.base import STEPS
from rich_plan import rich_inputs, rich_model


@jit
def add_to(x, parts, out, first, last):
    scale, offsets = parts
    for row in range(first, last):
        out[row] += x[row] * scale + offsets[0]


@jit
def fail(out, first, last):
    if last > 0:
        raise ValueError("no memory")


@jit
def mark(x, flag, first, last):
    for row in range(first, last):
        if x[row] < 0:
            flag[0] = 1


@pytest.fixture(params=[1, 2, 3])
def count(request, monkeypatch):
    monkeypatch.setattr(threads, "MIN_WORK_PER_THREAD", 1)
    monkeypatch.setattr(threads, "MIN_WORK_TO_WAKE", 1)
    before = bk.get_num_threads()
    bk.set_num_threads(request.param)
    yield request.param
    bk.set_num_threads(before)


def test_the_rich_model_has_every_kind_of_step():
    model = rich_model()
    assert {step.op for step in model.steps} == set(STEPS)


def test_checking_a_plan_changes_no_step():
    """`infer` may be asked of any inputs at any time."""
    for placed in rich_model()._program.placed:
        before = dict(vars(placed.step))
        made = placed.step.infer(placed.given)
        assert placed.step.infer(placed.given) == made
        assert all(vars(placed.step)[name] is value for name, value in before.items()), placed.step.op
        assert vars(placed.step).keys() == before.keys(), placed.step.op


def test_played_calls_give_what_the_steps_give(count):
    model, plain = rich_model(), rich_model()
    for images in (3, 3, 3, 1, 1, 1, 3, 7, 7, 7, 0, 0, 0, 1, 3, 3, 3):
        for seed in (images, 100):
            inputs = rich_inputs(images, seed)
            stepwise = plain.trace(*inputs, replace=lambda register, value: value)
            for found, expected in zip(model(*inputs), stepwise, strict=True):
                np.testing.assert_array_equal(found, expected)
    (workspace,) = model._executor._workspaces._waiting
    assert len(workspace.recorded) == 2


@pytest.mark.parametrize("most", [1, 2, 3, 50])
def test_many_images_are_taken_in_parts(most):
    model, whole = rich_model(), rich_model()
    assert 7 < whole._executor.most_images < 1 << 24
    model._executor.most_images = most
    for seed in range(4):
        for found, expected in zip(model(*rich_inputs(7, seed)), whole(*rich_inputs(7, seed)), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_registers_of_an_image_are_counted():
    """Two maps at a time, then the second one's signs beside it."""
    shift = {"channels": 70}, {"shift": np.zeros(70, np.float32)}
    signs = {"signed": True, "multipliers": [1]}
    thresholds = {"thresholds": np.zeros((1, 1), np.float32), "flip": np.zeros(1, bool)}
    steps = [
        bk.StepSpec("elementwise", ["x"], ["a"], *shift, [""]),
        bk.StepSpec("pack", ["a"], ["b"], signs, {**thresholds, "codes": np.array([1, 0], np.uint8)}, [""]),
        bk.StepSpec("unpack", ["b"], ["c"], {"scale": 1.0}, {}, [""]),
    ]
    model = bk.PackedModel((70, 5, 3), steps)
    assert model.specs["b"].nbytes == 5 * 3 * 2 * 8
    assert model._program.bytes_of_an_image() == 2 * 70 * 5 * 3 * 4


def test_inputs_may_be_of_other_dtypes_and_strides(count):
    model = rich_model()
    maps, vectors = rich_inputs(2)
    expected = model(maps, vectors)
    for _ in range(3):
        strided = np.asfortranarray(maps.astype(np.float64)), np.repeat(vectors, 2, axis=1)[:, ::2]
        for found, right in zip(model(*strided), expected, strict=True):
            np.testing.assert_array_equal(found, right)


def test_results_belong_to_the_caller():
    model = rich_model()
    results = [model(*rich_inputs(2, seed)) for seed in range(5)]
    again = rich_model()
    for seed, result in enumerate(results):
        for found, expected in zip(result, again(*rich_inputs(2, seed)), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_nan_is_refused_and_forgotten():
    model = rich_model()
    good = rich_inputs()
    expected = model(*good)
    bad = rich_inputs()
    bad[0][0, 0, 0, 0] = np.nan
    for _ in range(3):
        with pytest.raises(ValueError, match="NaN"):
            model(*bad)
        for found, right in zip(model(*good), expected, strict=True):
            np.testing.assert_array_equal(found, right)


def test_arguments_live_as_long_as_the_recording(count):
    x, out = np.arange(1000.0), np.zeros(1000)
    recording = Recording()
    with recording.running():
        run_rows(add_to, 1000, 1_000_000, x.copy(), (2.0, np.array([1.0, 5.0])), out)
        do(np.negative, out, out)
        run_rows(add_to, 1000, 1_000_000, x.copy(), (1.0, np.zeros(1)), out, multiple=8)
    gc.collect()
    np.testing.assert_array_equal(out, -x - 1)
    for _ in range(50):
        np.zeros(1000)  # would get memory that was freed
        out[:] = 0
        recording.play(play_kernels)
        np.testing.assert_array_equal(out, -x - 1)


def test_a_failing_kernel_raises_and_leaves_the_threads_free(count):
    recording = Recording()
    with pytest.raises((ValueError, MemoryError)), recording.running():
        run_rows(fail, 10, 1_000_000, np.zeros(10))
    with pytest.raises(MemoryError):
        recording.play(play_kernels)
    out = np.zeros(10)
    run_rows(add_to, 10, 1_000_000, np.ones(10), (1.0, np.zeros(1)), out)
    assert (out == 1).all()


def test_flags_are_raised_once_and_cleared():
    def complain():
        raise ValueError("negative")

    x = np.ones(5)
    recording = Recording()
    with recording.running():
        run_rows(mark, 5, 10, x, new_flag(complain))
        run_rows(mark, 5, 10, np.ones(5), new_flag(complain))
    recording.play(play_kernels)
    x[3] = -1
    with pytest.raises(ValueError, match="negative"):
        recording.play(play_kernels)
    x[3] = 1
    recording.play(play_kernels)


def test_only_the_recording_thread_is_recorded():
    import threading

    out = np.zeros(10)
    recording = Recording()
    with recording.running():
        other = threading.Thread(target=run_rows, args=(add_to, 10, 10, np.ones(10), (1.0, np.zeros(1)), out))
        other.start()
        other.join()
    recording.play(play_kernels)
    assert (out == 1).all()


def flatten_only(*outputs):
    steps = [
        bk.StepSpec("reshape", ["x"], ["y"], {"shape": [24]}),
        bk.StepSpec("reshape", ["y"], ["z"], {"shape": [24]}),
    ]
    return bk.PackedModel((2, 3, 4), steps, outputs=[(name, (24,)) for name in outputs])


@pytest.mark.parametrize("outputs", [("y",), ("y", "y"), ("y", "z"), ("z", "y", "y")])
@pytest.mark.parametrize("images", [1, 3, 0])
def test_what_a_call_returns_is_the_callers_alone(outputs, images):
    """Views of inputs, the same register twice and registers that share memory: fresh arrays in every call."""
    model = flatten_only(*outputs)
    x = np.random.default_rng(0).standard_normal((images, 2, 3, 4)).astype(np.float32)
    before, kept = x.copy(), []
    for _ in range(4):
        found = model(x)
        found = found if isinstance(found, tuple) else (found,)
        for y in found:
            np.testing.assert_array_equal(y, before.reshape(images, 24))
        kept.extend(found)
    kept.extend(np.atleast_1d(model.trace(x, replace=lambda name, value: value)) if len(outputs) == 1 else ())
    for i, y in enumerate(kept):
        assert not np.shares_memory(y, x)
        assert not any(np.shares_memory(y, other) for other in kept[:i])
        y[...] = i
    np.testing.assert_array_equal(x, before)


def test_large_outputs_that_share_memory():
    """Of the size that comes from a workspace: nothing of it goes back while a caller has it."""
    steps = [
        bk.StepSpec("elementwise", ["x"], ["a"], {"channels": 20_000, "low": 0.0}),
        bk.StepSpec("reshape", ["a"], ["b"], {"shape": [20_000]}),
    ]
    model = bk.PackedModel((20_000,), steps, outputs=[("a", (20_000,)), ("b", (20_000,)), ("a", (20_000,))])
    kept = []
    for number in range(1, 6):
        x = np.full((1 + number // 2, 20_000), number, np.float32)
        kept.extend((number, y) for y in model(x))
    assert all((y == number).all() for number, y in kept)


def large_model():
    """Maps of more than a workspace's smallest buffer: two convolutions that share it, and the first one's output."""
    conv = {"shape": [16, 16, 3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    numbers = np.random.default_rng(0)
    weights = [numbers.standard_normal((16, 16, 3, 3)).astype(np.float32) for _ in range(2)]
    steps = [
        bk.StepSpec("float_conv", [a], [b], {**conv, "pad_value": 0.0}, {"weight": weight})
        for a, b, weight in zip("xa", "ab", weights, strict=True)
    ]
    return bk.PackedModel((16, 40, 40), steps, outputs=[("a", (16, 40, 40)), ("b", (16, 40, 40))])


def channels_last(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def misplaced(x):
    """The same, channels last, at an address that is no multiple of four."""
    memory = np.empty(x.nbytes + 1, np.uint8)
    shape = (len(x), *x.shape[2:], x.shape[1])
    moved = memory[1:].view(np.float32).reshape(shape)
    moved[...] = x.transpose(0, 2, 3, 1)
    return moved.transpose(0, 3, 1, 2)


@pytest.mark.parametrize("first", [channels_last, np.copy], ids=["channels-last", "channels-first"])
def test_callers_memory_is_read_where_it_lies_and_nothing_else_is_written_there(count, first):
    """Inputs of any kind in turn: read in place or copied, with the outputs in memory of their own each time."""
    model, plain = large_model(), large_model()
    kept = []
    for turn, lay in enumerate(
        [first, first, channels_last, np.copy, misplaced, channels_last, np.copy, channels_last]
    ):
        x = np.random.default_rng(turn).standard_normal((2, 16, 40, 40)).astype(np.float32)
        given = lay(x)
        found = model(given)
        for y, expected in zip(found, plain.trace(x, replace=lambda name, value: value), strict=True):
            np.testing.assert_array_equal(y, expected)
            assert y.strides == given.strides or lay is misplaced
            kept.append((y, expected))
        np.testing.assert_array_equal(given, x)
    for i, (y, expected) in enumerate(kept):
        np.testing.assert_array_equal(y, expected)
        assert not any(np.shares_memory(y, other) for other, _ in kept[:i])


def test_a_recorded_call_copies_nothing_that_lies_as_it_should(monkeypatch):
    model = large_model()
    x = channels_last(np.ones((1, 16, 40, 40), np.float32))
    for _ in range(3):
        model(x)
    moved = []
    monkeypatch.setattr(executor, "fill_inputs", lambda *arguments: moved.append(arguments))
    (recorded,) = model._executor._workspaces._waiting[0].recorded.values()
    own = [recorded.registers[name].copy() for name, _ in model._program.outputs]
    found = model(2 * x)
    assert not moved
    for y, before, (name, _) in zip(found, own, model._program.outputs, strict=True):
        np.testing.assert_array_equal(y, 2 * before.transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(recorded.registers[name], before)  # nothing was written there


def test_memory_that_a_call_of_python_has_too_is_not_moved():
    x, y, z = (np.zeros(100, np.float32) for _ in range(3))
    recording = Recording()
    with recording.running():
        run_rows(add_to, 100, 1, x, (np.float32(2), np.ones(1, np.float32)), y)
        do(np.copyto, z, y)
    assert recording.movable(y) is None  # nor anything that no kernel has
    assert recording.movable(z) is None
    movable = recording.movable(x)
    elsewhere = np.arange(100, dtype=np.float32)
    for source in (x, elsewhere, None):
        movable.move(source)
        y[:] = 0
        recording.play(play_kernels)
        expected = 2 * (x if source is None else source) + 1
        np.testing.assert_array_equal(z, expected)
    half = recording.movable(x[50:])
    assert half is None  # where the kernel's array begins is not in it


def test_read_only_inputs_compile_nothing():
    from bnn_kernels.model.warm import compilations

    x = rich_inputs()
    model = rich_model()
    expected = [model(*x) for _ in range(3)]
    for array in x:
        array.flags.writeable = False
    fresh = rich_model()
    with compilations() as found:
        for wanted in expected:
            for ours, theirs in zip(fresh(*x), wanted, strict=True):
                np.testing.assert_array_equal(ours, theirs)
    assert found.count == 0
