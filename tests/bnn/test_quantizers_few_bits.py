"""Quantizers of several bits against the formulas of their papers: LSQ, PACT, LQ-Net, ABC-Net, DoReFa's gradients."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from gradients import differences, gradient, signs

from bnn.layers import QuantLinear
from bnn.quantizers import (
    AbcActivation,
    AbcWeight,
    DoReFaGradient,
    FullPrecision,
    LqActivation,
    LqWeight,
    LsqActivation,
    LsqWeight,
    Pact,
    quantize_gradients,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def set_step(quantizer, value):
    with torch.no_grad():
        quantizer.step.copy_(torch.tensor(value, dtype=torch.float64))
    return quantizer.eval()  # in training the first forward would choose a step


LSQ = [
    *[(LsqWeight(k), -(2 ** (k - 1)), 2 ** (k - 1) - 1) for k in range(2, 9)],
    *[(LsqActivation(k, signed=True), -(2 ** (k - 1)), 2 ** (k - 1) - 1) for k in range(2, 9)],
    *[(LsqActivation(k), 0, 2**k - 1) for k in range(1, 9)],
]


@pytest.mark.parametrize(("quantizer", "low", "high"), LSQ, ids=lambda v: repr(v) if not isinstance(v, int) else "")
def test_lsq(quantizer, low, high):
    x, g = rng().standard_normal((6, 4, 5)) * 2, rng(1).standard_normal((6, 4, 5))
    s = 2.5 / high
    x[0, 0] = [0.0, -0.0, low * s, high * s, 0.5 * s]  # the bounds and a half
    quantizer = set_step(quantizer.double(), s)
    ratio = x / s
    value = np.round(np.clip(ratio, low, high)) * s
    np.testing.assert_allclose(quantizer(torch.tensor(x)).detach(), value, rtol=1e-12, atol=1e-15)
    inside = (ratio > low) & (ratio < high)
    quantizer.step.grad = None
    np.testing.assert_array_equal(gradient(quantizer, x, g), g * inside)
    to_step = np.where(ratio <= low, low, np.where(ratio >= high, high, np.round(ratio) - ratio))
    features = x.size if isinstance(quantizer, LsqWeight) else x[0].size
    np.testing.assert_allclose(quantizer.step.grad, (g * to_step).sum() / np.sqrt(features * high), rtol=1e-10)


def test_lsq_outside_the_bounds_is_an_exact_derivative():
    """Beyond Q_P the value is Q_P s: there the gradient of the step is the derivative, so finite differences hold."""
    x, g = np.array([[9.0, -9.0, 12.0]]), np.array([[0.3, -0.7, 1.1]])
    quantizer = set_step(LsqWeight(3).double(), 0.5)
    gradient(quantizer, x, g)
    expected = differences(lambda s: (g * np.round(np.clip(x / s, -4, 3)) * s).sum(), 0.5) / np.sqrt(3 * 3)
    np.testing.assert_allclose(quantizer.step.grad, expected, rtol=1e-8)


def test_lsq_steps_per_channel():
    w, g = rng().standard_normal((3, 8)), rng(1).standard_normal((3, 8))
    steps = [0.2, 0.5, 1.0]
    quantizer = set_step(LsqWeight(3, per_channel=True, channels=3).double(), steps)
    gradient(quantizer, w, g)
    for c, s in enumerate(steps):
        one = set_step(LsqWeight(3).double(), s)
        value = one(torch.tensor(w[c : c + 1]))
        assert torch.equal(quantizer(torch.tensor(w))[c : c + 1], value)
        gradient(one, w[c : c + 1], g[c : c + 1])
        np.testing.assert_allclose(quantizer.step.grad[c], one.step.grad, rtol=1e-12)


@pytest.mark.parametrize("make", [LsqWeight, lambda k: LsqActivation(k, signed=True)])
def test_lsq_of_one_bit_is_a_scaled_sign(make):
    x, g = np.array([[-2.0, -0.5, -0.0, 0.0, 0.5, 2.0]]), np.array([[1.0, 2, 3, 4, 5, 6]])
    quantizer = set_step(make(1).double(), 1.5)
    assert quantizer(torch.tensor(x)).tolist() == (1.5 * signs(x)).tolist()
    assert gradient(quantizer, x, g).tolist() == [[0, 2, 3, 4, 5, 0]]
    inside = np.abs(x) < 1.5
    expected = (g * (signs(x) - x / 1.5 * inside)).sum() / np.sqrt(6)
    np.testing.assert_allclose(quantizer.step.grad, expected, rtol=1e-12)


def test_lsq_begins_with_the_first_batch():
    x = rng().standard_normal((5, 6))
    for quantizer, high in ((LsqWeight(3), 3), (LsqActivation(4), 15), (LsqActivation(4, signed=True), 7)):
        quantizer = quantizer.double()
        quantizer.eval()(torch.tensor(9 * x))
        assert float(quantizer.step.detach()) == 1  # evaluation sets nothing
        quantizer.train()(torch.tensor(x))
        assert float(quantizer.step.detach()) == pytest.approx(2 * np.abs(x).mean() / np.sqrt(high))
        quantizer(torch.tensor(9 * x))
        assert float(quantizer.step.detach()) == pytest.approx(2 * np.abs(x).mean() / np.sqrt(high))
    per_channel = LsqWeight(3, per_channel=True, channels=5).double()
    per_channel(torch.tensor(x))
    np.testing.assert_allclose(per_channel.step.detach(), 2 * np.abs(x).mean(1) / np.sqrt(3))


def test_a_checkpoint_knows_whether_a_step_was_set():
    fresh, used = LsqWeight(3), LsqWeight(3)
    used(torch.randn(4, 4))
    resumed = LsqWeight(3)
    resumed.load_state_dict(used.state_dict())
    resumed(100 * torch.randn(4, 4))
    assert float(resumed.step.detach()) == float(used.step.detach())
    resumed.load_state_dict(fresh.state_dict())
    resumed(torch.full((2, 2), 7.0))
    assert float(resumed.step.detach()) == pytest.approx(14 / np.sqrt(3))


def test_all_processes_of_a_training_begin_with_the_same_step(monkeypatch):
    """Two processes, of which the other one always holds three times as much."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(4))
    quantizer = LsqActivation(2)
    quantizer(torch.ones(3, 4))
    assert float(quantizer.step.detach()) == pytest.approx(2 * 2 / np.sqrt(3))


