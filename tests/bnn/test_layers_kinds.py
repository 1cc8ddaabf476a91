"""Convolutions of every number of axes, transposed and depthwise ones, and embeddings against plain references."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from bnn_kernels import reference
from torch import nn

from bnn.latent import center_latent_weights
from bnn.layers import (
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
    QuantEmbedding,
    QuantLinear,
)
from bnn.layers.base import weight_planes
from bnn.quantizers import DoReFaActivation, DoReFaWeight, FullPrecision, SteSign, TernaryWeight, XnorWeight

PAIRS = [
    (XnorWeight, SteSign),
    (partial(TernaryWeight, per_channel=True), partial(DoReFaActivation, 2)),
    (partial(DoReFaWeight, 3), SteSign),
]
CONVS = [
    (QuantConv1d, F.conv1d, (2, 6, 9)),
    (QuantConv2d, F.conv2d, (2, 6, 7, 8)),
    (QuantConv3d, F.conv3d, (2, 6, 5, 4, 6)),
]


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def expected_of(layer, x, operate):
    """Sums of int64 levels, where nothing rounds, then the scales and the bias in the layer's order."""
    (w,), (a,) = weight_planes(layer).terms, layer.input_quantizer.planes(x).terms
    sums = operate(a.levels(torch.int64), w.levels(torch.int64))
    per_channel = [-1, *[1] * (x.ndim - 2)]
    scale = (w.scale * a.scale).detach()
    y = sums.float() * (scale if scale.ndim == 0 else scale.reshape(per_channel))
    return y if layer.bias is None else y + layer.bias.detach().reshape(per_channel)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("groups", [1, 2, 6])  # 6: depthwise
@pytest.mark.parametrize(("kind", "convolve", "shape"), CONVS)
def test_convolutions(kind, convolve, shape, groups, pair):
    layer = kind(6, 12, 3, stride=2, padding=1, groups=groups, weight_quantizer=pair[0], input_quantizer=pair[1])
    x = draw(*shape)
    w, a = layer.weight_quantizer(layer.weight), layer.input_quantizer(x)
    assert torch.equal(layer(x), convolve(a, w, layer.bias, 2, 1, 1, groups))

    def operate(a, w):  # int64 convolutions exist for no backend: floats of 64 bits hold these sums exactly
        return convolve(a.double(), w.double(), None, 2, 1, 1, groups)

    with torch.no_grad():
        assert torch.equal(layer.eval()(x), expected_of(layer, x, operate))


@pytest.mark.parametrize("pad_value", [0, 1, -1])
@pytest.mark.parametrize(("kind", "convolve", "shape"), CONVS)
def test_padding_on_each_side_with_a_value(kind, convolve, shape, pad_value):
    axes = len(shape) - 2
    padding = (2, 1, 0)[:axes]
    layer = kind(6, 4, 2, padding=padding, bias=False, weight_quantizer=SteSign, input_quantizer=SteSign,
                 pad_value=pad_value)  # fmt: skip
    x = draw(*shape)
    a = torch.where(x < 0, -1.0, 1.0)
    for axis, p in enumerate(padding, start=2):
        edge = torch.full((*a.shape[:axis], p, *a.shape[axis + 1 :]), float(pad_value))
        a = torch.cat([edge, a, edge], axis)
    expected = convolve(a, torch.where(layer.weight < 0, -1.0, 1.0))
    for mode in (True, False):
        assert torch.equal(layer.train(mode)(x), expected)


def test_conv1d_is_the_reference_convolution_of_height_one():
    layer = QuantConv1d(6, 4, 3, padding=2, dilation=2, bias=False, weight_quantizer=SteSign, input_quantizer=SteSign)
    x = draw(2, 6, 11)
    signs = [torch.where(t < 0, -1, 1).unsqueeze(2).numpy() for t in (x, layer.weight)]
    expected = reference.conv2d(*signs, 1, (0, 2), (1, 2))
    assert (layer.eval()(x).detach().numpy() == expected[:, :, 0]).all()


