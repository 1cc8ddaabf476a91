"""Mixed precision: an evaluation's sums are the same integers, and layers of 16 bits round once."""

from functools import partial

import pytest
import quantizer_configs as configs
import torch
from torch import nn

from bnn.layers import (
    BitLinear,
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
    QuantEmbedding,
    QuantLinear,
)
from bnn.quantizers import DoReFaActivation, DoReFaWeight, FullPrecision, SteSign, XnorWeight

SIGNS = {"weight_quantizer": SteSign, "input_quantizer": SteSign}
XNOR = {"weight_quantizer": XnorWeight, "input_quantizer": SteSign}
BITS = {"weight_quantizer": partial(DoReFaWeight, bits=4), "input_quantizer": partial(DoReFaActivation, bits=4)}
LAYERS = {
    "conv1d": (lambda: QuantConv1d(400, 8, 3, **XNOR), (2, 400, 6)),
    "conv2d": (lambda: QuantConv2d(64, 8, 5, padding=1, **SIGNS), (2, 64, 7, 7)),
    "conv2d_pad": (lambda: QuantConv2d(64, 8, 5, padding=1, pad_value=1, **SIGNS), (2, 64, 7, 7)),
    "conv2d_bits": (lambda: QuantConv2d(64, 8, 5, **BITS), (2, 64, 7, 7)),
    "conv2d_k": (lambda: QuantConv2d(64, 8, 5, padding=2, input_scale=True, **XNOR), (2, 64, 7, 7)),
    "conv3d": (lambda: QuantConv3d(32, 4, 3, **XNOR), (1, 32, 4, 4, 4)),
    "transposed1d": (lambda: QuantConvTranspose1d(400, 8, 3, **XNOR), (2, 400, 6)),
    "transposed2d": (lambda: QuantConvTranspose2d(64, 8, 5, stride=2, **XNOR), (2, 64, 4, 4)),
    "transposed3d": (lambda: QuantConvTranspose3d(64, 4, 3, **XNOR), (1, 64, 3, 3, 3)),
    "linear": (lambda: QuantLinear(3000, 16, **XNOR), (3, 3000)),
    "linear_k": (lambda: QuantLinear(3000, 16, input_scale=True, **XNOR), (3, 5, 3000)),
    "bit_linear": (lambda: BitLinear(1000, 16, bias=True), (3, 5, 1000)),
    "weights_only": (lambda: QuantLinear(1000, 16, weight_quantizer=XnorWeight), (3, 1000)),
    "inputs_only": (lambda: QuantConv2d(16, 8, 3, input_quantizer=SteSign), (2, 16, 5, 5)),
}
each = pytest.mark.parametrize("name", LAYERS)
half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def lopsided(layer):
    """A layer whose sums are far from 0."""
    with torch.no_grad():
        for module in layer.modules():
            if hasattr(module, "weight_quantizer"):
                module.weight.copy_(torch.rand_like(module.weight) - 0.2)
    return layer


@half
@each
def test_an_evaluation_ignores_autocast(name, dtype):
    make, shape = LAYERS[name]
    layer, x = lopsided(make()).eval(), torch.randn(shape) + 1
    for given in (x, x.to(dtype).requires_grad_() if name != "bit_linear" else x):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                expected = layer(given.float())
                with torch.autocast("cpu", dtype):
                    found = layer(given)
            assert found.dtype == torch.float32
            assert torch.equal(found, expected)
            assert found.requires_grad == grad


@half
def test_an_embedding_ignores_autocast(dtype):
    table = QuantEmbedding(10, 8, weight_quantizer=XnorWeight)
    for mode in (True, False):
        expected = table.train(mode)(torch.arange(10))
        with torch.autocast("cpu", dtype):
            assert torch.equal(table(torch.arange(10)), expected)


@pytest.mark.parametrize("name", [n for n in configs.NAMES if n != "fp32"])
def test_every_quantizer_evaluates_alike_under_autocast(name):
    weight, given = configs.factories()[name]
    layer = QuantLinear(600, 5, weight_quantizer=weight, input_quantizer=given)
    x = torch.randn(7, 600)
    layer(x)
    if not layer.eval().weight_quantizer.packable:
        return  # evaluated with floats of the user's choice
    with torch.no_grad():
        expected = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer(x), expected)


def test_training_follows_autocast():
    layer = QuantLinear(30, 5, **XNOR)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(4, 30))
    assert y.dtype == torch.bfloat16
    layer = QuantLinear(30, 5, weight_quantizer=FullPrecision).eval()
    with torch.autocast("cpu", torch.bfloat16):  # no quantized layer at all
        assert layer(torch.randn(4, 30)).dtype == torch.bfloat16


@half
@each
def test_a_layer_of_16_bits_sums_exactly_and_rounds_once(name, dtype):
    if name in ("weights_only", "inputs_only", "bit_linear"):
        return  # no integers alone
    make, shape = LAYERS[name]
    layer = lopsided(make()).to(dtype).eval()
    x = (torch.randn(shape) + 1).to(dtype)
    with torch.no_grad():
        found = layer(x)
        expected = layer.float()(x.float())
    assert found.dtype == dtype
    assert torch.equal(found, expected.to(dtype))


def test_gradients_in_evaluation_are_those_without_autocast():
    layer = nn.Sequential(QuantConv2d(3, 4, 3, padding=1, **XNOR), QuantConv2d(4, 4, 3, **BITS)).eval()
    x = torch.randn(2, 3, 6, 6)
    gradients = []
    for enabled in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = layer(x)
        y.square().sum().backward()
        gradients.append([p.grad for p in layer.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


def test_a_scale_alone_may_learn_in_evaluation():
    layer = QuantLinear(
        4, 3, bias=False, weight_quantizer=partial(configs.factories()["xnorpp"][0]), input_quantizer=SteSign
    )
    layer.weight.requires_grad_(False)
    layer.eval()(torch.randn(2, 4)).sum().backward()
    assert layer.weight_quantizer.alpha.grad.abs().sum() > 0
