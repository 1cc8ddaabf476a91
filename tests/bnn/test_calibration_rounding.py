"""AdaRound: rounded up or down alone, a smaller error of every layer's output than with the nearest values."""

import copy
from functools import partial

import pytest
import torch
from conversion import check
from torch import nn

import bnn
from bnn.calibration import adaptive_rounding
from bnn.layers.base import QuantLayer
from bnn.quantizers import LsqActivation, LsqWeight, XnorWeight


def quantized(original, x, bits, per_channel=True):
    weight = partial(LsqWeight, bits=bits, per_channel=per_channel)
    given = partial(LsqActivation, bits=8, signed=True)
    model = bnn.quantize(original, weight_quantizer=weight, input_quantizer=given, skip=())
    return bnn.calibrate(model, [x], "min_max", "mse").eval()


def correlated(n, *shape):
    """Inputs whose features go together, where rounding each weight by itself is not the best."""
    torch.manual_seed(1)
    return torch.randn(n, *[1] * len(shape)) + 0.4 * torch.randn(n, *shape) + 0.5


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2), nn.Flatten(), nn.Linear(100, 7), nn.ReLU(),
        nn.Linear(7, 3),
    ).eval()  # fmt: skip


def errors_of_layers(model, original, x):
    """{path: squared error of its output, behind quantized layers, to that of the float network}."""
    outputs = []
    for network in (original, model):
        found = {}
        handles = [
            module.register_forward_hook(lambda _m, _given, y, path=path, found=found: found.setdefault(path, y))
            for path, module in network.named_modules()
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
        ]
        with torch.no_grad():
            network(x)
        for handle in handles:
            handle.remove()
        outputs.append(found)
    return {path: float(((y - outputs[1][path]) ** 2).sum()) for path, y in outputs[0].items()}


@pytest.mark.parametrize("bits", [2, 4])
def test_outputs_come_closer_than_with_the_nearest_values(network, bits):
    x = correlated(64, 4, 6, 6)
    model = quantized(network, x, bits)
    steps = {path: q.step.detach().clone() for path, q in model.named_modules() if isinstance(q, LsqWeight)}
    latent = {path: m.weight.detach().clone() for path, m in model.named_modules() if isinstance(m, QuantLayer)}
    nearest = errors_of_layers(model, network, x)
    assert adaptive_rounding(model, network, x.split(16), iterations=100) is model
    found = errors_of_layers(model, network, x)
    assert all(found[path] < nearest[path] for path in found)
    assert sum(found.values()) < 0.8 * sum(nearest.values())
    for path, q in model.named_modules():
        if isinstance(q, LsqWeight):
            assert torch.equal(q.step, steps[path])
    moved = 0
    for path, before in latent.items():
        layer = model.get_submodule(path)
        filters, step = layer.filters(before), layer.weight_quantizer.step.detach()
        ratio = filters / step.reshape(-1, *[1] * (filters.ndim - 1))
        levels = layer.weight_quantizer.planes(layer.filters(layer.weight)).terms[0].levels()
        low, high = layer.weight_quantizer.bounds
        # Up or down, and clipped where nearest rounding clips.
        assert ((levels == ratio.floor().clamp(low, high)) | (levels == ratio.ceil().clamp(low, high))).all()
        moved += int((levels != ratio.round().clamp(low, high)).sum())
        assert torch.equal(layer.weight, layer.from_filters(layer.weight_quantizer(layer.filters(layer.weight))))
    assert moved > 0
    if bits == 4:
        check(model, x)


def test_the_best_of_all_roundings_is_found():
    """For one filter of five weights, all 2^5 roundings can be tried."""
    x = correlated(200, 5)
    torch.manual_seed(5)
    original = nn.Sequential(nn.Linear(5, 1, bias=False)).eval()
    model = quantized(original, x, 3, per_channel=False)
    step = model[0].weight_quantizer.step.detach()
    down = (original[0].weight.detach() / step).floor()
    with torch.no_grad():
        inputs, expected = model[0].input_quantizer(x), original(x)
        ups = torch.tensor([[[i >> k & 1 for k in range(5)]] for i in range(32)])
        errors = [float(((inputs @ ((down + up).clamp(-4, 3) * step).T - expected) ** 2).mean()) for up in ups]
        nearest = float(((model(x) - expected) ** 2).mean())
    adaptive_rounding(model, original, x, iterations=200)
    with torch.no_grad():
        found = float(((model(x) - expected) ** 2).mean())
    assert min(errors) < 0.7 * nearest
    assert found <= sorted(errors)[1] + 1e-9


def test_results_depend_on_the_seed_alone(network):
    x = correlated(32, 4, 6, 6)
    model = quantized(network, x, 4)
    made = []
    for _ in range(2):
        torch.rand(3)
        before = torch.get_rng_state()
        made.append(adaptive_rounding(copy.deepcopy(model), network, x, iterations=20).state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, made[1][name]) for name, value in made[0].items())


def test_what_cannot_be_rounded(network):
    x = correlated(8, 4, 6, 6)
    with pytest.raises(ValueError, match="no layer with evenly spaced weights of at most 4 bits"):
        adaptive_rounding(quantized(network, x, 8), network, x)
    binary = bnn.quantize(network, weight_quantizer=XnorWeight, skip=())
    with pytest.raises(ValueError, match="no layer with evenly spaced weights"):
        adaptive_rounding(binary, network, x)
    with pytest.raises(ValueError, match=r"^0: the float network has no such layer there"):
        adaptive_rounding(quantized(network, x, 4), network[1:], x)
    with pytest.raises(ValueError, match="at least 1"):
        adaptive_rounding(quantized(network, x, 4), network, x, iterations=0)
