"""Modules beside the usual ones: windows of several sizes, resizing, transposed convolutions, tokens, normalization."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conversion import check, images, upset
from torch import nn

import bnn
from bnn.converter import ConversionError
from bnn.layers import QuantConv2d, QuantConvTranspose1d, QuantConvTranspose2d, QuantEmbedding, QuantLinear
from bnn.quantizers import AdaBinActivation, DoReFaActivation, FullPrecision, LqActivation, RSign, SteSign, XnorWeight

BINARY = partial(QuantConv2d, weight_quantizer=XnorWeight, input_quantizer=SteSign)
LINEAR = partial(QuantLinear, weight_quantizer=XnorWeight, input_quantizer=SteSign)

ON_MAPS = [
    nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.MaxPool2d((3, 2), 2, 1, ceil_mode=True),
    nn.MaxPool2d(3, 2, 1, dilation=2),
    nn.MaxPool2d((2, 3), 3, 1, dilation=(3, 2), ceil_mode=True),
    nn.AvgPool2d(3, 2, ceil_mode=True),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True, divisor_override=5),
    nn.AdaptiveAvgPool2d((3, 4)),
    nn.AdaptiveAvgPool2d((None, 12)),
    nn.AdaptiveMaxPool2d(4),
    nn.Upsample(scale_factor=2),
    nn.Upsample((7, 13), mode="nearest-exact"),
    nn.Upsample((7, 13), mode="bilinear"),
    nn.Upsample(scale_factor=1.5, mode="bicubic", align_corners=True),
    nn.UpsamplingBilinear2d(scale_factor=2),
    nn.Upsample((5, 23), mode="bicubic"),
    nn.PixelShuffle(2),
    nn.PixelUnshuffle(2),
    nn.ReflectionPad2d((1, 2, 0, 3)),
    nn.ReplicationPad2d(1),
    nn.CircularPad2d(1),
    nn.Conv2d(8, 3, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(8, 3, 3, padding="same", padding_mode="circular"),
    nn.GroupNorm(4, 8),
    nn.InstanceNorm2d(8, affine=True),
    nn.LayerNorm([8, 8, 10]),
    nn.LayerNorm(10),
    nn.Softmax2d(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.ELU(),
    nn.Softplus(),
    nn.LogSigmoid(),
    nn.Mish(),
    nn.Softsign(),
    nn.LogSoftmax(1),
]
ON_SEQUENCES = [
    nn.MaxPool1d(3, 2, ceil_mode=True),
    nn.MaxPool1d(3, 2, 1, dilation=2),
    nn.AvgPool1d(3, 2, 1, ceil_mode=True),
    nn.AdaptiveAvgPool1d(4),
    nn.Upsample(scale_factor=2),
    nn.Upsample(scale_factor=1.5, mode="linear"),
    nn.Upsample(23, mode="linear", align_corners=True),
    nn.ReflectionPad1d(2),
    nn.ConvTranspose1d(8, 4, 4, 2, 1),
    QuantConvTranspose1d(8, 4, 4, 2, 1, weight_quantizer=XnorWeight, input_quantizer=SteSign),
    nn.ConvTranspose1d(8, 4, 5, 3, dilation=2, groups=2),
    nn.InstanceNorm1d(8),
]


@pytest.mark.parametrize("module", ON_MAPS, ids=str)
def test_modules_on_maps(module, tmp_path):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    check(upset(nn.Sequential(BINARY(4, 8, 3, padding=1), module)), images(3, 4, 8, 10), tmp_path)


@pytest.mark.parametrize("module", ON_SEQUENCES, ids=str)
def test_modules_on_sequences(module, tmp_path):
    torch.manual_seed(0)
    check(upset(nn.Sequential(nn.Conv1d(4, 8, 3, padding=1), module)), images(3, 4, 10), tmp_path)


@pytest.mark.parametrize("given", [SteSign, partial(DoReFaActivation, 2)])
def test_pooled_by_windows_before_a_quantizer(given):
    torch.manual_seed(0)
    layer = partial(QuantConv2d, weight_quantizer=XnorWeight, input_quantizer=given)
    for pool in (nn.MaxPool2d(3, 2, ceil_mode=True), nn.AdaptiveMaxPool2d(4), nn.AvgPool2d(3, 2, ceil_mode=True)):
        network = nn.Sequential(layer(4, 8, 3), pool, nn.BatchNorm2d(8), layer(8, 6, 3))
        _, report = check(upset(network), images(6, 4, 12, 12))
        assert report.free.different_levels == 0


def test_spread_windows_pool_bits_and_integers():
    torch.manual_seed(0)
    pool = nn.MaxPool2d(3, 2, 1, dilation=2)
    network = nn.Sequential(BINARY(4, 8, 3), pool, nn.BatchNorm2d(8), BINARY(8, 6, 3))
    packed, report = check(upset(network), images(3, 4, 14, 14))
    assert "pool_bits" in [step.op for step in packed.steps]
    assert report.free.different_levels == 0
    two_bits = partial(QuantConv2d, weight_quantizer=XnorWeight, input_quantizer=partial(DoReFaActivation, 2))
    network = nn.Sequential(two_bits(4, 8, 3), pool, nn.BatchNorm2d(8), two_bits(8, 6, 3))
    packed, report = check(upset(network), images(3, 4, 14, 14))
    assert "pool_int" in [step.op for step in packed.steps]
    assert report.free.different_levels == 0


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [{"scale_factor": (2, 0.6)}, {"size": (5, 23)}])
def test_resizing_has_the_numbers_of_pytorch(mode, antialias, size):
    class Resized(nn.Module):
        def __init__(self, corners):
            super().__init__()
            self.corners = corners

        def forward(self, x):
            return F.interpolate(x, mode=mode, antialias=antialias, align_corners=self.corners, **size)

    x = images(2, 5, 9, 11)
    for corners in (False, True):
        network = Resized(corners).eval()
        expected = network(x).numpy()
        np.testing.assert_allclose(
            bnn.convert(network, x)(x.numpy()), expected, rtol=0, atol=1e-6 * abs(expected).max()
        )


def test_ceil_mode_that_changes_nothing_pools_bits():
    network = nn.Sequential(BINARY(4, 8, 3), nn.MaxPool2d(2, ceil_mode=True), nn.BatchNorm2d(8), BINARY(8, 6, 3))
    packed, _ = check(upset(network), images(3, 4, 10, 10))
    assert "pool_bits" in [step.op for step in packed.steps]


# kernel, stride, padding, output padding, dilation, groups
TRANSPOSED = [
    (4, 2, 1, 0, 1, 1),
    (3, 2, 1, 1, 1, 1),
    (3, 2, 0, 0, 1, 2),
    (5, 3, 2, 1, 1, 1),
    (2, 2, 0, 0, 1, 1),
    (3, 1, 1, 0, 2, 1),
    (4, 2, 3, 0, 3, 1),
    ((4, 3), (2, 1), (1, 1), (1, 0), (1, 2), 2),
]


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("geometry", TRANSPOSED, ids=str)
@pytest.mark.parametrize("given", [SteSign, partial(DoReFaActivation, 2), AdaBinActivation, FullPrecision])
def test_transposed_convolutions(geometry, given):
    torch.manual_seed(0)
    kernel, stride, padding, output_padding, dilation, groups = geometry
    layer = QuantConvTranspose2d(
        4, 6, kernel, stride, padding, output_padding, groups, True, dilation, weight_quantizer=XnorWeight,
        input_quantizer=given,
    )  # fmt: skip
    plain = nn.ConvTranspose2d(4, 6, kernel, stride, padding, output_padding, groups, False, dilation)
    packed, report = check(nn.Sequential(layer).eval(), images(3, 4, 5, 7))
    if given is not FullPrecision:
        assert report.max_difference == 0
        assert sum(step.nbytes for step in packed.steps if step.op == "binary_conv") < layer.weight.numel() * 4
    check(nn.Sequential(plain).eval(), images(3, 4, 5, 7))


class Block(nn.Module):
    """A mixer's block on tokens (N, T, K): over the tokens, and over the features."""

    def __init__(self, tokens, features, linear):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(features), nn.LayerNorm(features)
        self.mix = nn.Sequential(linear(tokens, 2 * tokens), nn.ReLU(), linear(2 * tokens, tokens))
        self.up, self.down = linear(features, 2 * features), linear(2 * features, features)
        self.gamma = nn.Parameter(torch.randn(features))
        self.places = nn.Parameter(torch.randn(1, tokens, features))

    def forward(self, x):
        x = x + self.places
        x = x + self.mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.gamma * self.down(F.hardswish(self.up(self.norm2(x)) * 0.7))


