"""Folding, equalization and SmoothQuant: the same function, with ranges that are equal or smoother."""

import copy
import itertools

import pytest
import torch
from conversion import check
from torch import nn

import bnn
from bnn.calibration import equalize, fold_batch_norms, smooth
from bnn.layers import QuantLinear


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def uneven(model):
    """Weights whose channels have very different ranges, and batch norms with statistics of all signs."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
                size = 10 ** (2 * torch.rand(module.weight.shape[axis]) - 1)
                module.weight.mul_(size.reshape(-1, *[1] * (module.weight.ndim - 1 - axis)))
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.1, 3)
                module.weight.normal_()
                module.bias.normal_()
    return model.eval()


class Residual(nn.Module):
    """Two layers whose output several read, and a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.inner, self.twice, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x):
        y = torch.relu(self.norm(self.first(x)))
        y = y + self.twice(self.twice(torch.relu(self.second(torch.relu(self.inner(y))))))
        return self.last(y.mean((2, 3)))


NETWORKS = {
    "plain": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), nn.LeakyReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 10), nn.BatchNorm1d(10), nn.PReLU(10), nn.Linear(10, 3),
    ),
    "depthwise": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 6, 1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    ),
    "transposed": lambda: nn.Sequential(
        nn.ConvTranspose2d(3, 6, 2, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3), nn.ReLU(),
        nn.Conv2d(4, 3, 1),
    ),
    "residual": Residual,
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", [fold_batch_norms, equalize, lambda model: equalize(model, fold=False)])
def test_the_function_stays(name, method):
    model = uneven(NETWORKS[name]()).double()
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    changed = method(model)
    torch.testing.assert_close(changed(x), model(x), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(value, before[path]) for path, value in model.state_dict().items())


def test_folding_leaves_no_batch_norm_behind_a_layer():
    for name in ("plain", "depthwise", "transposed"):
        assert not any("BatchNorm" in type(m).__name__ for m in fold_batch_norms(uneven(NETWORKS[name]())).modules())
    alone = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3))
    kept = fold_batch_norms(uneven(alone))
    assert isinstance(kept[0], nn.BatchNorm2d) and isinstance(kept[3], nn.BatchNorm2d)


@pytest.mark.parametrize("name", ["plain", "depthwise", "transposed"])
def test_ranges_of_layers_that_follow_each_other_are_equal(name):
    model = equalize(uneven(NETWORKS[name]()), iterations=100)
    layers = [m for m in model if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
    for first, second in itertools.pairwise(layers):
        axis = int(isinstance(first, nn.ConvTranspose2d))
        given = first.weight.movedim(axis, 0).flatten(1).abs().amax(1)
        depthwise = getattr(second, "groups", 1) > 1
        reading = second.weight.movedim(0 if depthwise or isinstance(second, nn.ConvTranspose2d) else 1, 0)
        taken = reading.reshape(len(given), -1).abs().amax(1)
        torch.testing.assert_close(given, taken, rtol=0.01, atol=0)


def test_without_folding_the_next_layer_balances_the_batch_norm():
    model = uneven(NETWORKS["plain"]())
    changed = equalize(model, fold=False, iterations=100)
    norm, first, second = changed[1], changed[0], changed[3]
    assert torch.equal(first.weight, model[0].weight)
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).abs()
    given = first.weight.flatten(1).abs().amax(1) * scale
    torch.testing.assert_close(given, second.weight.movedim(1, 0).flatten(1).abs().amax(1), rtol=0.01, atol=0)


def test_one_step_for_a_layer_then_loses_less():
    model = uneven(NETWORKS["depthwise"]())
    x = torch.randn(64, 3, 8, 8)
    errors = []
    for changed in (fold_batch_norms(model), equalize(model)):
        ours = bnn.calibrate(bnn.quantize(changed, bits=8, skip=()), x, "mse").eval()
        with torch.no_grad():
            errors.append(float((ours(x) - model(x)).norm() / model(x).norm()))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv1d(4, 4, 1), nn.ReLU(), nn.Linear(8, 8)),  # the layer reads positions, not channels
        nn.Sequential(nn.Linear(8, 8), nn.ReLU6(), nn.Linear(8, 8)),
        nn.Sequential(nn.Linear(8, 8), nn.MaxPool1d(3, 1, 1), nn.Linear(8, 8)),
        nn.Sequential(nn.Linear(8, 8)),
    ],
)
def test_what_is_no_pair(model):
    with pytest.raises(ValueError, match="no two layers"):
        equalize(model)


