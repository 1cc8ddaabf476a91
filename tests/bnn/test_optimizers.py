"""Bop against the printed algorithm, the composite optimizer, roles of parameters and weight decay by role."""

import copy
import io
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from bnn.layers import QuantConv2d, QuantLinear
from bnn.optimizers import Bop, Bop2ndOrder, CompositeOptimizer, parameter_groups, parameter_roles, scale_rates
from bnn.quantizers import (
    AffineActivation,
    FullPrecision,
    LsqActivation,
    LsqWeight,
    Quantizer,
    SteSign,
    XnorWeight,
)

OPTIMIZERS = {"latent": partial(Bop, gamma=0.1, threshold=0.01), "rest": torch.optim.Adam}


class Scaled(Quantizer):
    """A quantizer that learns a scale."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.sign = SteSign()

    def forward(self, x):
        return self.sign(x) * self.scale


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        QuantConv2d(4, 4, 3, weight_quantizer=SteSign, input_quantizer=Scaled),
        nn.Flatten(),
        QuantLinear(16, 3, weight_quantizer=SteSign, bias=False),
        QuantLinear(3, 3, weight_quantizer=FullPrecision),
    )


def backward(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model.zero_grad()
    model(torch.randn(5, 1, 6, 6, generator=generator)).square().mean().backward()


def composite(model, **rest):
    return CompositeOptimizer(parameter_groups(model), OPTIMIZERS, **({"lr": 0.01} | rest))


# -- Bop --------------------------------------------------------------------------------------------------------------


def test_bop_is_the_printed_algorithm():
    """Algorithm 1, written in NumPy with the comparisons as printed."""
    gamma, threshold = 0.3, 0.2
    random = np.random.default_rng(0)
    start = random.normal(size=(5, 7))
    weight = nn.Parameter(torch.tensor(start))
    optimizer = Bop([weight], gamma, threshold)
    w, m = np.where(start >= 0, 1.0, -1.0), np.zeros((5, 7))
    flips = 0
    for _ in range(30):
        g = random.normal(size=(5, 7))
        weight.grad = torch.tensor(g)
        optimizer.step()
        m = (1 - gamma) * m + gamma * g
        flip = (np.abs(m) > threshold) & (np.sign(m) == np.sign(w))
        w = np.where(flip, -w, w)
        flips += flip.sum()
        np.testing.assert_array_equal(weight.detach().numpy(), w)
        np.testing.assert_allclose(optimizer.state[weight]["average"].numpy(), m, rtol=1e-12)
    assert flips > 100


@pytest.mark.parametrize("unbiased", [False, True])
def test_second_order_bop_is_the_printed_algorithm(unbiased):
    gamma, sigma, threshold = 0.1, 0.3, 0.1
    random = np.random.default_rng(0)
    start = random.normal(size=(5, 7))
    sizes = 10.0 ** random.integers(-6, 3, (5, 7))  # a threshold fits gradients of every size
    weight = nn.Parameter(torch.tensor(start))
    optimizer = Bop2ndOrder([weight], gamma, threshold, sigma, unbiased)
    w, m, v = np.where(start >= 0, 1.0, -1.0), np.zeros((5, 7)), np.zeros((5, 7))
    flips = np.zeros((5, 7))
    for t in range(1, 61):
        g = sizes * random.normal(size=(5, 7))
        weight.grad = torch.tensor(g)
        optimizer.step()
        m, v = (1 - gamma) * m + gamma * g, (1 - sigma) * v + sigma * g**2
        r = m / (np.sqrt(v) + 1e-10)
        if unbiased:
            r = m / (1 - (1 - gamma) ** t) / (np.sqrt(v / (1 - (1 - sigma) ** t)) + 1e-10)
        flip = (np.abs(r) > threshold) & (np.sign(r) == np.sign(w))
        w = np.where(flip, -w, w)
        flips += flip
        np.testing.assert_array_equal(weight.detach().numpy(), w)
    assert (flips > 0).mean() > 0.8
    np.testing.assert_allclose(optimizer.state[weight]["square"].numpy(), v, rtol=1e-12)


@pytest.mark.parametrize(
    ("weight", "gradient", "after"),
    [
        (1, 2, -1),
        (1, -2, 1),
        (-1, -2, 1),
        (-1, 2, -1),
        (1, 1, 1),
        (-1, -1, -1),
        (0.0, 2, -1),
        (-0.0, 2, -1),
        (-0.3, 0, -1),
    ],
)
def test_bop_flips(weight, gradient, after):
    """gamma 1 makes m the gradient; |m| = threshold = 1 does not flip; zeros begin as +1."""
    parameter = nn.Parameter(torch.tensor([float(weight)]))
    optimizer = Bop([parameter], gamma=1.0, threshold=1.0)
    parameter.grad = torch.tensor([float(gradient)])
    optimizer.step()
    assert parameter.item() == after


def test_a_learning_rate_scheduler_decays_gamma():
    weight = nn.Parameter(torch.ones(1))
    optimizer = Bop([weight], gamma=0.5, threshold=10.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    expected = 0.0
    for rate in (0.5, 0.05, 0.005):
        weight.grad = torch.ones(1)
        optimizer.step()
        expected = (1 - rate) * expected + rate
        scheduler.step()
        assert optimizer.state[weight]["average"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("wrong", [{"gamma": -0.1}, {"gamma": 1.1}, {"threshold": -1.0}, {"lr": -1.0}, {"lr": 1e5}])
def test_bop_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Bop([nn.Parameter(torch.ones(1))], **wrong)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Bop2ndOrder([nn.Parameter(torch.ones(1))], **({"gamma": 1e-4} | wrong))
    with pytest.raises(ValueError, match="sigma must lie"):
        Bop2ndOrder([nn.Parameter(torch.ones(1))], sigma=2.0)


def test_bop_leaves_weights_without_gradient():
    weight = nn.Parameter(torch.ones(2))
    assert Bop([weight]).step(lambda: 3.0) == 3.0
    assert weight.tolist() == [1, 1]


def test_bop_learns():
    """A hidden binary vector is found from its answers alone."""
    torch.manual_seed(0)
    hidden = torch.where(torch.randn(1, 32) >= 0, 1.0, -1.0)
    layer = QuantLinear(32, 1, bias=False, weight_quantizer=SteSign)
    optimizer = Bop(layer.parameters(), gamma=0.05, threshold=0.1)
    for _ in range(150):
        x = torch.randn(64, 32)
        loss = (layer(x) - x @ hidden.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(layer.weight.detach(), hidden)


# -- roles and weight decay -------------------------------------------------------------------------------------------


def test_roles():
    assert parameter_roles(network()) == {
        "0.weight": "weight",
        "0.bias": "bias",
        "1.weight": "norm",
        "1.bias": "norm",
        "2.weight": "latent",
        "2.bias": "bias",
        "2.input_quantizer.scale": "quantizer",
        "4.weight": "latent",
        "5.weight": "weight",
        "5.bias": "bias",
    }


def test_frozen_parameters_have_no_role():
    model = network()
    model[2].weight.requires_grad_(False)
    assert "2.weight" not in parameter_roles(model)
    with pytest.raises(ValueError, match="no parameter"):
        parameter_groups(model.requires_grad_(False))


def test_every_parameter_is_in_one_group():
    model = network()
    members = [id(p) for group in parameter_groups(model) for p in group["params"]]
    assert sorted(members) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("spared", [(), ("latent",), ("latent", "norm", "bias")])
def test_decay_spares_roles(spared):
    """With zero gradients SGD does nothing but decay."""
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(parameter_groups(model, spared), lr=0.5, weight_decay=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, role in parameter_roles(model).items():
        factor = 1.0 if role in spared else 0.95
        torch.testing.assert_close(model.state_dict()[name], factor * before[name])


def test_unknown_roles_are_refused():
    with pytest.raises(ValueError, match=r"unknown roles \['latents'\]; roles are weight, norm"):
        parameter_groups(network(), ["latents"])


def test_rates_of_latents_by_glorots_rule():
    """SGD moves a latent by lr g / sqrt(1.5 / (fan in + fan out)), everything else by lr g."""
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(parameter_groups(model, glorot_rates=True), lr=0.1)
    scale_rates(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    rates = {"2.weight": 0.1 / (1.5 / (4 * 9 + 4 * 9)) ** 0.5, "4.weight": 0.1 / (1.5 / (16 + 3)) ** 0.5}
    for name, value in model.named_parameters():
        torch.testing.assert_close(before[name] - value, torch.full_like(value, rates.get(name, 0.1)))
    with pytest.raises(ValueError, match="no latent weights"):
        scale_rates(CompositeOptimizer(parameter_groups(model, glorot_rates=True), OPTIMIZERS))


def test_rates_of_steps_by_their_levels():
    """Adam moves every parameter by lr at first: with the rates the ends of a range, step times level, by lr."""
    model = nn.Sequential(
        QuantConv2d(2, 3, 1, weight_quantizer=partial(LsqWeight, bits=8, per_channel=True)),
        QuantConv2d(
            3, 4, 1, weight_quantizer=partial(LsqWeight, bits=1), input_quantizer=partial(LsqActivation, bits=2)
        ),
        QuantConv2d(4, 4, 1, weight_quantizer=XnorWeight, input_quantizer=partial(AffineActivation, bits=8)),
    )
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.Adam(parameter_groups(model, step_rates=True), lr=0.1)
    scale_rates(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    largest = {"0.weight_quantizer.step": 128, "1.input_quantizer.step": 3, "2.input_quantizer.step": 255}
    for name, value in model.named_parameters():
        torch.testing.assert_close(before[name] - value, torch.full_like(value, 0.1 / largest.get(name, 1)))
    names = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(names) == sorted(map(id, model.parameters()))


# -- composite --------------------------------------------------------------------------------------------------------


def test_each_part_steps_as_it_would_alone():
    together, apart = network(), network()
    both = composite(together)
    roles = parameter_roles(apart)
    named = dict(apart.named_parameters())
    bop = Bop([named[n] for n, r in roles.items() if r == "latent"], gamma=0.1, threshold=0.01)
    adam = torch.optim.Adam([named[n] for n, r in roles.items() if r != "latent"], lr=0.01)
    for seed in range(5):
        backward(together, seed)
        backward(apart, seed)
        for optimizer in (both, bop, adam):
            optimizer.step()
    for name, value in together.state_dict().items():
        assert torch.equal(value, apart.state_dict()[name]), name


def test_the_closure_runs_once():
    model = network()
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        backward(model)
        return 0.5

    assert composite(model).step(closure) == 0.5
    assert calls == [True]


def test_schedulers_act_on_every_group():
    model = network()
    optimizer = composite(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    backward(model)
    optimizer.step()
    scheduler.step()
    rates = {group["role"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"weight": 1e-3, "norm": 1e-3, "bias": 1e-3, "quantizer": 1e-3, "latent": 0.1})
    for inner in optimizer.optimizers.values():
        assert all(any(group is own for own in optimizer.param_groups) for group in inner.param_groups)


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
def test_a_restored_optimizer_goes_on_the_same(way):
    model = network()
    optimizer = composite(model)
    for seed in range(3):
        backward(model, seed)
        optimizer.step()
    if way == "state_dict":
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        again = network()
        again.load_state_dict(saved["model"])
        restored = composite(again, lr=0.5)
        restored.load_state_dict(saved["optimizer"])
    elif way == "pickle":
        again, restored = pickle.loads(pickle.dumps((model, optimizer)))
    else:
        again, restored = copy.deepcopy((model, optimizer))
    for seed in range(3, 6):
        backward(model, seed)
        backward(again, seed)
        optimizer.step()
        restored.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert [g["lr"] for g in restored.param_groups] == [g["lr"] for g in optimizer.param_groups]


def test_groups_can_be_added():
    model, more = network(), nn.Parameter(torch.ones(2))
    optimizer = composite(model)
    optimizer.add_param_group({"params": [more], "role": "weight"})
    more.grad = torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(more.detach(), torch.full((2,), 0.99))


@pytest.mark.parametrize(
    ("optimizers", "rest", "words"),
    [
        ({"latent": Bop}, {}, "no optimizer for parameters of the role 'weight'"),
        ({"latent": Bop}, {"lr": 1.0}, "lr would go to the optimizer under 'rest'"),
        ({"latents": Bop, "rest": torch.optim.SGD}, {}, r"unknown roles \['latents'\]; roles are weight, norm"),
    ],
)
def test_composites_that_do_not_fit(optimizers, rest, words):
    with pytest.raises(ValueError, match=words):
        CompositeOptimizer(parameter_groups(network()), optimizers, **rest)


def test_an_fp32_twin_has_the_rest_alone():
    optimizer = CompositeOptimizer(parameter_groups(nn.Linear(2, 2)), OPTIMIZERS, lr=0.5)
    assert list(optimizer.optimizers) == ["rest"]
    assert not optimizer.latent_free


def test_groups_need_roles():
    with pytest.raises(ValueError, match="needs a role"):
        CompositeOptimizer(network().parameters(), OPTIMIZERS)