@pytest.mark.parametrize("linear", [LINEAR, partial(LINEAR, input_quantizer=partial(LqActivation, 2)), nn.Linear])
def test_tokens(linear, tmp_path):
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 4, 4)
            self.block = Block(9, 16, linear)
            self.head = linear(16, 5)

        def forward(self, x):
            return self.head(self.block(self.patches(x).flatten(2).transpose(1, 2)).mean(1))

    torch.manual_seed(0)
    _, report = check(upset(Mixer()), images(4, 3, 12, 12), tmp_path)
    if linear is not nn.Linear:
        # The levels of tokens are compared as well.
        assert sum(row.levels for row in report.steps) >= 5


class Attention(nn.Module):
    """Self-attention as vision transformers have it: the batch is for a while the second axis."""

    def __init__(self, linear, features=12, heads=3, fused=False, causal=False):
        super().__init__()
        self.qkv, self.out = linear(features, 3 * features), linear(features, features)
        self.heads, self.fused, self.causal = heads, fused, causal

    def forward(self, x):
        b, t, c = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            y = (q @ k.transpose(-2, -1) * 0.5).softmax(dim=-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, t, c))


@pytest.mark.parametrize("linear", [LINEAR, nn.Linear])
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"fused": True, "causal": True}], ids=str)
def test_attention(linear, options, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.LayerNorm(12), Attention(linear, **options), nn.Linear(12, 5))
    packed, _ = check(network.eval(), images(4, 7, 12), tmp_path)
    assert sum(step.op == "matmul" for step in packed.steps) == 2


