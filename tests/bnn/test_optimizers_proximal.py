"""Proximal against the definitions of its prox maps, and that a restored one goes on the same."""

import copy
import io
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from bnn.layers import QuantConv2d
from bnn.optimizers import CompositeOptimizer, Proximal, parameter_groups
from bnn.optimizers.proximal import bound_of, toward_levels
from bnn.quantizers import RelaxedWeight, SteSign

ADAM = partial(torch.optim.Adam, lr=0.1)
MAPS = ["parq", "proxquant", "binary_relax"]
LEVELS = [2, 3, 4, 8]


def grid(u, levels):
    """The levels, ascending, by the definition in the docstring of bound_of."""
    factor = {2: 1, 3: 1.5, 4: 2, 8: 3}[levels]
    return np.linspace(-1, 1, levels) * min(factor * np.abs(u).mean(), np.abs(u).max())


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("map", MAPS)
def test_prox_maps(map, levels):
    u = np.random.default_rng(0).standard_normal(50)
    points = grid(u, levels)
    spacing, nearest = points[1] - points[0], points[np.abs(u[:, None] - points).argmin(1)]
    for h in (0.1, 0.4, 0.8):
        if map == "binary_relax":
            expected = (1 - h) * u + h * nearest
        elif map == "proxquant":
            far = np.maximum(np.abs(u - nearest) - spacing / 2 * h / (1 - h), 0)
            expected = nearest + np.sign(u - nearest) * far
        else:
            # A step that is flat for h of each interval and rises in the middle of the rest, as a line through points.
            middles = (points[1:] + points[:-1]) / 2
            xs = np.stack([middles - spacing / 2 * (1 - h), middles + spacing / 2 * (1 - h)], 1).ravel()
            expected = np.interp(u, xs, np.repeat(points, 2)[1:-1])
        found = toward_levels(torch.tensor(u), levels, h, map)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert np.array_equal(toward_levels(torch.tensor(u), levels, 0.0, map), u)
    hard = toward_levels(torch.tensor(u), levels, 1.0, map)
    np.testing.assert_allclose(hard, nearest, rtol=1e-12)
    # The quantizer finds the levels again, whatever the weights were.
    np.testing.assert_allclose(RelaxedWeight(levels).eval()(hard), hard, rtol=1e-12)


@pytest.mark.parametrize("map", MAPS)
def test_zeros_stay(map):
    for h in (0.0, 0.5, 1.0):
        assert not toward_levels(torch.zeros(3), 4, h, map).any()
    assert bound_of(torch.zeros(3), 4) == 0


def test_two_levels_are_the_least_squares_ones():
    u = torch.tensor(np.random.default_rng(0).standard_normal(1000))
    hard = toward_levels(u, 2, 1.0, "parq")
    best = (hard.sign() @ u) / len(u)
    torch.testing.assert_close(hard.abs(), best.expand(1000))


@pytest.mark.parametrize("map", MAPS)
def test_a_step_is_the_inner_one_of_the_latents_with_the_gradient_at_the_weights(map):
    start = torch.tensor(np.random.default_rng(0).standard_normal(6))
    weight, u = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer, inner = Proximal([weight], ADAM, levels=4, map=map), ADAM([u])
    seen = start
    for h in (0.0, 0.3, 0.7, 1.0, 1.0):
        optimizer.param_groups[0]["hardness"] = h

        def closure():
            weight.grad = 2 * (weight.detach() - 0.3)
            return 1.5

        u.grad = 2 * (seen - 0.3)
        inner.step()
        assert optimizer.step(closure) == 1.5
        assert torch.equal(optimizer.state[weight]["latent"], u.detach())
        seen = toward_levels(u.detach(), 4, h, map)
        assert torch.equal(weight.detach(), seen)


def test_without_hardness_it_is_the_inner_optimizer():
    model, twin = network(), network()
    both = Proximal(model.parameters(), ADAM, levels=4)
    alone = ADAM(twin.parameters())
    for seed in range(3):
        for net, optimizer in ((model, both), (twin, alone)):
            backward(net, seed)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def network():
    torch.manual_seed(0)
    relaxed = partial(QuantConv2d, weight_quantizer=partial(RelaxedWeight, 4), input_quantizer=SteSign)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), relaxed(4, 4, 3), nn.Flatten(), nn.Linear(16, 3))


def backward(model, seed):
    generator = torch.Generator().manual_seed(seed)
    model.zero_grad()
    model(torch.randn(5, 1, 6, 6, generator=generator)).square().mean().backward()


def composite(model):
    inner = {"latent": partial(Proximal, optimizer=ADAM, levels=4), "rest": torch.optim.SGD}
    return CompositeOptimizer(parameter_groups(model), inner, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
def test_a_restored_optimizer_goes_on_the_same(way):
    def train(model, optimizer, seeds):
        for seed in seeds:
            for group in optimizer.param_groups:
                if "hardness" in group:
                    group["hardness"] = seed / 5
            backward(model, seed)
            optimizer.step()

    model = network()
    optimizer = composite(model)
    train(model, optimizer, range(3))
    if way == "state_dict":
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        again = network()
        again.load_state_dict(saved["model"])
        restored = composite(again)
        restored.load_state_dict(saved["optimizer"])
    else:
        copied = copy.deepcopy if way == "deepcopy" else lambda pair: pickle.loads(pickle.dumps(pair))
        again, restored = copied((model, optimizer))
    train(model, optimizer, range(3, 6))
    train(again, restored, range(3, 6))
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert len(model[2].weight.unique()) <= 4  # the last step was a hard one
    assert len(model[0].weight.unique()) == 36
    x = torch.randn(5, 1, 6, 6)
    trained = model.train()[2](x := model[1](model[0](x)))
    torch.testing.assert_close(model.eval()[2](x), trained)


def test_parameters_without_gradient_are_left_alone():
    used, unused = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
    before = unused.detach().clone()
    optimizer = Proximal([used, unused], ADAM, levels=2, hardness=1.0)
    for _ in range(2):
        used.grad = torch.ones(4)
        optimizer.step()
    assert torch.equal(unused.detach(), before)
    unused.grad = torch.ones(4)
    optimizer.step()
    assert len(unused.abs().unique()) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [({"levels": 5}, "levels must be"), ({"levels": 4, "map": "lasso"}, "map must be"), ({"levels": 4, "hardness": 2.0},
     "hardness must lie")],
)  # fmt: skip
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Proximal([nn.Parameter(torch.ones(2))], ADAM, **options)
