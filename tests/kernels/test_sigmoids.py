"""The logistic function and tanh of vectors against NumPy in float64: every size of numbers, infinities and NaN."""

import numpy as np
import pytest
from bnn_kernels.compile.jit import jit
from bnn_kernels.compile.simd import float32x16
from bnn_kernels.compile.simd.sigmoids import sigmoid, tanh


@jit
def apply_sigmoid(x, y):
    for i in range(0, len(x), 16):
        float32x16.store(y, np.uint64(i), sigmoid(float32x16.load(x, np.uint64(i))))


@jit
def apply_tanh(x, y):
    for i in range(0, len(x), 16):
        float32x16.store(y, np.uint64(i), tanh(float32x16.load(x, np.uint64(i))))


def logistic(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


SIZES = np.concatenate([np.linspace(-12, 12, 5001), np.geomspace(1e-38, 3e38, 2002), -np.geomspace(1e-38, 3e38, 2005)])


@pytest.mark.parametrize(("kernel", "function"), [(apply_sigmoid, logistic), (apply_tanh, np.tanh)])
def test_functions_are_numpy_s_within_rounding(kernel, function):
    x = np.append(SIZES, [np.inf, -np.inf, 0.0, -0.0, 0.625, -0.625]).astype(np.float32)
    x = np.pad(x, (0, -len(x) % 16))
    y = np.empty_like(x)
    kernel(x, y)
    expected = function(x.astype(np.float64))
    np.testing.assert_allclose(y, expected, rtol=4e-7, atol=2e-38)


@pytest.mark.parametrize("kernel", [apply_sigmoid, apply_tanh])
def test_nan_stays_nan(kernel):
    x = np.zeros(16, np.float32)
    x[3] = np.nan
    y = np.empty_like(x)
    kernel(x, y)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))