def test_attention_modules():
    class Encoder(nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True, **options)
            self.register_buffer("mask", torch.eye(7, dtype=torch.bool).roll(1, 0))

        def forward(self, x, y):
            mixed, _ = self.attention(x, x, x, attn_mask=self.mask)
            return self.attention(mixed + x, y, y, need_weights=False)[0]

    for options in ({}, {"bias": False}):
        torch.manual_seed(0)
        check(Encoder(**options).eval(), (images(4, 7, 12), images(4, 5, 12, seed=3)))

    class Weights(Encoder):
        def forward(self, x):
            return self.attention(x, x, x)

    check(Weights().eval(), images(4, 7, 12))
    layer = nn.TransformerEncoderLayer(12, 4, 24, batch_first=True)  # which PyTorch runs by one kernel
    check(layer.eval(), images(4, 7, 12))
    with pytest.raises(ConversionError, match=r"^0"):

        class First(nn.Module):
            def __init__(self):
                super().__init__()
                self.add_module("0", nn.MultiheadAttention(12, 3))

            def forward(self, x):
                return getattr(self, "0")(x, x, x)[0]

        bnn.convert(First().eval(), images(1, 7, 12))


class Language(nn.Module):
    """A small language model with binary layers: embeddings, a token of its own, places, attention."""

    def __init__(self, **quantized):
        super().__init__()
        self.tokens, self.types = QuantEmbedding(11, 12, **quantized), nn.Embedding(2, 12)
        self.first = nn.Parameter(torch.randn(1, 1, 12))
        self.places = nn.Parameter(torch.randn(1, 9, 12))
        self.norm, self.attention, self.head = nn.LayerNorm(12), Attention(LINEAR), nn.Linear(12, 5)

    def forward(self, x, kinds):
        x = self.tokens(x) + self.types(kinds)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.places[:, : x.shape[1]]
        return self.head((x + self.attention(self.norm(x)))[:, 0])


class Backwards(nn.Embedding):
    def forward(self, x):
        return F.embedding(x.flip(1), self.weight)


@pytest.mark.parametrize("weight", [XnorWeight, FullPrecision])
def test_embeddings(weight, tmp_path):
    torch.manual_seed(0)
    network = Language(weight_quantizer=weight).eval()
    x = torch.randint(11, (6, 7)), torch.randint(2, (6, 7))
    packed, _ = check(network, x, tmp_path)
    assert packed.steps[0].op == "embedding"
    wrong = [part.numpy().copy() for part in x]
    wrong[0][0, 0] = 11
    with pytest.raises(ValueError, match="11 is no row of a table of 11"):
        packed(*wrong)
    with pytest.raises(ConversionError, match="an input of integers can be converted for embeddings only"):
        bnn.convert(nn.Sequential(nn.ReLU()).eval(), x[0])
    with pytest.raises(ConversionError, match=r"embedding: an embedding can be converted for integers"):
        bnn.convert(nn.Sequential(Backwards(11, 3)).eval(), x[0])


def test_linear_layers_on_any_number_of_axes():
    torch.manual_seed(0)
    for shape in ((6, 12), (6, 5, 12), (6, 3, 5, 12)):
        by_feature = LINEAR(12, 8, input_quantizer=RSign, input_scale=True)
        torch.nn.init.normal_(by_feature.input_quantizer.shift)
        network = nn.Sequential(nn.Linear(12, 12), by_feature, nn.ReLU(), nn.LayerNorm(8), LINEAR(8, 4))
        packed, _ = check(network.eval(), images(*shape))
        assert sum(step.op.startswith("binary") for step in packed.steps) == 2
        # Between layers tokens stay as they lie.
        assert sum(step.op in ("permute", "reshape") for step in packed.steps) == (0 if len(shape) == 2 else 2)


class Functional(nn.Module):
    """Functions and methods that networks of others call."""

    def __init__(self, forward):
        super().__init__()
        self.run, self.conv, self.scale = forward, BINARY(4, 8, 3, padding=1), nn.Parameter(torch.randn(8, 1, 10))

    def forward(self, x):
        return self.run(self, self.conv(x))


