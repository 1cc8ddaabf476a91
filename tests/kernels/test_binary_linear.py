"""Binary and bit-serial linear layers: exact, at word edges and past 16-bit sums, with maps flattened as torch does."""

import bnn_kernels as bk
import numpy as np
import pytest
import torch
from bnn_kernels import reference


@pytest.mark.parametrize("features", [1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000])
@pytest.mark.parametrize("batch", [0, 1, 2, 5])
def test_signs_around_word_edges(features, batch):
    rng = np.random.default_rng(features)
    x, w = rng.standard_normal((batch, features)), rng.standard_normal((9, features))
    found = bk.PackedLinear(w)(bk.pack(x))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, reference.linear(reference.sign(x), reference.sign(w)))


@pytest.mark.parametrize("shape", [(50, 4, 4), (1, 3, 5), (64, 2, 2), (70, 1, 3)])
def test_a_map_is_flattened_channels_first(shape):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, *shape)).astype(np.float32)
    w = rng.standard_normal((11, int(np.prod(shape)))).astype(np.float32)
    signs = [torch.from_numpy(reference.sign(a)) for a in (x, w)]
    expected = torch.nn.functional.linear(signs[0].flatten(1), signs[1]).numpy()
    layer = bk.PackedLinear(w)
    np.testing.assert_array_equal(layer(bk.pack(x)), expected)
    np.testing.assert_array_equal(layer(x.reshape(3, -1)), expected)


@pytest.mark.parametrize("outputs", [1, 8, 15, 17, 64, 129, 300])
@pytest.mark.parametrize("count", [1, 3])
def test_few_inputs_are_shared_by_filters(outputs, count, monkeypatch):
    monkeypatch.setattr("bnn_kernels.runtime.threads.MIN_WORK_PER_THREAD", 1)
    monkeypatch.setattr("bnn_kernels.runtime.threads.MIN_WORK_TO_WAKE", 1)
    rng = np.random.default_rng(outputs)
    w = rng.standard_normal((outputs, 100))
    layer, plus_one = bk.PackedLinear(w), bk.Epilogue(outputs, shift=np.ones(outputs, np.float32))
    threshold = layer.with_threshold(np.zeros(outputs, np.int32), np.zeros(outputs, bool))
    before = bk.get_num_threads()
    bk.set_num_threads(count)
    try:
        for batch in (1, 2, 15, 16, 40):
            x = rng.standard_normal((batch, 100))
            dot = reference.linear(reference.sign(x), reference.sign(w))
            np.testing.assert_array_equal(layer(x), dot)
            np.testing.assert_array_equal(bk.unpack(threshold(x)), np.where(dot < 0, -1, 1))
            floats, _ = layer.finish(bk.pack(x), plus_one)
            np.testing.assert_array_equal(floats[:, 0, 0], dot + 1)
    finally:
        bk.set_num_threads(before)


@pytest.mark.parametrize("features", [32_767, 32_769, 65_537, 200_000])
def test_sums_past_16_bits(features):
    x = np.ones((2, features), np.float32)
    x[1] = -1
    found = bk.PackedLinear(np.ones((3, features), np.float32))(x)
    assert found.tolist() == [[features] * 3, [-features] * 3]


def test_many_bits_past_16_bits():
    levels = np.full((1, 5000), 255)
    weight = bk.PackedLinear.from_levels(np.full((2, 5000), -255), tuple(1 << p for p in range(8)), True)
    bits = bk.pack_levels(levels, tuple(1 << p for p in range(8)), False)
    assert weight(bits).tolist() == [[-255 * 255 * 5000] * 2]


def test_sums_past_32_bits_are_refused():
    eight = tuple(1 << p for p in range(8))
    weight = bk.PackedLinear.from_levels(np.full((1, 40_000), 255), eight, True)
    with pytest.raises(ValueError, match="overflow int32"):
        weight(bk.pack_levels(np.full((1, 40_000), 255), eight, False))


@pytest.mark.parametrize("flip", [False, True])
def test_thresholds_to_bits(flip):
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((4, 100)), rng.standard_normal((65, 100))
    t, flips = rng.integers(-10, 10, 65).astype(np.int32), np.full(65, flip)
    bits = bk.PackedLinear(w).with_threshold(t, flips)(x)
    dot = reference.linear(reference.sign(x), reference.sign(w))
    assert bits.shape == (4, 65)
    np.testing.assert_array_equal(bk.unpack(bits) < 0, reference.threshold(dot, t, flips))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: bk.PackedLinear(np.ones((4, 3)))(np.ones((1, 5))), ValueError, "5 features.* 3"),
        (lambda: bk.PackedLinear(np.ones((4, 3, 1))), ValueError, r"\(4, 3, 1\)"),
        (lambda: bk.PackedLinear(np.ones((4, 3), np.int8)), TypeError, "int8"),
        (lambda: bk.PackedLinear(np.ones((4, 3)))(np.array([[1, np.nan, 2]])), ValueError, "NaN"),
    ],
)
def test_bad_calls_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
