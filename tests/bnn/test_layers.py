"""Quantized layers: they compute what they say, in training and, exactly, in evaluation."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bnn_kernels import reference
from torch import nn

from bnn.latent import center_latent_weights, clip_latent_weights, latent_weights
from bnn.layers import QuantConv2d, QuantLinear
from bnn.quantizers import DoReFaActivation, DoReFaWeight, FullPrecision, SteSign, TernaryWeight, XnorWeight

PAIRS = [
    (XnorWeight, SteSign),
    (TernaryWeight, SteSign),
    (partial(TernaryWeight, per_channel=True), SteSign),
    (partial(DoReFaWeight, 2), partial(DoReFaActivation, 2)),
    (partial(DoReFaWeight, 8), partial(DoReFaActivation, 8)),
    (XnorWeight, partial(DoReFaActivation, 3)),
]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("bias", [True, False])
def test_training_is_the_plain_operation_on_quantized_tensors(pair, bias):
    weight_quantizer, input_quantizer = pair
    layer = QuantConv2d(4, 6, 3, padding=1, stride=2, groups=2, bias=bias, weight_quantizer=weight_quantizer,
                        input_quantizer=input_quantizer)  # fmt: skip
    x = draw(2, 4, 7, 8)
    w, a = layer.weight_quantizer(layer.weight), layer.input_quantizer(x)
    expected = F.conv2d(a, w, layer.bias, 2, 1, 1, 2)
    assert torch.equal(layer(x), expected)
    linear = QuantLinear(5, 3, bias, weight_quantizer=weight_quantizer, input_quantizer=input_quantizer)
    x = draw(4, 5)
    expected = F.linear(linear.input_quantizer(x), linear.weight_quantizer(linear.weight), linear.bias)
    assert torch.equal(linear(x), expected)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("pad_value", [0, 1])
def test_evaluation_sums_integers_then_scales(pair, pad_value):
    weight_quantizer, input_quantizer = pair
    layer = QuantConv2d(5, 6, 3, padding=1, weight_quantizer=weight_quantizer, input_quantizer=input_quantizer,
                        pad_value=pad_value).eval()  # fmt: skip
    x = draw(2, 5, 6, 7)
    (w,), (a,) = layer.weight_quantizer.planes(layer.weight).terms, layer.input_quantizer.planes(x).terms
    pad_level = 0 if pad_value == 0 else a.max_level  # +1 is the largest level of all of these
    dot = reference.conv2d(a.levels().numpy(), w.levels().numpy(), 1, 1, 1, 1, pad_level)
    scale = (w.scale * a.scale).detach().expand(6).reshape(-1, 1, 1)
    expected = torch.from_numpy(dot).float() * scale + layer.bias.detach().reshape(-1, 1, 1)
    with torch.no_grad():
        assert torch.equal(layer(x), expected)
    # The same numbers as in training but for float rounding.
    np.testing.assert_allclose(layer.train()(x).detach(), expected, rtol=1e-4, atol=1e-5)


def test_exact_sums_beyond_float32():
    """8-bit levels over 600 inputs pass 2^24: the sums are still exact."""
    layer = QuantLinear(600, 2, False, weight_quantizer=partial(DoReFaWeight, 8),
                        input_quantizer=partial(DoReFaActivation, 8)).eval()  # fmt: skip
    x = torch.rand(3, 600)
    (w,), (a,) = layer.weight_quantizer.planes(layer.weight).terms, layer.input_quantizer.planes(x).terms
    dot = a.levels().long() @ w.levels().long().T
    with torch.no_grad():
        assert torch.equal(layer.dot(a, w).long(), dot)
    assert (600 * 255 * 255) > 2**24


@pytest.mark.parametrize("pair", PAIRS)
def test_gradients_in_evaluation_are_those_of_training(pair):
    layer = QuantConv2d(3, 4, 3, padding=1, weight_quantizer=pair[0], input_quantizer=pair[1])
    gradients = []
    for mode in (True, False):
        x = draw(2, 3, 5, 5).requires_grad_()
        layer.train(mode).zero_grad()
        (layer(x) ** 2).sum().backward()
        gradients.append((x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_input_scale_is_the_papers_k(groups):
    layer = QuantConv2d(4, 6, (3, 2), stride=2, padding=(1, 0), groups=groups, weight_quantizer=XnorWeight,
                        input_quantizer=SteSign, input_scale=True).eval()  # fmt: skip
    x = draw(2, 4, 8, 7)
    k = reference.input_scale(x.numpy(), (3, 2), 2, (1, 0), 1, groups)
    dot = F.conv2d(layer.input_quantizer(x), layer.weight_quantizer(layer.weight), None, 2, (1, 0), 1, groups)
    expected = dot.detach().numpy() * k.repeat(6 // groups, 1) + layer.bias.detach().numpy()[:, None, None]
    for mode in (True, False):
        np.testing.assert_allclose(layer.train(mode)(x).detach(), expected, rtol=1e-4, atol=1e-5)
    linear = QuantLinear(9, 4, False, weight_quantizer=XnorWeight, input_quantizer=SteSign, input_scale=True)
    x = draw(3, 9)
    dot = linear.input_quantizer(x) @ linear.weight_quantizer(linear.weight).T
    torch.testing.assert_close(linear(x), dot * x.abs().mean(1, keepdim=True))


def test_same_and_valid_padding():
    for padding, kernel, expected in (("same", 3, (1, 1)), ("same", (5, 1), (2, 0)), ("valid", 3, (0, 0))):
        assert QuantConv2d(2, 2, kernel, padding=padding).padding == expected


def test_full_precision_layers_are_torchs():
    torch.manual_seed(1)
    ours = QuantConv2d(3, 4, 3, padding=1)
    torch.manual_seed(1)
    theirs = nn.Conv2d(3, 4, 3, padding=1)
    x = draw(1, 3, 5, 5)
    assert torch.equal(ours(x), theirs(x))
    assert isinstance(ours.weight_quantizer, FullPrecision)


def test_each_layer_has_its_own_quantizer():
    factory = partial(SteSign, clip=0.5)
    a, b = (QuantLinear(2, 2, input_quantizer=factory) for _ in range(2))
    assert a.input_quantizer is not b.input_quantizer
    assert a.input_quantizer.clip == 0.5


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: QuantLinear(2, 2, weight_quantizer=SteSign()), TypeError, "factory"),
        (lambda: QuantLinear(2, 2, weight_quantizer=nn.ReLU), TypeError, "must make a .*Quantizer"),
        (lambda: QuantConv2d(2, 2, 3, pad_value=2), ValueError, "pad_value"),
        (lambda: QuantConv2d(2, 2, 3, padding="full"), ValueError, "'same' or 'valid'"),
        (lambda: QuantConv2d(2, 2, 3, padding="same", stride=2), ValueError, "stride 1"),
        (lambda: QuantConv2d(2, 2, 2, padding="same"), ValueError, "lopsided"),
        (lambda: QuantConv2d(2, 2, 3, input_scale=True), ValueError, "input_quantizer"),
    ],
)
def test_bad_arguments_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_pad_value_that_the_input_cannot_have_is_refused():
    layer = QuantConv2d(2, 2, 3, padding=1, pad_value=-1, weight_quantizer=XnorWeight,
                        input_quantizer=partial(DoReFaActivation, 2)).eval()  # fmt: skip
    with pytest.raises(ValueError, match=r"pad_value -1 is not a value of DoReFaActivation"):
        layer(draw(1, 2, 4, 4))


def test_latent_weights():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        QuantConv2d(4, 4, 3, weight_quantizer=XnorWeight),
        QuantLinear(4, 2),
        nn.Sequential(QuantLinear(2, 2, weight_quantizer=SteSign)),
    )
    assert [name for name, _ in latent_weights(model)] == ["1.weight", "3.0.weight"]
    before = model[0].weight.clone()
    for _, weight in latent_weights(model):
        weight.data.mul_(10)
    center_latent_weights(model)
    assert model[1].weight.mean(1).abs().max() < 1e-5
    clip_latent_weights(model, 0.5)
    assert model[1].weight.abs().max() == 0.5
    assert torch.equal(model[0].weight, before)
