"""The references themselves, against PyTorch in float64 and tables made by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bnn_kernels import reference


def levels(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-3, 4, shape)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups", "pad_value"),
    [(1, 0, 1, 1, 0), (2, 1, 1, 1, 0), ((1, 2), (2, 1), (2, 1), 2, 0), (1, (1, 2), 1, 4, 1), (2, 2, 2, 1, -1)],
)
def test_conv2d_against_torch(stride, padding, dilation, groups, pad_value):
    rng = np.random.default_rng(0)
    x, w = levels(rng, 2, 4, 9, 8), levels(rng, 8, 4 // groups, 3, 2)
    py, px = (padding, padding) if isinstance(padding, int) else padding
    padded = F.pad(torch.from_numpy(x).double(), (px, px, py, py), value=pad_value)
    weight = torch.from_numpy(w).double()
    expected = F.conv2d(padded, weight, stride=stride, dilation=dilation, groups=groups)
    found = reference.conv2d(x, w, stride, padding, dilation, groups, pad_value)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected.numpy())


def test_linear_flattens_channels_first():
    x = np.arange(12).reshape(1, 3, 2, 2)
    weight = np.eye(12, dtype=np.int64)
    np.testing.assert_array_equal(reference.linear(x, weight)[0], np.arange(12))


def test_sign_and_bits_of_zeros():
    x = np.array([-1.0, -0.0, 0.0, 1.0], np.float32)
    assert reference.sign(x).tolist() == [-1, 1, 1, 1]
    assert reference.pack_bits(x).tolist() == [True, False, False, False]


def test_pack_words_places_bits():
    bits = np.zeros((1, 66, 1, 1), bool)
    bits[0, [0, 63, 65]] = True
    assert reference.pack_words(bits).reshape(-1).tolist() == [1 | 1 << 63, 2]


def test_threshold_table():
    dot = np.array([[-1, 0, 1, 5]]).reshape(4, 1)
    for flip, expected in ((False, [True, False, False, False]), (True, [False, True, True, True])):
        assert reference.threshold(dot, np.array([0]), np.array([flip]))[:, 0].tolist() == expected
    t = np.array([[0], [2]])
    assert reference.thresholds(dot, t, np.array([False]))[:, 0].tolist() == [0, 1, 1, 2]
    assert reference.thresholds(dot, t, np.array([True]))[:, 0].tolist() == [2, 1, 1, 0]


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), ((2, 3), (1, 2), (0, 1))])
def test_pools_against_torch(kernel, stride, padding):
    x = np.random.default_rng(1).standard_normal((2, 3, 7, 8))
    given = torch.from_numpy(x)
    np.testing.assert_array_equal(
        reference.max_pool2d(x, kernel, stride, padding), F.max_pool2d(given, kernel, stride, padding).numpy()
    )
    np.testing.assert_allclose(
        reference.avg_pool2d(x, kernel, stride, padding), F.avg_pool2d(given, kernel, stride, padding).numpy()
    )


def test_input_scale_of_constant_input():
    k = reference.input_scale(np.full((1, 4, 5, 5), -2.0), 3, padding=1)
    assert k.shape == (1, 1, 5, 5)
    assert k[0, 0, 2, 2] == pytest.approx(2)
    assert k[0, 0, 0, 0] == pytest.approx(2 * 4 / 9)  # four of nine taps lie inside
