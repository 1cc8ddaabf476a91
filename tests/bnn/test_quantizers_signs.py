"""Signs of activations against their papers: values by hand, surrogates as derivatives of their functions."""

import math

import numpy as np
import pytest
import torch
from gradients import differences, gradient, quadratic, ramp, signs
from torch import nn

from bnn.layers import OutputScale, QuantConv2d, QuantLinear
from bnn.quantizers import (
    AdaBinActivation,
    ApproxSign,
    BinaryConnect,
    EdeSign,
    FdaSign,
    LearnedScaleWeight,
    MagnitudeAwareSign,
    NoiseAdaptedSign,
    ProgressiveSign,
    RbnnSign,
    RecuWeight,
    RotatedWeight,
    RSign,
    StochasticSign,
    SwishSign,
)

EDGE = [-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0]
SIGNS = [-1, -1, -1, 1, 1, 1, 1, 1]


def name(value):
    return repr(value) if isinstance(value, nn.Module) else ""


def rng(seed=0):
    return np.random.default_rng(seed)


# -- signs with a surrogate gradient ----------------------------------------------------------------------------------


def swish(x, beta=5.0):
    s = 1 / (1 + math.exp(-beta * x))
    return 2 * s * (1 + beta * x * (1 - s)) - 1


def square_wave(x, n, w=0.1):
    return 4 / math.pi * sum(math.sin((2 * i + 1) * w * x) / (2 * i + 1) for i in range(n + 1))


SURROGATES = [
    (ApproxSign(), quadratic),
    (SwishSign(), swish),
    (SwishSign(beta=2.0), lambda x: swish(x, 2.0)),
    *[(EdeSign(t=t), lambda x, t=t: max(1 / t, 1) * math.tanh(t * x)) for t in (0.1, 1.0, 7.0)],
    *[(RbnnSign(t=t), lambda x, t=t: ramp(x, t)) for t in (0.01, 1.0, 7.0)],
    *[(FdaSign(n=n), lambda x, n=n: square_wave(x, n)) for n in (0, 9, 18)],
    (FdaSign(n=3, frequency=2.0), lambda x: square_wave(x, 3, 2.0)),
]