FUNCTIONS = {
    "interpolate": lambda m, x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "interpolate to a size": lambda m, x: F.interpolate(x, x.shape[2:] * 1, mode="bilinear", align_corners=False),
    "by area": lambda m, x: F.interpolate(x, (3, 4), mode="area"),
    "pixel shuffle": lambda m, x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 4),
    "transposed": lambda m, x: x.transpose(2, 3) + x.permute(0, 1, 3, 2),
    "repeated": lambda m, x: x.repeat(1, 2, 1, 1) + x.repeat_interleave(2, 1),
    "softmax": lambda m, x: F.log_softmax(F.softmax(x, dim=1) + x.softmax(2), dim=-1),
    "normalized": lambda m, x: F.layer_norm(x, (10,)),
    "scaled by place": lambda m, x: (x * m.scale + torch.arange(8.0)[:, None]) / m.scale,
    "mean": lambda m, x: x.mean(1, keepdim=True) * x.mean((1, 3), keepdim=True) + x.mean((1, 2))[:, None, None],
    "amax": lambda m, x: x.amax((2, 3)) * x.mean([2, 3]),
    "sizes": lambda m, x: F.avg_pool2d(x, x.size()[2:]).view(x.size(0), -1),
    "adaptive": lambda m, x: torch.flatten(F.adaptive_avg_pool2d(x, (3, 3)), 1),
    "transposed convolution": lambda m, x: F.conv_transpose2d(x, torch.ones(8, 2, 2, 2), stride=2),
    "sum": lambda m, x: x.sum(1, keepdim=True) / 8 + x.sum((1, 2))[:, None, None],
    "extremes": lambda m, x: torch.max(x, dim=1, keepdim=True)[0] + torch.maximum(x, x.flip(1)) * torch.minimum(x, -x),
    "products": lambda m, x: (
        x @ torch.eye(10)[:, :6] + torch.ones(8, 8) @ (x[..., :6] @ x[..., :6].transpose(2, 3)[:, :, :, :6])
    ),
    "a part, turned": lambda m, x: x.transpose(2, 3)[:, ::3, ::2].flip(2) * 2,
    "in disorder": lambda m, x: x.flatten(1)[:, torch.arange(640) * 77 % 640].view(-1, 8, 8, 10) + x,
    "along any axis": lambda m, x: torch.cat([x, torch.cat([x * 2, x], -1)[..., ::2]], 2),
    "with constants": lambda m, x: torch.cat(
        [
            m.scale[None, :2].expand(x.shape[0], 2, 8, 10),
            x,
            m.scale[None, :3, :, :].expand(x.shape[0], 3, 8, 10),
        ],
        1,
    ),
    "expanded": lambda m, x: x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 10) + x,
    "powers": lambda m, x: (x / 20) ** 2 + torch.exp(x / 20) * x.abs() / (1 + abs(x)),
    "signs": lambda m, x: torch.sign(x) + F.hardtanh(x.sign() * 3),
    "halves": lambda m, x: torch.cat([torch.chunk(x, 2, dim=1)[1], x[:, ::2], x[:, 3:4, ...]], dim=1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    torch.manual_seed(0)
    check(Functional(FUNCTIONS[name]).eval(), images(3, 4, 8, 10))


def test_signs_with_a_zero_feed_binary_layers():
    """torch.sign(0) is 0: three levels, which a layer behind them takes as bits."""
    torch.manual_seed(0)
    layer = QuantConv2d(4, 6, 3, weight_quantizer=XnorWeight)

    class Signs(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(torch.sign(F.relu(x)))

    packed, _ = check(Signs().eval(), images(3, 4, 8, 8).round())
    assert [step.op for step in packed.steps] == ["pack", "binary_conv"]
    assert packed.steps[0].attrs["multipliers"] == [1, -1]


def test_constants_line_up_with_the_last_axis_as_in_pytorch():
    class Shift(nn.Module):
        def __init__(self, shape):
            super().__init__()
            self.shift, self.conv = nn.Parameter(torch.randn(shape)), BINARY(8, 8, 1)

        def forward(self, x):
            return self.conv(x) + self.shift

    for shape in ((8,), (8, 8), (8, 1), (8, 1, 1), (1, 8, 1, 1), (1, 1, 1, 1), (8, 8, 8)):
        torch.manual_seed(0)
        check(Shift(shape).eval(), images(3, 8, 8, 8))


def test_summary_counts_a_transposed_convolution_once():
    layer = QuantConvTranspose2d(4, 6, 4, 2, 1, weight_quantizer=XnorWeight, input_quantizer=SteSign)
    packed = bnn.convert(nn.Sequential(layer).eval(), images(1, 4, 8, 8))
    macs = sum(cost.macs for cost in packed.costs())
    # Every weight meets every input position, but for rows that the padding takes off.
    assert 0.9 < macs / (layer.weight.numel() * 8 * 8) < 1.6
