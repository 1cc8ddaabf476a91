"""Binary weights, and scales of their outputs, against the formulas of their papers."""

import copy
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gradients import differences, gradient, quadratic, ramp, signs
from torch import nn

from bnn.layers import OutputScale, QuantConv2d, QuantLinear
from bnn.quantizers import (
    AdaBinActivation,
    AdaBinWeight,
    BinaryConnect,
    LearnedScaleWeight,
    LibraWeight,
    MagnitudeAwareSign,
    RecuSign,
    RecuWeight,
    RotatedWeight,
    XnorWeight,
)
from bnn.training import Classifier


def rng(seed=0):
    return np.random.default_rng(seed)


def weight(seed=0, shape=(3, 2, 2, 2)):
    w = 0.7 * rng(seed).standard_normal(shape)
    return w, rng(seed + 1).standard_normal(shape)


def flat(w):
    return np.asarray(w).reshape(len(w), -1)


def by_filter(values, w):
    return np.asarray(values).reshape(-1, *[1] * (np.ndim(w) - 1))


def test_magnitude_aware_sign():
    w, g = weight()
    w[0, 0, 0] = [1.0, -1.0]
    alpha = by_filter(np.abs(flat(w)).mean(1), w)
    np.testing.assert_allclose(MagnitudeAwareSign()(torch.tensor(w)), alpha * signs(w), rtol=1e-12)
    np.testing.assert_allclose(gradient(MagnitudeAwareSign(), w, g), g * alpha * (np.abs(w) <= 1), rtol=1e-12)
    np.testing.assert_allclose(gradient(MagnitudeAwareSign("released"), w, g), g * (np.abs(w) <= 1), rtol=1e-12)


def test_learned_scale_weight():
    w, g = weight()
    quantizer = LearnedScaleWeight(channels=3).double()
    alpha = np.array([0.5, -2.0, 3.0])
    with torch.no_grad():
        quantizer.alpha.copy_(torch.tensor(alpha))
    np.testing.assert_allclose(quantizer(torch.tensor(w)).detach(), by_filter(alpha, w) * signs(w))
    np.testing.assert_allclose(gradient(quantizer, w, g), g * by_filter(alpha, w) * (np.abs(w) <= 1))
    np.testing.assert_allclose(quantizer.alpha.grad, flat(g * signs(w)).sum(1), rtol=1e-12)


def test_centering_is_a_step_before_xnor():
    w, g = weight()
    shifted = w - w.mean(1, keepdims=True)
    for form in ("exact", "printed", "released"):
        np.testing.assert_allclose(
            XnorWeight(form, center=True)(torch.tensor(w)), XnorWeight(form)(torch.tensor(shifted)), rtol=1e-12
        )
        inner = gradient(XnorWeight(form), shifted, g)
        expected = inner - inner.mean(1, keepdims=True)  # the subtraction is its own adjoint
        np.testing.assert_allclose(gradient(XnorWeight(form, center=True), w, g), expected, rtol=1e-10, atol=1e-14)
    with pytest.raises(ValueError, match="one input channel"):
        XnorWeight(center=True)(torch.zeros(3, 1, 3, 3))


def standardized(w):
    rows = flat(w)
    return ((rows - rows.mean(1, keepdims=True)) / rows.std(1, ddof=1, keepdims=True)).reshape(np.shape(w))


@pytest.mark.parametrize("t", [0.1, 3.0])
def test_libra_weight(t):
    w, g = weight()
    v = standardized(w)
    shift = by_filter(np.round(np.log2(np.abs(flat(v)).mean(1))), w)
    value = LibraWeight(t)(torch.tensor(w)).numpy()
    np.testing.assert_array_equal(value, 2.0**shift * signs(v))
    mantissa, _ = np.frexp(np.abs(value))
    assert (mantissa == 0.5).all()  # a power of two
    expected = differences(lambda u: (g * 2.0**shift * max(1 / t, 1) * np.tanh(t * standardized(u))).sum(), w)
    np.testing.assert_allclose(gradient(LibraWeight(t), w, g), expected, rtol=1e-6, atol=1e-8)


def test_filters_of_equal_weights_are_no_nan():
    for quantizer in (LibraWeight(), AdaBinWeight(), RecuWeight(channels=2)):
        x = torch.full((2, 3), 0.5, requires_grad=True)
        quantizer(x).sum().backward()
        assert x.grad.isfinite().all()
        assert quantizer(torch.ones(2, 1)).isfinite().all()


