"""bnn.calibrate: quantizers begin with data, layer after layer, and nothing else changes; who was left out is told."""

import copy
import warnings
from functools import partial

import pytest
import quantizer_configs as configs
import torch
from torch import nn

import bnn
from bnn.layers import DroppedInput, QuantConv2d, QuantEmbedding, QuantLinear
from bnn.quantizers import (
    DoReFaWeight,
    FullPrecision,
    LqActivation,
    LsqActivation,
    LsqWeight,
    StochasticSign,
    TernaryActivation,
    XnorWeight,
)
from bnn.quantizers.data_initialized import uninitialized

LSQ = {"weight_quantizer": partial(LsqWeight, bits=4), "input_quantizer": partial(LsqActivation, bits=4, signed=True)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def network(**quantized):
    return nn.Sequential(
        QuantConv2d(3, 8, 3, **quantized),
        nn.BatchNorm2d(8),
        nn.Dropout(0.5),
        QuantConv2d(8, 8, 3, **quantized),
        nn.Flatten(),
        nn.Linear(128, 4),
    )


def test_steps_are_those_of_the_paper_layer_after_layer():
    model = network(**LSQ).eval()
    model[1].running_mean.fill_(0.3)
    x = 5 * torch.randn(6, 3, 8, 8)
    assert bnn.calibrate(model, [x]) is model
    for layer, given in ((model[0], x), (model[3], model[1](model[0](x)))):
        for quantizer, values, top in ((layer.weight_quantizer, layer.weight, 7), (layer.input_quantizer, given, 7)):
            torch.testing.assert_close(quantizer.step, 2 * values.abs().mean() / top**0.5, rtol=1e-4, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
        bnn.convert(model, x)


def test_nothing_else_changes():
    model = network(**LSQ).train()
    model[3].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    modes = [module.training for module in model.modules()]
    x = torch.randn(6, 3, 8, 8)
    before, numbers = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    bnn.calibrate(model, x)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not any(module._forward_hooks for module in model.modules())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.endswith((".step", ".initialized"))}
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[3].weight.grad is None


def test_what_began_before_stays():
    model = network(**LSQ)
    bnn.calibrate(model, torch.randn(6, 3, 8, 8))
    before = copy.deepcopy(model.state_dict())
    bnn.calibrate(model, 7 * torch.randn(6, 3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_running_values_are_means_over_the_batches():
    model = nn.Sequential(QuantLinear(4, 3, weight_quantizer=XnorWeight, input_quantizer=TernaryActivation))
    batches = [(torch.randn(5, 4) * size, torch.zeros(5)) for size in (1, 2, 3)]
    quantizer = bnn.calibrate(model, batches)[0].input_quantizer
    expected = torch.stack([0.5 * x.abs().mean() for x, _ in batches]).mean()
    torch.testing.assert_close(quantizer.threshold, expected)
    assert quantizer.momentum == 0.1
    model = nn.Sequential(QuantLinear(4, 3, weight_quantizer=XnorWeight, input_quantizer=partial(LqActivation, bits=2)))
    before = model[0].input_quantizer.basis.clone()
    bnn.calibrate(model, batches)
    assert not torch.equal(model[0].input_quantizer.basis, before)


@pytest.mark.parametrize("name", configs.NAMES)
def test_every_config(name):
    weight, given = configs.factories()[name]
    model = nn.Sequential(nn.Linear(6, 8), QuantLinear(8, 8, weight_quantizer=weight, input_quantizer=given))
    bnn.calibrate(model, [torch.randn(16, 6)])
    assert not list(uninitialized(model))
    model.eval()(torch.randn(3, 6))  # warns of nothing


def test_what_draws_at_random_draws_nothing():
    layer = QuantLinear(4, 3, weight_quantizer=partial(LsqWeight, bits=2), input_quantizer=StochasticSign)
    after = QuantLinear(3, 3, weight_quantizer=XnorWeight, input_quantizer=partial(LsqActivation, bits=2))
    model, x = nn.Sequential(layer, after), torch.randn(5, 4)
    steps = [bnn.calibrate(copy.deepcopy(model), x)[1].input_quantizer.step for _ in range(2)]
    assert torch.equal(*steps)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.unused = QuantLinear(4, 4, **LSQ), QuantLinear(4, 4, **LSQ)

    def forward(self, a, b):
        return self.layer(a + b)


def test_kinds_of_batches():
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    for batch in ({"a": a, "b": b}, ((a, b), torch.zeros(3))):
        with pytest.warns(UserWarning, match=r"no batch reached .* unused.weight_quantizer, unused.input_quantizer"):
            model = bnn.calibrate(Named(), [batch])
        torch.testing.assert_close(model.layer.input_quantizer.step, 2 * (a + b).abs().mean() / 7**0.5)
    table = QuantEmbedding(5, 4, weight_quantizer=partial(LsqWeight, bits=2))
    bnn.calibrate(nn.Sequential(table), [torch.tensor([[1, 2]])])
    assert table.weight_quantizer.is_initialized()


@pytest.mark.parametrize(
    ("batches", "error", "words"),
    [
        ([], ValueError, "there are no batches"),
        (iter(()), ValueError, "there are no batches"),
        ([torch.zeros(0, 3, 8, 8)], ValueError, "without samples"),
        ([torch.randn(2, 3, 8, 8), torch.zeros(0, 3, 8, 8)], ValueError, "without samples"),
        (3, TypeError, "iterable of batches, got int"),
        ("digits", TypeError, "iterable of batches, got str"),
        ([3], TypeError, "a batch must be a tensor"),
        ([[]], TypeError, "a batch must be a tensor"),
    ],
)
def test_bad_batches_leave_the_model_as_it_was(batches, error, words):
    model = network(**LSQ)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=words):
        bnn.calibrate(model, batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(TypeError, match="takes a model"):
        bnn.calibrate([model], [torch.randn(2, 3, 8, 8)])


# -- warnings ---------------------------------------------------------------------------------------------------------


def test_an_evaluation_before_any_data_warns_once_and_names_the_paths():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 3, 1)
            self.body = network(**LSQ)

        def forward(self, x):
            return self.body(self.stem(x))

    model, x = Net().eval(), torch.randn(2, 3, 8, 8)
    with pytest.warns(UserWarning, match=r"Net is evaluated.* body\.0\.weight_quantizer, .*bnn\.calibrate") as found:
        model(x)
    assert len(found) == 1
    assert "body.3.input_quantizer" in str(found[0].message)
    model(x)  # warnings are errors
    with pytest.warns(UserWarning, match=r"Net is converted, .* body\.0\.weight_quantizer"):
        bnn.convert(model, x)


def test_conversion_warns_once():
    model = network(**LSQ).eval()
    with pytest.warns(UserWarning, match="Sequential is converted") as found:
        bnn.convert(model, torch.randn(1, 3, 8, 8))
    assert len(found) == 1


def test_what_began_warns_of_nothing():
    x = torch.randn(4, 8)
    for quantized in (LSQ, {"weight_quantizer": partial(DoReFaWeight, bits=2), "input_quantizer": FullPrecision}):
        model = nn.Sequential(QuantLinear(8, 8, **quantized))
        model.train()(x)
        model.eval()(x)
        copy.deepcopy(model)(x)
        fresh = nn.Sequential(QuantLinear(8, 8, **quantized)).eval()
        fresh.load_state_dict(model.state_dict())
        fresh(x)
    by_hand = nn.Sequential(QuantLinear(8, 8, **LSQ)).eval()
    for quantizer in (by_hand[0].weight_quantizer, by_hand[0].input_quantizer):
        quantizer.initialized.fill_(True)
    by_hand(x)


def test_dropout_between_quantizer_and_layer():
    dropped = partial(DroppedInput, partial(LsqActivation, bits=4, signed=True), p=0.5)
    model = nn.Sequential(QuantLinear(8, 8, weight_quantizer=XnorWeight, input_quantizer=dropped))
    x = torch.randn(4, 8)
    with pytest.warns(UserWarning, match=r"0\.input_quantizer\.quantizer"):
        copy.deepcopy(model).eval()(x)
    bnn.calibrate(model, x)
    torch.testing.assert_close(model[0].input_quantizer.quantizer.step, 2 * x.abs().mean() / 7**0.5)
    model.eval()(x)