@pytest.mark.parametrize(("kind", "convolve", "shape"), CONVS)
def test_input_scale_is_a_mean_over_each_window(kind, convolve, shape):
    layer = kind(6, 2, 3, padding=1, bias=False, weight_quantizer=SteSign, input_quantizer=SteSign, input_scale=True)
    x = draw(*shape)
    axes = len(shape) - 2
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[axes]
    k = pool(x.abs().mean(1, keepdim=True), 3, 1, 1)
    sums = convolve(*(torch.where(t < 0, -1.0, 1.0) for t in (x, layer.weight)), padding=1)
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode)(x), sums * k)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("kind", "theirs", "convolve", "shape"),
    [
        (QuantConvTranspose1d, nn.ConvTranspose1d, F.conv1d, (5,)),
        (QuantConvTranspose2d, nn.ConvTranspose2d, F.conv2d, (5, 6)),
        (QuantConvTranspose3d, nn.ConvTranspose3d, F.conv3d, (3, 2, 4)),
    ],
)
def test_transposed_convolution_is_the_adjoint_of_the_convolution(kind, theirs, convolve, shape, groups, pair):
    layer = kind(4, 6, 3, stride=2, padding=1, output_padding=1, groups=groups, weight_quantizer=pair[0],
                 input_quantizer=pair[1])  # fmt: skip
    assert layer.weight.shape == theirs(4, 6, 3, groups=groups).weight.shape
    x = draw(2, 4, *shape)

    def operate(a, filters):
        w = torch.cat([part.transpose(0, 1) for part in filters.double().chunk(groups)])  # torch's order
        y = torch.zeros(2, 6, *(2 * side for side in shape), dtype=torch.float64, requires_grad=True)
        convolve(y, w, None, 2, 1, 1, groups).backward(a.double())
        return y.grad

    expected = expected_of(layer, x, operate)
    with torch.no_grad():
        assert torch.equal(layer.eval()(x), expected)
    torch.testing.assert_close(layer.train()(x), expected, rtol=1e-4, atol=1e-5)


def test_scales_of_a_transposed_convolution_belong_to_output_channels():
    layer = QuantConvTranspose2d(2, 4, 3, groups=2, weight_quantizer=XnorWeight)
    alpha = weight_planes(layer).terms[0].scale
    w = layer.weight.detach()  # (2, 2, 3, 3): input channel 0 makes outputs 0 and 1, input channel 1 makes 2 and 3
    torch.testing.assert_close(alpha, w.abs().mean((2, 3)).reshape(-1))
    assert torch.equal(layer.from_filters(layer.filters(layer.weight)), layer.weight)
    center_latent_weights(nn.Sequential(layer))
    assert layer.filters(layer.weight).mean(1).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["linear", "transposed", "conv3d"])
def test_gradients_in_evaluation_are_those_of_training(kind):
    quantizers = {"weight_quantizer": XnorWeight, "input_quantizer": SteSign}
    layer, shape = {
        "linear": (QuantLinear(6, 3, **quantizers), (2, 5, 6)),
        "transposed": (QuantConvTranspose2d(4, 6, 3, groups=2, **quantizers), (2, 4, 3, 3)),
        "conv3d": (QuantConv3d(2, 4, 2, **quantizers), (1, 2, 3, 4, 3)),
    }[kind]
    gradients = []
    for mode in (True, False):
        x = draw(*shape).requires_grad_()
        layer.train(mode).zero_grad()
        (layer(x) ** 2).sum().backward()
        gradients.append((x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()))
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_linear_takes_sequences():
    layer = QuantLinear(6, 3, weight_quantizer=XnorWeight, input_quantizer=SteSign).eval()
    x = draw(2, 5, 6)
    with torch.no_grad():
        assert torch.equal(layer(x), layer(x.reshape(10, 6)).reshape(2, 5, 3))
        assert torch.equal(layer(x[0, 0]), layer(x)[0, 0])


@pytest.mark.parametrize("quantizer", [FullPrecision, SteSign, XnorWeight, TernaryWeight, partial(DoReFaWeight, 4)])
def test_embedding(quantizer):
    layer = QuantEmbedding(10, 8, padding_idx=3, weight_quantizer=quantizer)
    indices = torch.tensor([[1, 3, 9], [1, 1, 0]])
    table = layer.weight_quantizer(layer.weight)
    for mode in (True, False):
        assert torch.equal(layer.train(mode)(indices), table[indices])
    if layer.weight_quantizer.packable:
        assert torch.equal(weight_planes(layer).value(), table)
    (layer(indices) ** 2).sum().backward()
    assert layer.weight.grad[3].abs().max() == 0
    assert layer.weight.grad[1].abs().max() > 0
    assert layer.weight.grad[5].abs().max() == 0


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (QuantConv1d(3, 3, 1), (3, 4)),
        (QuantConv2d(3, 3, 1), (3, 4, 4)),
        (QuantConv3d(3, 3, 1), (3, 4, 4, 4)),
        (QuantConvTranspose1d(3, 3, 1), (3, 4)),
        (QuantConvTranspose2d(3, 3, 1), (3, 4, 4)),
    ],
)
def test_inputs_without_a_batch_are_refused(layer, shape):
    with pytest.raises(ValueError, match=r"takes \(N, C, .* inputs"):
        layer(draw(*shape))