@pytest.mark.parametrize("t", [0.1, 3.0])
def test_adabin_weight(t):
    w, g = weight()
    k = max(1 / t, 1)

    def beta(u):
        return by_filter(flat(u).mean(1), u)

    def alpha(u):
        return by_filter(flat(u).std(1), u)

    def v(u):
        return (u - beta(u)) / alpha(u)

    np.testing.assert_allclose(AdaBinWeight(t)(torch.tensor(w)), alpha(w) * signs(v(w)) + beta(w), rtol=1e-12)
    bits = signs(v(w))
    expected = differences(lambda u: (g * (alpha(u) * bits + alpha(w) * k * np.tanh(t * v(u)) + beta(u))).sum(), w)
    np.testing.assert_allclose(gradient(AdaBinWeight(t), w, g), expected, rtol=1e-6, atol=1e-8)
    # The two values lie a standard deviation from the mean: first and second moment are those of the filter.
    planes = AdaBinWeight(t).planes(torch.tensor(w))
    np.testing.assert_allclose(planes.offset, flat(w).mean(1), rtol=1e-12)
    np.testing.assert_allclose(planes.terms[0].scale, flat(w).std(1), rtol=1e-12)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_adabin_activation(form):
    quantizer = AdaBinActivation(form).double()
    a, b = 1.7, -0.3
    with torch.no_grad():
        quantizer.alpha.fill_(a)
        quantizer.beta.fill_(b)
    x = rng(3).uniform(-3, 3, (4, 5))
    g = rng(4).standard_normal(x.shape)
    bits = signs((x - b) / a)
    offset = b if form == "paper" else a * b
    np.testing.assert_allclose(quantizer(torch.tensor(x)).detach(), a * bits + offset, rtol=1e-12)
    smooth = np.vectorize(quadratic)

    def cost(x, a2, b2):
        # sign in the product stays what it is, sign as a function of its argument has the surrogate's slope
        shift = b2 if form == "paper" else a2 * b2
        return (g * (a2 * bits + a * smooth((x - b2) / a2) + shift)).sum()

    np.testing.assert_allclose(gradient(quantizer, x, g), differences(lambda u: cost(u, a, b), x), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(quantizer.alpha.grad, differences(lambda u: cost(x, u, b), a), rtol=1e-6)
    np.testing.assert_allclose(quantizer.beta.grad, differences(lambda u: cost(x, a, u), b), rtol=1e-6)


@pytest.mark.parametrize("tau", [0.6, 0.85, 0.99])
def test_recu_weight(tau):
    w, g = weight()
    w[0, 0, 0, 0] = 5.0  # far in the tail
    quantizer = RecuWeight(channels=3, tau=tau).double()
    alpha = np.array([0.5, 2.0, 1.5])
    with torch.no_grad():
        quantizer.alpha.copy_(torch.tensor(alpha))

    def u(w):
        rows = flat(w)
        spread = np.sqrt(rows.var(1, ddof=1, keepdims=True) + 1e-5)
        return ((rows - rows.mean(1, keepdims=True)) / spread * 2 * math.sqrt(2)).reshape(w.shape)

    bound = -np.abs(u(w)).mean() * math.log(2 - 2 * tau)
    np.testing.assert_allclose(quantizer(torch.tensor(w)).detach(), by_filter(alpha, w) * signs(u(w)), rtol=1e-12)
    expected = differences(lambda p: (g * by_filter(alpha, w) * np.clip(u(p), -bound, bound)).sum(), w)
    np.testing.assert_allclose(gradient(quantizer, w, g), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(quantizer.alpha.grad, flat(g * signs(u(w))).sum(1), rtol=1e-12)


def test_recu_bound_is_the_quantile_of_a_laplace_distribution():
    sample = np.abs(rng().laplace(size=200_000))
    for tau in (0.85, 0.9, 0.99):
        bound = -sample.mean() * math.log(2 - 2 * tau)
        share = (sample <= bound).mean()  # of |w|; a quantile tau of w leaves 1 - tau beyond on each side
        assert share == pytest.approx(2 * tau - 1, abs=0.005)


def test_recu_sign_scales_the_gradient_by_the_spread_of_a_sample():
    x, g = 3 * rng().standard_normal((2, 4, 3)), rng(1).standard_normal((2, 4, 3))

    def scaled(u):
        return u / np.sqrt(u.reshape(2, -1).var(1, ddof=1) + 1e-5)[:, None, None]

    assert np.array_equal(RecuSign()(torch.tensor(x)).numpy(), signs(x))
    expected = differences(lambda u: (g * np.vectorize(quadratic)(scaled(u))).sum(), x)
    np.testing.assert_allclose(gradient(RecuSign(), x, g), expected, rtol=1e-6, atol=1e-7)
    slope = np.maximum(2 - 2 * np.abs(x), 0)
    np.testing.assert_allclose(gradient(RecuSign().eval(), x, g), g * slope)


# -- rotation ---------------------------------------------------------------------------------------------------------


def rotated(quantizer, w):
    a, b = quantizer.rotation1.numpy(), quantizer.rotation2.numpy()
    v = standardized(w)
    return np.einsum("ji,njk,kl->nil", a, v.reshape(len(w), len(a), len(b)), b).reshape(w.shape)


def test_rotated_weight():
    torch.manual_seed(0)
    w, g = weight(shape=(4, 3, 2, 2))
    quantizer = RotatedWeight(channels=4, fan_in=12, t=0.5).double()
    quantizer(torch.tensor(w))  # the first training forward turns the rotations and sets alpha
    np.testing.assert_allclose(quantizer.alpha.detach(), np.abs(flat(w)).mean(1), rtol=1e-12)
    assert (len(quantizer.rotation1), len(quantizer.rotation2)) == (3, 4)
    turned, theta, alpha = rotated(quantizer, w), quantizer.theta.detach().numpy(), quantizer.alpha.detach().numpy()

    def mixed(u, angle):
        return standardized(u) + by_filter(np.abs(np.sin(angle)), w) * (turned - standardized(u))

    value = by_filter(alpha, w) * signs(mixed(w, theta))
    np.testing.assert_allclose(quantizer(torch.tensor(w)).detach(), value, rtol=1e-12)
    smooth = np.vectorize(lambda x: ramp(x, 0.5))
    found = gradient(quantizer, w, g)
    expected = differences(lambda u: (g * by_filter(alpha, w) * smooth(mixed(u, theta))).sum(), w)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    expected = differences(lambda angle: (g * by_filter(alpha, w) * smooth(mixed(w, angle))).sum(), theta)
    np.testing.assert_allclose(quantizer.theta.grad, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(quantizer.alpha.grad, flat(g * value / by_filter(alpha, w)).sum(1), rtol=1e-12)


def test_aligning_brings_weights_closer_to_their_signs():
    torch.manual_seed(0)
    w, _ = weight(shape=(16, 8, 3, 3))
    quantizer = RotatedWeight(channels=16, fan_in=72).double()

    def closeness():
        return np.abs(rotated(quantizer, w)).sum()  # <rotated, its signs>; its length does not change

    seen = [closeness()]
    for _ in range(4):
        quantizer.begin_epoch(torch.tensor(w))
        seen.append(closeness())
        for r in (quantizer.rotation1, quantizer.rotation2):
            torch.testing.assert_close(r @ r.T, torch.eye(len(r), dtype=r.dtype))
    assert all(later >= before - 1e-9 for before, later in itertools.pairwise(seen)), seen
    assert seen[-1] > 1.02 * np.abs(standardized(w)).sum()


# -- XNOR-Net++ -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "parameters"), [(1, 4), (2, 4 * 5 * 6), (3, 4 + 30), (4, 4 + 5 + 6)])
def test_output_scale_cases(case, parameters):
    torch.manual_seed(0)
    scale = OutputScale(4, 5, 6, case).double()
    assert sum(p.numel() for p in scale.parameters()) == parameters
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    assert torch.equal(scale(x), x)
    with torch.no_grad():
        for p in scale.parameters():
            p.normal_()
    gamma = np.ones((4, 5, 6))
    for p in scale.parameters():
        gamma = gamma * p.detach().numpy()
    np.testing.assert_allclose(scale(x).detach(), x.numpy() * gamma, rtol=1e-12)
    assert np.linalg.matrix_rank(gamma.reshape(4, -1)) == (4 if case == 2 else 1)
    assert torch.autograd.gradcheck(scale, x.requires_grad_())


def test_case_one_is_a_scale_of_the_weights():
    torch.manual_seed(0)
    scaled = QuantConv2d(3, 4, 3, bias=False, weight_quantizer=LearnedScaleWeight)
    plain = QuantConv2d(3, 4, 3, bias=False, weight_quantizer=lambda: BinaryConnect())
    plain.weight = scaled.weight
    scale = OutputScale(4, case=1)
    with torch.no_grad():
        scaled.weight_quantizer.alpha.normal_()
        scale.factors[0].copy_(scaled.weight_quantizer.alpha.reshape(4, 1, 1))
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(scale(plain(x)), scaled(x))


def test_training_turns_the_rotations_at_the_beginning_of_every_epoch():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), QuantLinear(12, 8, weight_quantizer=RotatedWeight), nn.Linear(8, 2))
    classifier = Classifier(net, torch.optim.SGD)
    classifier.trainer = SimpleNamespace(train_dataloader=[], world_size=1)
    before = net[1].weight_quantizer.rotation2.clone()
    twin = copy.deepcopy(net[1].weight_quantizer)
    classifier.on_train_epoch_start()
    assert not torch.equal(net[1].weight_quantizer.rotation2, before)
    twin.align(net[1].weight)
    assert torch.equal(net[1].weight_quantizer.rotation2, twin.rotation2)