def test_a_model_that_cannot_be_traced_is_refused():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"Sequential cannot be traced .*which layers follow each other"):
        equalize(nn.Sequential(nn.Linear(2, 2), Branch()))


# -- SmoothQuant ---------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A feed-forward block of a transformer whose norms make large activations in few channels."""

    def __init__(self, norm=nn.LayerNorm):
        super().__init__()
        self.norm, self.gate, self.up, self.down = norm(16), nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.final, self.head = norm(16), nn.Linear(16, 5, bias=False)
        with torch.no_grad():
            self.norm.weight[3], self.norm.weight[9], self.final.weight[5] = 40.0, 0.01, 25.0

    def forward(self, x):
        y = self.norm(x)
        return self.head(self.final(x + self.down(torch.sigmoid(self.gate(y)) * self.up(y))))


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("strength", [0.0, 0.5, 0.8, 1.0])
def test_smoothing_keeps_the_function_and_balances_as_the_paper_says(norm, strength):
    model, x = Block(norm).double().eval(), torch.randn(6, 7, 16, dtype=torch.float64)
    changed = smooth(model, x.split(2), strength)
    torch.testing.assert_close(changed(x), model(x), rtol=1e-9, atol=1e-9)
    for path, layers in {"norm": ["gate", "up"], "final": ["head"]}.items():
        seen = []
        handle = model.get_submodule(path).register_forward_hook(lambda _m, _x, y, seen=seen: seen.append(y.detach()))
        model(x)
        handle.remove()
        largest = seen[0].abs().flatten(0, 1).amax(0)
        weights = torch.stack([model.get_submodule(name).weight.abs().amax(0) for name in layers]).amax(0)
        factors = largest**strength / weights ** (1 - strength)
        torch.testing.assert_close(changed.get_submodule(path).weight * factors, model.get_submodule(path).weight)
        if strength == 0.5:  # both sides have the same range then, sqrt(max|X| max|W|)
            after = torch.stack([changed.get_submodule(name).weight.abs().amax(0) for name in layers]).amax(0)
            torch.testing.assert_close(largest / factors, after)


def test_quantized_inputs_lose_less_and_run_on_integers():
    model, x = Block().eval(), torch.randn(40, 7, 16)
    errors = []
    for changed in (model, smooth(model, x)):
        ours = bnn.calibrate(bnn.quantize(changed, "int8", skip=()), x, "min_max").eval()
        with torch.no_grad():
            errors.append(float((ours(x) - model(x)).norm() / model(x).norm()))
    assert errors[1] < 0.6 * errors[0]
    check(ours, x)


def test_readers_by_name_and_what_is_refused():
    model, x = Block().eval(), torch.randn(4, 7, 16)
    named = smooth(model, x, readers={"norm": ["gate", "up"], "final": ["head"]})
    assert all(torch.equal(v, smooth(model, x).state_dict()[name]) for name, v in named.state_dict().items())
    with pytest.raises(ValueError, match="gate is no LayerNorm or RMSNorm"):
        smooth(model, x, readers={"gate": ["up"]})
    with pytest.raises(ValueError, match="final, which is said to read norm, is no linear layer"):
        smooth(model, x, readers={"norm": ["final"]})
    with pytest.raises(ValueError, match="strength must lie in"):
        smooth(model, x, strength=1.5)
    with pytest.raises(ValueError, match="no LayerNorm or RMSNorm that linear layers alone read"):
        smooth(nn.Sequential(nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 4)), torch.randn(2, 4))

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.layer = nn.LayerNorm(16), QuantLinear(16, 4)

        def forward(self, x):
            return self.layer(self.norm(x)) if x.sum() > -1e9 else x

    with pytest.raises(ValueError, match="pass readers"):
        smooth(Branch(), x)
    smooth(Branch().eval(), x, readers={"norm": ["layer"]})
