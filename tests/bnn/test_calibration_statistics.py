"""Bias correction and statistics of batch norms: means of outputs are those of the float network, layer after layer."""

import copy
from functools import partial

import pytest
import torch
from conversion import check
from torch import nn

import bnn
from bnn.calibration import correct_bias, reestimate_batch_norm
from bnn.layers.base import QuantLayer
from bnn.quantizers import LsqActivation, LsqWeight

COARSE = {
    "weight_quantizer": partial(LsqWeight, bits=3),
    "input_quantizer": partial(LsqActivation, bits=3, signed=True),
    "skip": (),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def network():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, stride=2), nn.ReLU(),
        nn.Flatten(2), nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 3),
    )  # fmt: skip
    with torch.no_grad():
        model(torch.randn(64, 3, 6, 6))  # statistics
    return model.eval()


def means_of_layers(model, batches, kinds):
    """{path: mean of the output of each channel}, all batches at once."""
    found = {}

    def keep(path, y, axis):
        found.setdefault(path, []).append(y.detach().double().movedim(axis, 0).flatten(1))

    handles = [
        module.register_forward_hook(
            lambda m, _given, y, path=path: keep(path, y, -1 if isinstance(m, nn.Linear) else 1)
        )
        for path, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for handle in handles:
        handle.remove()
    return {path: torch.cat(parts, 1).mean(1) for path, parts in found.items()}


@pytest.mark.parametrize("sizes", [[40], [7, 20, 13]])
def test_means_of_all_layers_are_those_of_the_float_network(sizes):
    original = network()
    batches = (torch.randn(sum(sizes), 3, 6, 6) + 0.2).split(sizes)
    model = bnn.calibrate(bnn.quantize(original, **COARSE), batches, "min_max")
    kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
    expected, before = (means_of_layers(m.eval(), batches, kinds) for m in (original, model))
    assert len(expected) == 4
    assert all(float((before[path] - expected[path]).abs().max()) > 1e-3 for path in expected)
    state = copy.deepcopy(original.state_dict())
    assert correct_bias(model, original, batches) is model
    after = means_of_layers(model, batches, kinds)
    for path, mean in expected.items():
        torch.testing.assert_close(after[path], mean, rtol=1e-4, atol=2e-6)
    assert all(torch.equal(value, state[name]) for name, value in original.state_dict().items())
    check(model, batches[0])


def test_layers_that_are_called_several_times_count_all_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x), self.layer(2 * x)

    original = Twice().eval()
    x = torch.randn(50, 4)
    model = bnn.calibrate(bnn.quantize(original, **COARSE, example_input=x), x, "min_max").eval()
    correct_bias(model, original, [x, x[:20]])
    expected, found = (means_of_layers(m, [x, x[:20]], nn.Linear)["layer"] for m in (original, model))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_corrected():
    original, x = network(), torch.randn(4, 3, 6, 6)
    with pytest.raises(ValueError, match="no quantized layer"):
        correct_bias(original, original, x)
    model = bnn.calibrate(bnn.quantize(original, **COARSE), x, "min_max")
    with pytest.raises(ValueError, match=r"^6: the float network has no such layer there"):
        correct_bias(model, original[:6], x)
    with pytest.raises(ValueError, match="no batches"):
        correct_bias(model, original, [])


def test_statistics_are_the_means_over_batches():
    model = network().train()
    model[1].momentum, model[1].eps = 0.3, 1e-3
    batches = (torch.randn(30, 3, 6, 6) * 2 + 1).split(10)
    weight = model[0].weight.detach()
    expected = [nn.functional.conv2d(x, weight) for x in batches]
    modes = [module.training for module in model.modules()]
    assert reestimate_batch_norm(model, batches) is model
    torch.testing.assert_close(model[1].running_mean, torch.stack([y.mean((0, 2, 3)) for y in expected]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([y.var((0, 2, 3)) for y in expected]).mean(0))
    assert model[1].momentum == 0.3
    assert [module.training for module in model.modules()] == modes


def test_a_quantized_networks_outputs_are_normal_again():
    """With the batch's own statistics a batch norm's output has its bias as mean and its weight as deviation."""
    original, x = network(), torch.randn(200, 3, 6, 6) + 0.5
    reestimate_batch_norm(original, x)
    model = bnn.calibrate(bnn.quantize(original, weight_bits=2, activation_bits=2, skip=()), x, "min_max").eval()
    before = means_of_layers(model, [x], nn.BatchNorm2d)["1"]
    reestimate_batch_norm(model, x)
    after = means_of_layers(model, [x], nn.BatchNorm2d)["1"]
    assert float(before.abs().max()) > 0.02
    assert float(after.abs().max()) < 1e-5
    assert any(isinstance(module, QuantLayer) for module in model.modules())


def test_errors_leave_the_statistics():
    with pytest.raises(ValueError, match="no batch norm with running statistics"):
        reestimate_batch_norm(nn.Linear(2, 2), torch.randn(3, 2))
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="without samples"):
        reestimate_batch_norm(model, [torch.randn(4, 3, 6, 6), torch.zeros(0, 3, 6, 6)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[1].momentum == 0.1 and not model[1].training