@pytest.mark.parametrize("k", range(1, 9))
def test_pact(k):
    quantizer = Pact(k, alpha=1.5).double()
    x = np.concatenate([[-1.0, -0.0, 0.0, 1.5, 1.5 + 1e-9, 9.0], rng().uniform(-0.5, 2, 50)])
    g = rng(1).standard_normal(x.shape)
    n = 2**k - 1
    expected = np.round(np.clip(x, 0, 1.5) * n / 1.5) * 1.5 / n
    np.testing.assert_allclose(quantizer(torch.tensor(x)).detach(), expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(gradient(quantizer, x, g), g * ((x > 0) & (x < 1.5)))
    np.testing.assert_allclose(quantizer.alpha.grad, g[x >= 1.5].sum(), rtol=1e-12)


def test_pact_gradient_of_the_bound_is_that_of_the_clipping():
    x, g = rng().uniform(-1, 3, 40), rng(1).standard_normal(40)
    quantizer = Pact(8, alpha=1.5).double()
    gradient(quantizer, x, g)
    expected = differences(lambda a: (g * 0.5 * (np.abs(x) - np.abs(x - a) + a)).sum(), 1.5)  # the paper's equation 1
    np.testing.assert_allclose(quantizer.alpha.grad, expected, rtol=1e-8)


def test_bounds_that_an_optimizer_made_negative_or_zero_still_work():
    for quantizer, parameter in ((Pact(2), "alpha"), (LsqWeight(2), "step"), (LsqActivation(2), "step")):
        for value in (-0.5, 0.0):
            with torch.no_grad():
                getattr(quantizer, parameter).fill_(value)
            y = quantizer.eval()(torch.tensor([[-1.0, 0.0, 0.3, 2.0]]))
            assert y.isfinite().all()
            assert torch.equal(y, quantizer.planes(torch.tensor([[-1.0, 0.0, 0.3, 2.0]])).value())


# -- LQ-Net -----------------------------------------------------------------------------------------------------------


def nearest(x, basis, low):
    """The level nearest to each number, halfway the upper one, by trying all of them."""
    levels = sorted(sum(b * v for b, v in zip(code, basis, strict=True))
                    for code in itertools.product((low, 1), repeat=len(basis)))  # fmt: skip
    return np.array([max(levels, key=lambda level: (-abs(level - v), level)) for v in x.ravel()]).reshape(x.shape)


@pytest.mark.parametrize("k", range(1, 6))
def test_lq_weight_takes_the_nearest_level(k):
    w = rng().standard_normal((3, 20))
    quantizer = LqWeight(k, channels=3).double().eval()
    basis = rng(1).uniform(0.1, 1, (3, k))
    quantizer.basis.copy_(torch.tensor(basis))
    expected = np.stack([nearest(row, v, -1) for row, v in zip(w, basis, strict=True)])
    np.testing.assert_allclose(quantizer(torch.tensor(w)), expected, rtol=1e-12, atol=1e-15)
    g = rng(2).standard_normal(w.shape)
    np.testing.assert_array_equal(gradient(quantizer, w, g), g)


@pytest.mark.parametrize("k", range(1, 6))
def test_lq_activation_takes_the_nearest_level(k):
    x = rng().uniform(-1, 3, (4, 10))
    quantizer = LqActivation(k).double().eval()
    basis = rng(1).uniform(0.1, 1, k)
    quantizer.basis.copy_(torch.tensor(basis)[None])
    np.testing.assert_allclose(quantizer(torch.tensor(x)), nearest(x, basis, 0), rtol=1e-12, atol=1e-15)
    g = rng(2).standard_normal(x.shape)
    np.testing.assert_array_equal(gradient(quantizer, x, g), g * (x <= basis.sum()))


def test_one_bit_of_lq_net_takes_zero_for_positive():
    quantizer = LqWeight(1, channels=1).eval()
    assert quantizer(torch.tensor([[-0.1, -0.0, 0.0, 0.1]])).tolist() == [[-1, 1, 1, 1]]


def test_lq_net_fits_its_basis_by_least_squares():
    w = rng().standard_normal((3, 200))
    quantizer = LqWeight(2, channels=3, momentum=1.0).double()
    quantizer.initialize_once(torch.tensor(w))
    start = 0.6745 * w.std(1)[:, None] * np.array([0.5, 1.0])
    np.testing.assert_allclose(quantizer.basis, start, rtol=1e-12)
    quantizer(torch.tensor(w))
    for row, v, fitted in zip(w, start, quantizer.basis.numpy(), strict=True):
        codes = np.array(list(itertools.product((-1, 1), repeat=2)))
        chosen = codes[np.abs(row[:, None] - codes @ v).argmin(1)]
        best = np.linalg.lstsq(chosen, row, rcond=None)[0]
        np.testing.assert_allclose(fitted, best, rtol=1e-4)  # but for the ridge
    slow = LqWeight(2, channels=3, momentum=0.1).double()
    slow(torch.tensor(w))
    np.testing.assert_allclose(slow.basis, 0.9 * start + 0.1 * quantizer.basis.numpy(), rtol=1e-12)


def test_lq_net_comes_closer_to_the_weights_and_closer_than_uniform_levels():
    w = torch.tensor(rng().standard_normal((2, 1000)))
    quantizer = LqWeight(2, channels=2, momentum=0.5).double()
    errors = [float(((quantizer(w) - w) ** 2).mean()) for _ in range(20)]
    assert errors[-1] < errors[0]
    # The best four levels for a normal distribution leave 0.1175 of the variance (Lloyd and Max), uniform ones 0.1188.
    assert errors[-1] == pytest.approx(0.1175, abs=0.01)


# -- ABC-Net ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", range(1, 6))
def test_abc_weight(m):
    w, g = rng().standard_normal((4, 3, 3, 3)), rng(1).standard_normal((4, 3, 3, 3))
    shifts = [-1 + 2 * i / (m - 1) for i in range(m)] if m > 1 else [0.0]
    bases = np.stack([signs(w - w.mean() + u * w.std()).ravel() for u in shifts], 1)
    alpha = np.linalg.lstsq(bases, w.ravel(), rcond=None)[0]
    found = AbcWeight(m)(torch.tensor(w)).numpy()
    np.testing.assert_allclose(found.ravel(), bases @ alpha, rtol=1e-4, atol=1e-5)  # but for the ridge
    np.testing.assert_allclose(gradient(AbcWeight(m), w, g), g * alpha.sum(), rtol=1e-4)


def test_abc_activation_by_hand():
    """beta = 2, 1; h = clip(x + v, 0, 1) of v = -0.5, 0.5 is at least 1/2 from 1 and from 0 on, and lets a gradient
    pass in [0.5, 1.5] and [-0.5, 0.5]."""
    quantizer = AbcActivation(bases=2).double()
    with torch.no_grad():
        quantizer.shift.copy_(torch.tensor([-0.5, 0.5]))
        quantizer.beta.copy_(torch.tensor([2.0, 1.0]))
    x = [-1.0, -0.5, -0.25, -0.0, 0.0, 0.5, 0.75, 1.0, 1.5, 2.0]
    first, second = np.array([[-1] * 7 + [1] * 3, [-1] * 3 + [1] * 7])
    assert quantizer(torch.tensor(x)).tolist() == (2 * first + second).tolist()
    passes = np.array([[0, 0, 0, 0, 0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 0, 0, 0, 0]])
    g = np.random.default_rng(0).standard_normal(10)
    np.testing.assert_allclose(gradient(quantizer, x, g), g * (np.array([2, 1]) @ passes), rtol=1e-12)
    np.testing.assert_allclose(quantizer.shift.grad, [2, 1] * (passes @ g), rtol=1e-12)
    np.testing.assert_allclose(quantizer.beta.grad, [first @ g, second @ g], rtol=1e-12)


def test_one_binary_activation_of_abc_net_is_a_shifted_sign():
    quantizer = AbcActivation(bases=1)
    assert (quantizer.shift.tolist(), quantizer.beta.tolist(), quantizer.bits) == ([0], [1], 1)
    assert quantizer(torch.tensor([0.0, 0.49, 0.5, 2.0])).tolist() == [-1, -1, 1, 1]


def test_more_bases_come_closer():
    w = torch.tensor(rng().standard_normal((8, 50)))
    errors = [float(((AbcWeight(m)(w) - w) ** 2).mean()) for m in (1, 3, 5)]
    assert errors[0] > errors[1] > errors[2]
    assert AbcWeight(3)(torch.zeros(2, 2)).tolist() == [[0, 0], [0, 0]]


# -- gradients of few bits --------------------------------------------------------------------------------------------


def through(layer, g):
    x = torch.zeros_like(g, requires_grad=True)
    y = layer(x)
    assert torch.equal(y, x)
    y.backward(g)
    return x.grad


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_dorefa_gradients(k):
    torch.manual_seed(0)
    g = torch.randn(2, 7, dtype=torch.float64) * torch.tensor([[1.0], [100.0]])
    n, largest = 2**k - 1, g.abs().amax(1, keepdim=True)
    found = torch.stack([through(DoReFaGradient(k), g) for _ in range(1000)])
    levels = (found / (2 * largest) + 0.5) * n
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-9)
    assert levels.min() >= -1e-9 and levels.max() <= n + 1e-9
    # Noise as wide as a step makes the rounding right on average, within 5 standard errors.
    spread = found.std(0) / 1000**0.5
    assert ((found.mean(0) - g).abs() <= 5 * spread + 1e-6 * largest).all()
    # Noise lifts no gradient beyond the largest of its sample.
    assert (found.abs() <= largest * (1 + 1e-9)).all()


