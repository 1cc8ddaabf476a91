"""Functions of sixteen floats, and the curves and the softmax made of them, against NumPy in float64 and PyTorch."""

import bnn_kernels as bk
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bnn_kernels.compile.jit import jit
from bnn_kernels.compile.simd import float32x16
from bnn_kernels.compile.simd.exponentials import exp_of_negative
from bnn_kernels.ops.activations import KINDS, ROW
from bnn_kernels.runtime.threads import sharing_everything

CURVES = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hard_sigmoid": F.hardsigmoid,
    "silu": F.silu,
    "hard_swish": F.hardswish,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "elu": F.elu,
    "softplus": F.softplus,
    "mish": F.mish,
}
SIZES = np.concatenate([np.linspace(-12, 12, 5001), np.geomspace(1e-30, 1e4, 2002), -np.geomspace(1e-30, 1e4, 2005)])
# Of 1 + erf and 1 + tanh float32 keeps only what is above 6e-8: so much of x is within rounding.
ROUNDED = {"gelu": 1.2e-7, "gelu_tanh": 2.4e-7}


def run(op, x, **attributes):
    return bk.PackedModel(x.shape[1:], [bk.StepSpec(op, ["x"], ["y"], attributes)])(x)


def curve(kind, x):
    return run("activation", x.reshape(1, -1), kind=kind)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_curves_are_those_of_float64_within_rounding(kind):
    x = np.append(SIZES, [0.0, -0.0, 0.625, -0.625, 1.0, 2**0.5, -(2**0.5), 4.0, -4.0]).astype(np.float32)
    expected = CURVES[kind](torch.from_numpy(x).double()).numpy()
    error = np.abs(curve(kind, x) - expected)
    assert (error <= 4e-7 * np.abs(expected) + ROUNDED.get(kind, 0) * np.abs(x) + 2e-34).all()


@pytest.mark.parametrize("kind", KINDS)
def test_curves_of_special_numbers_are_those_of_pytorch(kind):
    x = np.array([np.nan, 1e30, -1e30, -0.0, 0.0], np.float32)
    expected = CURVES[kind](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(curve(kind, x), expected, rtol=1e-6, atol=1e-7)  # -1e30 times 1.6e-38


@pytest.mark.parametrize("count", [1, 15, 16, 17, 48, ROW - 1, ROW, ROW + 1, 2 * ROW + 40])
def test_curves_are_the_same_for_every_count_and_number_of_threads(count):
    x = np.random.default_rng(count).standard_normal(3 * ROW).astype(np.float32)
    whole = curve("gelu", x)
    np.testing.assert_array_equal(curve("gelu", x[:count]), whole[:count])
    with sharing_everything():
        np.testing.assert_array_equal(curve("gelu", x[:count]), whole[:count])


@jit
def apply_exp(x, y):
    for i in range(0, len(x), 16):
        float32x16.store(y, np.uint64(i), exp_of_negative(float32x16.load(x, np.uint64(i))))


def test_exp_of_negative_numbers_has_full_precision_or_is_zero():
    x = -np.append(np.geomspace(1e-30, 3e38, 4009), [0, 87, 87.5, 103, np.inf, np.inf, np.nan]).astype(np.float32)
    y = np.empty_like(x)
    apply_exp(x, y)
    expected = np.where(x < -87, 0, np.exp(x.astype(np.float64)))
    np.testing.assert_allclose(y, expected, rtol=2e-7, atol=0)


@pytest.mark.parametrize("channels", [1, 2, 15, 16, 17, 49, 64, 130])
@pytest.mark.parametrize("log", [False, True])
def test_softmax_is_pytorch_s(channels, log):
    rng = np.random.default_rng(channels)
    x = (4 * rng.standard_normal((3, channels, 2, 5))).astype(np.float32)
    x[1, : channels // 2] -= 100  # a mask
    x[2, channels // 2 + 1 :] = -np.inf
    expected = (F.log_softmax if log else F.softmax)(torch.from_numpy(x).double(), 1).numpy()
    found = run("softmax", x, log=log)
    # Rounding of x - max x is 6e-8 of it, and so large a part of its exp.
    np.testing.assert_allclose(found, expected, rtol=5e-6, atol=1e-6 if log else 2e-38)
    if not log:
        assert not ((found > 0) & (found < np.finfo(np.float32).tiny)).any(), "a number without full precision"


def test_softmax_of_nan_and_of_nothing_but_minus_infinity_is_nan():
    x = np.zeros((3, 20), np.float32)
    x[0, 3] = np.nan
    x[1] = -np.inf
    np.testing.assert_array_equal(np.isnan(run("softmax", x, log=False)).all(1), [True, True, False])
