"""Copies of models, layers and bits: pickled, copied, in other processes; they answer the same and are independent."""

import copy
import multiprocessing
import pickle

import bnn_kernels as bk
import numpy as np
import pytest
from rich_plan import rich_inputs, rich_model

WAYS = {"pickle": lambda value: pickle.loads(pickle.dumps(value)), "deepcopy": copy.deepcopy, "copy": copy.copy}


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


def same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("calls", range(4))
def test_models(way, calls):
    model = rich_model()
    expected = [rich_model()(*rich_inputs(seed=seed)) for seed in range(4)]
    for seed in range(calls):
        same(model(*rich_inputs(seed=seed)), expected[seed])
    twin = way(model)
    for seed in range(4):
        same(twin(*rich_inputs(seed=seed)), expected[seed])
        same(model(*rich_inputs(seed=seed)), expected[seed])
    assert (twin.info, twin.versions, twin.outputs) == (model.info, model.versions, model.outputs)
    assert twin.input_shapes == model.input_shapes
    assert twin.summary() == model.summary()


def test_a_loaded_model(way, tmp_path):
    path = tmp_path / "model.safetensors"
    rich_model().save(path)
    model = bk.load(path)
    same(way(model)(*rich_inputs()), model(*rich_inputs()))
    way(model).save(tmp_path / "again.safetensors")
    same(bk.load(tmp_path / "again.safetensors")(*rich_inputs()), model(*rich_inputs()))


@pytest.mark.parametrize("name", ["pickle", "deepcopy"])
def test_a_copy_of_a_model_keeps_its_own_tensors(name):
    model = rich_model()
    expected = model(*rich_inputs())
    twin = WAYS[name](model)
    for step in model.steps:
        for tensor in step.tensors.values():
            tensor[...] = 0
    same(twin(*rich_inputs()), expected)


def layers():
    rng = np.random.default_rng(0)
    t, flip = rng.integers(-9, 9, 16).astype(np.int32), rng.random(16) < 0.5
    maps, sequences, vectors = (rng.standard_normal(s) for s in ((2, 8, 6, 6), (2, 8, 9), (2, 40)))
    conv = bk.PackedConv2d(rng.standard_normal((16, 4, 3, 3)), padding=1, groups=2)
    sequence = bk.PackedConv1d(rng.standard_normal((16, 8, 3)))
    linear = bk.PackedLinear(rng.standard_normal((16, 40)))
    kinds = {"conv": (conv, maps), "sequence": (sequence, sequences), "linear": (linear, vectors)}
    kinds |= {f"{name}_signs": (layer.with_threshold(t, flip), x) for name, (layer, x) in kinds.items()}
    ternary = bk.PackedConv2d.from_levels(rng.integers(-1, 2, (40, 8, 3, 3)), (1, -1), False)
    return kinds | {"ternary": (ternary, maps)}


@pytest.mark.parametrize("name", layers())
@pytest.mark.parametrize("calls", range(2))
def test_layers(name, calls, way):
    layer, x = layers()[name]
    expected = layers()[name][0](x)
    for _ in range(calls):
        layer(x)
    for found in (way(layer)(x), layer(x)):
        if isinstance(expected, bk.BitTensor):
            found, wanted = bk.unpack(found), bk.unpack(expected)
        else:
            wanted = expected
        np.testing.assert_array_equal(found, wanted)
    if hasattr(layer, "nbytes"):
        assert way(layer).nbytes == layer.nbytes
    assert "object at" in repr(layer) or repr(way(layer)) == repr(layer)


def test_the_copys_weights_are_aligned():
    conv = pickle.loads(pickle.dumps(bk.PackedConv2d(np.ones((16, 64, 3, 3)))))
    assert conv.weights.words().ctypes.data % 64 == 0


def test_bits(way):
    bits = bk.pack_levels(np.arange(12).reshape(2, 6) % 4, (1, 2), False)
    twin = way(bits)
    np.testing.assert_array_equal(bk.unpack(twin), bk.unpack(bits))
    assert (twin.shape, twin.signed, twin.multipliers) == (bits.shape, bits.signed, bits.multipliers)


def test_thresholds_and_epilogues(way):
    rng = np.random.default_rng(0)
    t, flip = np.sort(rng.integers(-9, 9, (3, 5)), axis=0).astype(np.int32), rng.random(5) < 0.5
    thresholds = bk.Thresholds(t, flip, np.arange(4, dtype=np.uint8), False, (1, 2))
    dots = rng.integers(-12, 12, (2, 3, 3, 5)).astype(np.int32)
    np.testing.assert_array_equal(bk.unpack(way(thresholds)(dots)), bk.unpack(thresholds(dots)))
    epilogue = bk.Epilogue(5, scale=rng.random(5).astype(np.float32), bounds=np.zeros(5, np.float32), flip=flip)
    for found, expected in zip(way(epilogue)(dots), epilogue(dots), strict=True):
        if isinstance(found, bk.BitTensor):
            found, expected = found.words, expected.words
        np.testing.assert_array_equal(found, expected)


def answer(model):
    return model(*rich_inputs())


def test_a_model_goes_to_spawned_processes():
    model = rich_model()
    expected = [model(*rich_inputs()) for _ in range(3)][-1]  # recorded
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        same(pool.apply(answer, (model,)), expected)


@pytest.mark.parametrize("channels", [2, 3, 7, 8, 9, 16, 21, 70])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (9, 15), (16, 17)])
def test_maps_come_in_and_out_in_either_order(channels, size):
    """Channels first or last in memory, the numbers are the same, and lie as they came."""
    rng = np.random.default_rng(channels)
    scale = rng.standard_normal(channels).astype(np.float32)
    step = bk.StepSpec("elementwise", ["x"], ["y"], {"channels": channels}, {"scale": scale})
    model = bk.PackedModel((channels, *size), [step])
    x = rng.standard_normal((3, channels, *size)).astype(np.float32)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    expected = x * scale[:, None, None]
    for _ in range(3):  # at once, recorded, played back
        first = model(x)
        np.testing.assert_array_equal(first, expected)
        assert first.flags.c_contiguous
        other = model(last)
        np.testing.assert_array_equal(other, expected)
        assert other.transpose(0, 2, 3, 1).flags.c_contiguous