def test_one_bit_without_noise_is_xnor_nets_binary_gradient():
    g = torch.tensor(rng().standard_normal((3, 9)))
    expected = g.abs().amax(1, keepdim=True) * torch.where(g > 0, 1.0, -1.0)
    torch.testing.assert_close(through(DoReFaGradient(1, noise=False), g), expected)


def test_gradients_of_all_quantized_layers():
    torch.manual_seed(0)
    net = torch.nn.Sequential(QuantLinear(6, 5, weight_quantizer=FullPrecision), torch.nn.ReLU(),
                              QuantLinear(5, 3, weight_quantizer=FullPrecision))  # fmt: skip
    x, g = torch.randn(4, 6), torch.randn(4, 3)
    handles = quantize_gradients(net, 2, noise=False)
    assert len(handles) == 2
    assert len(pickle.dumps(net)) > 0
    net(x).backward(g)
    first, _, last = net
    arriving = through(DoReFaGradient(2, noise=False), g)
    hidden = torch.relu(first(x)).detach()
    torch.testing.assert_close(last.bias.grad, arriving.sum(0))
    torch.testing.assert_close(last.weight.grad, arriving.T @ hidden)
    back = arriving @ last.weight_quantizer(last.weight).detach() * (hidden > 0)
    torch.testing.assert_close(first.bias.grad, through(DoReFaGradient(2, noise=False), back).sum(0))
    for handle in handles:
        handle.remove()
    net.zero_grad()
    net(x).backward(g)
    torch.testing.assert_close(last.bias.grad, g.sum(0))
    with pytest.raises(ValueError, match="no quantized layers"):
        quantize_gradients(torch.nn.Linear(2, 2), 4)


def test_dorefa_gradients_of_nothing_are_nothing():
    assert through(DoReFaGradient(4), torch.zeros(2, 3)).abs().max() < 1e-30


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LsqWeight(0), "bits must be one of"),
        (lambda: LsqWeight(2, per_channel=True), "per_channel needs channels"),
        (lambda: LsqActivation(9), "bits must be one of"),
        (lambda: Pact(2, alpha=0), "alpha must be positive"),
        (lambda: LqWeight(2, channels=0), "channels must be"),
        (lambda: LqActivation(2, momentum=0), "momentum must lie"),
        (lambda: AbcWeight(9), "bits must be one of"),
        (lambda: AbcActivation(0), "bits must be one of"),
        (lambda: DoReFaGradient(0), "bits must be one of"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