@pytest.mark.parametrize(("quantizer", "function"), SURROGATES, ids=name)
def test_a_surrogate_is_the_derivative_of_its_function(quantizer, function):
    assert quantizer(torch.tensor(EDGE)).tolist() == SIGNS
    x = np.array([-3.1, -1.3, -0.9, -0.37, -0.01, 0.02, 0.6, 0.99, 1.4, 2.7])  # no kinks
    if isinstance(quantizer, FdaSign):
        x = x[np.abs(x) < 1]
    expected = [(function(v + 1e-6) - function(v - 1e-6)) / 2e-6 for v in x]
    np.testing.assert_allclose(gradient(quantizer, x, 1.0), expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(gradient(quantizer, x, 3.0), 3 * np.array(expected), rtol=1e-6, atol=1e-8)


# Unit upstream gradient at EDGE, by hand.
@pytest.mark.parametrize(
    ("quantizer", "expected"),
    [
        (ApproxSign(), [0, 0, 1, 2, 2, 1, 0, 0]),
        (EdeSign(t=0.5), [2 * 0.5 * (1 - math.tanh(0.5 * v) ** 2) for v in EDGE]),
        (RbnnSign(t=2.0), [0, 0, 2 * math.sqrt(2) - 2, *[2 * math.sqrt(2)] * 2, 2 * math.sqrt(2) - 2, 0, 0]),
        (SwishSign(beta=2.0), [2 * (2 - 2 * v * math.tanh(v)) / (1 + math.cosh(2 * v)) for v in EDGE]),
        (FdaSign(n=0), [0, *[0.4 / math.pi * math.cos(0.1 * v) for v in EDGE[1:-1]], 0]),
        (FdaSign(n=1), [0, *[0.4 / math.pi * (math.cos(0.1 * v) + math.cos(0.3 * v)) for v in EDGE[1:-1]], 0]),
    ],
    ids=name,
)
def test_surrogates_at_the_edges(quantizer, expected):
    np.testing.assert_allclose(gradient(quantizer, EDGE, 1.0), expected, rtol=1e-12, atol=1e-15)


def test_the_gradient_of_ede_never_falls_below_one_at_zero():
    for t in (1e-3, 0.1, 1.0, 10.0):
        assert gradient(EdeSign(t=t), [0.0], 1.0)[0] == pytest.approx(max(1.0, t))


def test_fda_approaches_the_square_wave():
    """More terms bring the summed gradient over [-1, 1] closer to the jump of 2 of a sign."""
    x = np.linspace(-1, 1, 20001)
    jumps = [np.trapezoid(gradient(FdaSign(n=n, frequency=1.0), x, 1.0), x) for n in (0, 2, 8, 40)]
    errors = np.abs(np.array(jumps) - 2)
    assert errors[-1] < 0.05
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("whole_filters", [False, True])
def test_noise_adaptation_is_a_small_network_beside_the_sign(whole_filters):
    """Equation 14 with the sign in place of the series; every gradient by differences, the sign's by FdaSign's."""
    torch.manual_seed(0)
    facts = {"fan_in": 12} if whole_filters else {}
    quantizer = NoiseAdaptedSign(channels=4, n=2, frequency=1.0, alpha=0.7, reduction=2, **facts).double()
    x, g = rng().standard_normal((3, 4, 3)), rng(1).standard_normal((3, 4, 3))
    w1, w2 = quantizer.reduce.detach().numpy(), quantizer.expand.detach().numpy()
    assert (w1.shape, w2.shape) == (((12, 6), (6, 12)) if whole_filters else ((4, 2), (2, 4)))

    def noise(x, w1=w1, w2=w2):
        rows = x.reshape(3, 12) if whole_filters else np.moveaxis(x, 1, -1)
        made = np.maximum(rows @ w1, 0) @ w2
        return (made.reshape(x.shape) if whole_filters else np.moveaxis(made, -1, 1)) + 0.1 * np.sin(x)

    np.testing.assert_allclose(quantizer(torch.tensor(x)).detach(), signs(x) + 0.7 * noise(x), rtol=1e-12)
    of_sign = gradient(FdaSign(n=2, frequency=1.0), x, g)
    expected = of_sign + differences(lambda u: (0.7 * g * noise(u)).sum(), x)
    np.testing.assert_allclose(gradient(quantizer, x, g), expected, rtol=1e-6, atol=1e-8)
    changes = {quantizer.reduce: lambda w: noise(x, w1=w), quantizer.expand: lambda w: noise(x, w2=w)}
    for parameter, change in changes.items():
        by_hand = differences(lambda w, change=change: (0.7 * g * change(w)).sum(), parameter.detach().numpy())
        np.testing.assert_allclose(parameter.grad, by_hand, rtol=1e-6, atol=1e-8)
    quantizer.eval()
    assert np.array_equal(quantizer(torch.tensor(x)), signs(x))
    assert np.array_equal(gradient(quantizer, x, g), of_sign)


def test_noise_adaptation_fades_out():
    x = torch.tensor([EDGE])
    quantizer = NoiseAdaptedSign(channels=8, alpha=0.5)
    assert quantizer(x).unique().numel() > 2
    quantizer.alpha = 0.0
    assert quantizer(x)[0].tolist() == SIGNS


def test_layers_tell_noise_adaptation_what_a_vector_is():
    layer = QuantConv2d(128, 4, 3, weight_quantizer=NoiseAdaptedSign, input_quantizer=NoiseAdaptedSign)
    assert layer.input_quantizer.reduce.shape == (128, 2)  # channels, channels / 64
    assert layer.weight_quantizer.reduce.shape == (1152, 18)  # a filter, its weights / 64


def test_rsign_shifts_each_channel():
    quantizer = RSign(channels=3).double()
    shift = torch.tensor([0.5, 0.0, -0.25], dtype=torch.float64)
    with torch.no_grad():
        quantizer.shift.copy_(shift)
    x = rng().standard_normal((2, 3, 4))
    x[:, 0, 0] = 0.5  # the threshold itself is +1
    g = rng(1).standard_normal(x.shape)
    assert np.array_equal(quantizer(torch.tensor(x)).detach().numpy(), signs(x - shift.numpy()[:, None]))
    slope = np.maximum(2 - 2 * np.abs(x - shift.numpy()[:, None]), 0)
    np.testing.assert_allclose(gradient(quantizer, x, g), g * slope, rtol=1e-12)
    np.testing.assert_allclose(quantizer.shift.grad, -(g * slope).sum((0, 2)), rtol=1e-12)


def test_progressive_sign_is_a_ramp_then_a_sign():
    quantizer = ProgressiveSign()
    x = torch.tensor([-2.0, -0.5, 0.0, 0.25, 3.0])
    for progress, slope in ((0.0, 1.0), (0.1, 4.0), (0.5, 1024.0), (1.0, 4.0**10)):
        quantizer.progress = progress
        assert torch.equal(quantizer(x), (x * slope).clamp(-1, 1))
    assert quantizer(x).tolist() == [-1, -1, 0, 1, 1]
    assert quantizer.eval()(x).tolist() == [-1, -1, 1, 1, 1]
    assert gradient(quantizer.train(), EDGE, 2.0).tolist() == [2.0] * 8


@pytest.mark.parametrize("quantizer", [StochasticSign(), BinaryConnect(stochastic=True)], ids=repr)
def test_random_signs_have_the_right_probability(quantizer):
    torch.manual_seed(0)
    x = torch.tensor([-1.5, -1.0, -0.6, 0.0, 0.3, 1.0, 1.5])
    n = 40_000
    drawn = quantizer(x.expand(n, -1))
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    mean = x.clamp(-1, 1)
    spread = ((1 - mean**2) / n).sqrt()
    assert ((drawn.mean(0) - mean).abs() <= 5 * spread).all()
    assert torch.equal(quantizer.eval()(x), torch.where(x >= 0, 1.0, -1.0))
    inside = [1.0] * 8 if isinstance(quantizer, BinaryConnect) else [0, 1, 1, 1, 1, 1, 1, 0]
    assert gradient(quantizer.train(), EDGE, 1.0).tolist() == inside


def test_an_evaluation_with_latents_is_one_of_floats():
    quantizer = BinaryConnect(stochastic=True, evaluation="latents")
    w = torch.tensor([[-0.7, 0.0, 0.3]], requires_grad=True)
    assert set(quantizer(w).flatten().tolist()) <= {-1.0, 1.0}
    assert (quantizer.packable, quantizer.bits) == (True, 1)
    quantizer.eval()
    assert torch.equal(quantizer(w), w)
    assert (quantizer.packable, quantizer.bits) == (False, 32)
    with pytest.raises(TypeError, match="no bit planes"):
        quantizer.planes(w)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BinaryConnect(evaluation="mean"), "'signs' or 'latents'"),
        (lambda: SwishSign(beta=0), "beta must be positive"),
        (lambda: MagnitudeAwareSign("code"), "'paper' or 'released'"),
        (lambda: EdeSign(t=0), "t must be positive"),
        (lambda: FdaSign(n=-1), "n must be at least 0"),
        (lambda: FdaSign(frequency=4.0), "frequency"),
        (lambda: NoiseAdaptedSign(channels=0), "channels, fan_in and reduction must be"),
        (lambda: NoiseAdaptedSign(channels=1, alpha=-1), "alpha must be at least 0"),
        (lambda: ProgressiveSign(progress=1.5), "progress must lie"),
        (lambda: RecuWeight(channels=2, tau=0.5), "tau must lie"),
        (lambda: RecuWeight(channels=0), "channels must be"),
        (lambda: LearnedScaleWeight(channels=0), "channels must be"),
        (lambda: RotatedWeight(channels=2, fan_in=0), "fan_in must be"),
        (lambda: AdaBinActivation(form="code"), "'paper' or 'released'"),
        (lambda: OutputScale(3, case=5), "case must be"),
        (lambda: OutputScale(3, case=2), "needs the size of the map"),
        (lambda: QuantLinear(2, 2, weight_quantizer=RotatedWeight(2, 2)), "not an instance"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make()
