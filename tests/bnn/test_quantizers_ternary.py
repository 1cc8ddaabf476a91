"""Ternary quantizers, and BitNet's, against the formulas of their papers; at +-delta and beyond by hand."""

import numpy as np
import pytest
import torch
from gradients import differences, gradient

from bnn.layers import BitLinear
from bnn.quantizers import (
    AbsmaxActivation,
    AbsmeanTernary,
    FullPrecision,
    TernaryActivation,
    TernaryWeight,
    TrainedTernary,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def ttq(w, wp, wn, t=0.05):
    delta = t * np.abs(w).max()
    return np.where(w > delta, wp, np.where(w < -delta, -wn, 0.0))


@pytest.mark.parametrize("t", [0.05, 0.5])
def test_trained_ternary(t):
    w, g = rng().standard_normal((3, 4, 2)), rng(1).standard_normal((3, 4, 2))
    quantizer = TrainedTernary(t).double()
    with torch.no_grad():
        quantizer.wp.fill_(1.5)
        quantizer.wn.fill_(0.25)
    value = ttq(w, 1.5, 0.25, t)
    np.testing.assert_allclose(quantizer(torch.tensor(w)).detach(), value, rtol=1e-12)
    factor = np.where(value > 0, 1.5, np.where(value < 0, 0.25, 1.0))
    np.testing.assert_allclose(gradient(quantizer, w, g), g * factor, rtol=1e-12)
    np.testing.assert_allclose(quantizer.wp.grad, differences(lambda p: (g * ttq(w, p, 0.25, t)).sum(), 1.5), rtol=1e-8)
    np.testing.assert_allclose(quantizer.wn.grad, differences(lambda n: (g * ttq(w, 1.5, n, t)).sum(), 0.25), rtol=1e-8)


def test_trained_ternary_at_the_threshold():
    quantizer = TrainedTernary(t=0.5)  # delta = 1 exactly
    x = torch.tensor([[2.0, 1.0, -1.0, -0.0, 0.0, 1.0 + 1e-6, -1.0 - 1e-6]])
    assert quantizer(x).tolist() == [[1, 0, 0, 0, 0, 1, -1]]
    assert quantizer(torch.zeros(2, 3)).tolist() == [[0] * 3] * 2
    assert quantizer.bits == 2


def test_ternary_activation_follows_the_batches():
    quantizer = TernaryActivation(factor=0.5, momentum=0.25).double()
    expected = 0.5 * 0.7979
    for seed in range(3):
        x = (seed + 1) * rng(seed).standard_normal((4, 5))
        delta = 0.5 * np.abs(x).mean()
        value = np.where(x > delta, 1, np.where(x < -delta, -1, 0))
        np.testing.assert_array_equal(quantizer(torch.tensor(x)), value)
        expected += 0.25 * (delta - expected)
        assert float(quantizer.threshold) == pytest.approx(expected)
    before = float(quantizer.threshold)
    x = np.array([before, -before, 2 * before, -2 * before, 0.0])
    assert quantizer.eval()(torch.tensor(x)).tolist() == [0, 0, 1, -1, 0]
    assert float(quantizer.threshold) == before
    assert np.array_equal(gradient(quantizer, [-2, -1, -0.0, 0, 1, 1.5], 3.0), [0, 3, 3, 3, 3, 0])


def test_a_fixed_threshold_stays():
    quantizer = TernaryActivation(threshold=0.5)
    x = torch.tensor([-9.0, -0.5, -0.0, 0.5, 0.51, 9.0])
    for _ in range(2):
        assert quantizer(x).tolist() == [-1, 0, 0, 0, 1, 1]
    assert float(quantizer.threshold) == 0.5


def test_absmean_ternary():
    w, g = rng().standard_normal((3, 4)), rng(1).standard_normal((3, 4))
    scale = np.abs(w).mean()
    expected = scale * np.clip(np.round(w / scale), -1, 1)
    np.testing.assert_allclose(AbsmeanTernary()(torch.tensor(w)), expected, rtol=1e-12)
    np.testing.assert_array_equal(gradient(AbsmeanTernary(), w, g), g)
    # mean|W| = 1: half of it rounds to 0, as in every ternary quantizer here; more does not.
    assert AbsmeanTernary()(torch.tensor([[0.5, -0.5, 1.25, -1.75]])).tolist() == [[0, 0, 1, -1]]
    assert AbsmeanTernary()(torch.tensor([[0.75, -0.75, 1.25, -1.25]])).tolist() == [[1, -1, 1, -1]]
    assert AbsmeanTernary()(torch.zeros(2, 2)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("k", range(2, 9))
def test_absmax_activation(k):
    x, g = rng().standard_normal((2, 3, 5)), rng(1).standard_normal((2, 3, 5))
    n = 2 ** (k - 1) - 1
    for axis, axes in ((-1, (2,)), (1, (1, 2))):
        scale = np.abs(x).max(axes, keepdims=True) / n
        expected = scale * np.clip(np.round(x / scale), -n - 1, n)
        quantizer = AbsmaxActivation(k, channel_axis=axis)
        np.testing.assert_allclose(quantizer(torch.tensor(x)), expected, rtol=1e-12)
        np.testing.assert_array_equal(gradient(quantizer, x, g), g)
    # The largest value of every token is kept, and the error is at most half a step.
    value = AbsmaxActivation(k)(torch.tensor(x)).numpy()
    np.testing.assert_allclose(np.abs(value).max(2), np.abs(x).max(2))
    assert (np.abs(value - x) <= np.abs(x).max(2, keepdims=True) / n / 2 + 1e-12).all()


@pytest.mark.parametrize("shape", [(6, 10), (2, 3, 10)])
def test_bit_linear(shape):
    torch.manual_seed(0)
    layer = BitLinear(10, 4, bias=True).double()
    with torch.no_grad():
        layer.norm.weight.uniform_(0.5, 2)
    x = rng().standard_normal(shape)
    normal = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * layer.norm.weight.detach().numpy()
    step = np.abs(normal).max(-1, keepdims=True) / 127
    given = step * np.clip(np.round(normal / step), -128, 127)
    w = layer.linear.weight.detach().numpy()
    scale = np.abs(w).mean()
    expected = given @ (scale * np.clip(np.round(w / scale), -1, 1)).T + layer.linear.bias.detach().numpy()
    for training in (True, False):
        np.testing.assert_allclose(layer.train(training)(torch.tensor(x)).detach(), expected, rtol=1e-10)
    assert "bias" not in dict(BitLinear(10, 4).linear.named_parameters())
    assert isinstance(BitLinear(10, 4, input_quantizer=FullPrecision).linear.input_quantizer, FullPrecision)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TrainedTernary(t=1.0), "t must lie"),
        (lambda: TernaryWeight(factor=-0.1), "factor must lie"),
        (lambda: TernaryActivation(factor=0), "factor must lie"),
        (lambda: TernaryActivation(momentum=0), "momentum must lie"),
        (lambda: TernaryActivation(threshold=0), "threshold must be positive"),
        (lambda: AbsmaxActivation(bits=1), "bits must be one of 2"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
