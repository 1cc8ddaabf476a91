"""Levels whose scale or zero follows the input are multiplied as integers, and scaled after the sum."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conversion import check, images
from torch import nn

import bnn
from bnn.converter import ConversionError
from bnn.converter.recognize.staircase import quantizer_of, staircase


def largest(x, axes=-1):
    return x.abs().amax(axes, keepdim=True)


def signs(x):
    return torch.where(x >= 0, 1.0, -1.0)


def through(q, x):
    return x + (q - x).detach()


def asymmetric(x, axes, bits):
    low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    scale = (high - low).clamp(min=1e-5) / (2**bits - 1)
    zero = (-low / scale).round()
    return ((x / scale).round() + zero).clamp(0, 2**bits - 1).sub(zero) * scale


def from_the_lowest(x):
    low, high = torch.aminmax(x, dim=-1, keepdim=True)
    scale = (high - low) / 15
    return ((x - low) / scale).round() * scale + low


def without_axis(x):
    scale = (127 / x.abs().max(-1)[0].clamp_(min=1e-5)).unsqueeze(-1)
    return (x * scale).round().clamp(-128, 127) / scale


def cast(x):
    scale = 127 / largest(x)
    return (x * scale).round().clamp(-128, 127).to(torch.int8) / scale


def ternary(x):
    delta = 0.7 * x.abs().mean(-1, keepdim=True)
    return torch.where(x > delta, 1.0, torch.where(x < -delta, -1.0, 0.0)) * largest(x)


# Of tokens (N, T, C).
OF_TOKENS = {
    "reciprocal": lambda x: through((x * (s := 127 / largest(x).clamp(min=1e-5))).round().clamp(-128, 127) / s, x),
    "divided": lambda x: (x / (s := largest(x) / 127)).round().clamp(-127, 127) * s,
    "never clamped": lambda x: torch.round(x * (s := 7 / (largest(x) + 1e-8))) / s,
    "through the rounding": lambda x: ((y := x / (s := largest(x) / 7)) + (y.round() - y).detach()).clamp(-7, 7) * s,
    "of the mean": lambda x: (x * (s := 2.6 / x.abs().mean(-1, keepdim=True))).round().clamp(-8, 7) / s,
    "with a zero": lambda x: asymmetric(x, -1, 8),
    "from the lowest": from_the_lowest,
    "of the image": lambda x: (
        (x * (s := 127 / x.flatten(1).abs().max(1)[0].view(-1, 1, 1))).round().clamp(-128, 127) / s
    ),
    "without its axis": without_axis,
    "as int8": cast,
    "signs": lambda x: signs(x) * x.abs().mean(-1, keepdim=True).expand_as(x),
    "ternary": ternary,
    "standardized": lambda x: torch.sign((x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)),
    "above the mean": lambda x: (x > x.mean(-1, keepdim=True)).float(),
}
# Of maps (N, C, H, W); 1x1 filters take scales of each place.
OF_MAPS = {
    "of the image": (lambda x: (x * (s := 127 / largest(x, (1, 2, 3)))).round().clamp(-128, 127) / s, 3),
    "with a zero": (lambda x: asymmetric(x, (1, 2, 3), 4), 3),
    "of the place": (lambda x: signs(x) * x.abs().mean(1, keepdim=True), 1),
    "normalized": (lambda x: torch.sign(x / torch.sqrt((x * x).mean((1, 2, 3), keepdim=True) + 1e-6) - 0.3), 3),
    "var_mean": (lambda x: torch.sign((x - (v := torch.var_mean(x, (2, 3), keepdim=True))[1]) * v[0].rsqrt()), 3),
    "norm": (lambda x: signs(x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1) - 0.01), 3),
}


class Layer(nn.Module):
    """A layer of ternary weights on what a function makes of its inputs."""

    def __init__(self, quantize, *shape, **options):
        super().__init__()
        self.quantize, self.options = quantize, options
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.randn(shape[0]))

    def forward(self, x):
        size = self.weight.abs().mean()
        weight = (self.weight / size).round().clamp(-1, 1) * size
        function = F.linear if weight.ndim == 2 else F.conv2d
        return function(self.quantize(x), weight, self.bias, **self.options)


def answers_alike(network, x):
    """Convert; both answer alike, but for levels within rounding of their thresholds. Return the packed network."""
    packed = bnn.convert(network.eval(), x[:1])
    with torch.no_grad():
        expected = network(x).numpy()
    apart = np.abs(packed(x.numpy()) - expected).reshape(len(x), -1).max(1)
    assert (apart > 1e-5 * np.abs(expected).max()).mean() <= 0.1
    return packed


def binary_steps(packed):
    return [step.op for step in packed.steps if step.op.startswith("binary")]


@pytest.mark.parametrize("name", OF_TOKENS)
def test_scales_of_tokens(name):
    torch.manual_seed(0)
    packed = answers_alike(nn.Sequential(nn.LayerNorm(20), Layer(OF_TOKENS[name], 12, 20)), torch.randn(20, 5, 20))
    assert binary_steps(packed) == ["binary_conv"]
    tables = [step for step in packed.steps if "thresholds" in step.tensors]
    assert all(len(step.tensors["thresholds"]) < 3 for step in tables), "levels that round need no table"


@pytest.mark.parametrize("name", OF_MAPS)
def test_scales_of_maps(name):
    torch.manual_seed(0)
    quantize, kernel = OF_MAPS[name]
    layer = Layer(quantize, 12, 8, kernel, kernel, padding=kernel // 2, stride=1 + kernel // 2)
    packed = answers_alike(nn.Sequential(nn.Conv2d(3, 8, 3), layer), torch.randn(20, 3, 9, 9))
    assert binary_steps(packed) == ["binary_conv"]


def test_parity_with_comparisons_and_integers():
    torch.manual_seed(0)
    network = nn.Sequential(Layer(cast, 32, 20), Layer(ternary, 10, 32)).eval()
    x = torch.randn(20, 20)
    assert bnn.check_parity(network, bnn.convert(network, x), x).ok


def test_vectors_of_two_layers():
    torch.manual_seed(0)
    network = nn.Sequential(Layer(without_axis, 32, 20), nn.SiLU(), Layer(from_the_lowest, 10, 32))
    assert binary_steps(answers_alike(network, torch.randn(20, 20))) == ["binary_linear"] * 2


def test_a_scale_that_no_sum_can_follow_stays_in_floats():
    torch.manual_seed(0)
    for quantize, shape in (
        (lambda x: signs(x) * x.abs().mean((2, 3), keepdim=True), (12, 8, 3, 3)),  # of each channel
        (lambda x: signs(x) * x.abs().mean(1, keepdim=True), (12, 8, 3, 3)),  # of each place
        (lambda x: (x / x.std((1, 2, 3), keepdim=True) * 40).round(), (12, 8, 3, 3)),  # of no largest number
    ):
        network = nn.Sequential(nn.Conv2d(3, 8, 3), Layer(quantize, *shape))
        assert binary_steps(answers_alike(network, torch.randn(8, 3, 9, 9))) == []


class Residual(nn.Module):
    """Levels of two steps added up, and a layer of ternary weights on the sum."""

    def __init__(self, end, *steps):
        super().__init__()
        self.end, self.steps = end, steps
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.layer = Layer(lambda x: x, 4, 8, 3, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        a, b = ((y / step).round().clamp(-4, 3) * step for y, step in zip((x, self.second(x)), self.steps, strict=True))
        return self.layer(self.end(a + b))


@pytest.mark.parametrize(
    ("end", "steps", "levels"),
    [
        (nn.Identity(), (0.3, 0.3), "A4"),  # -8 .. 6
        (F.relu, (0.3, 0.3), "A3"),  # 0 .. 6
        (nn.MaxPool2d(2), (0.3, 0.3), "A4"),
        (nn.Identity(), (0.3, 0.2), None),
        (nn.Hardtanh(-0.5, 0.5), (0.3, 0.3), None),
    ],
)
def test_sums_of_levels_with_one_step_are_levels(end, steps, levels):
    torch.manual_seed(0)
    packed = answers_alike(Residual(end, *steps), torch.randn(8, 3, 9, 9))
    assert [cost.precision for cost in packed.costs() if cost.op == "binary_conv"] == [f"W2{levels}"] * bool(levels)


ALPHA = torch.tensor([0.5, 0.7, 1.0, 1.3, 0.4, 2.0, 0.9, 1.1]).reshape(-1, 1, 1)


def of_channels(x):
    return (torch.minimum(x.relu(), ALPHA) * (15 / ALPHA)).round()


@pytest.mark.parametrize("groups", [1, 8])
def test_roundings_with_ends_of_each_channel(groups):
    """Levels alone can be summed; those times a scale of each channel only where no sum goes over channels."""
    torch.manual_seed(0)
    for quantize, bits in ((of_channels, True), (lambda x: of_channels(x) * (ALPHA / 15), groups == 8)):
        layer = Layer(quantize, 16, 8 // groups, 3, 3, groups=groups, padding=1)
        packed = answers_alike(nn.Sequential(nn.Conv2d(3, 8, 3), layer), torch.randn(20, 3, 9, 9))
        assert binary_steps(packed) == ["binary_conv"] * bits


def test_a_scale_of_the_batch_is_refused_with_what_to_write():
    network = nn.Sequential(Layer(lambda x: (x * (s := 127 / x.abs().max())).round() / s, 12, 20)).eval()
    with pytest.raises(ConversionError, match=r"goes over the batch.*reduce each image by itself, over dim=\(1,\)"):
        bnn.convert(network, torch.randn(2, 20))


def test_a_staircase_that_rounds_is_told_as_a_rounding():
    for scale in (3.0, 7.3, 1 / 0.37, 1e-4, 12345.6):
        for divides in (True, False):
            quantizer = quantizer_of(
                staircase(lambda x, s=scale, d=divides: (x / s if d else x * s).clamp(-5, 9).round() / 3)
            )
            found = quantizer.uniform
            x = torch.cat([quantizer.starts, quantizer.starts.nextafter(torch.tensor(-1e9)), torch.randn(1000) * scale])
            made = (x / found.factor if found.divides else x * found.factor).clamp(found.low, found.high).round()
            assert torch.equal(made, (quantizer(x) * 3).round())
    assert quantizer_of(staircase(lambda x: (x > 0.1).float() + (x > 0.2) + (x > 0.9))).uniform is None


@pytest.mark.parametrize("kind", ["sqrt", "rsqrt", "reciprocal", "round", "floor", "ceil", "trunc"])
def test_functions_that_scales_are_made_of(kind):
    class Function(nn.Module):
        def forward(self, x):
            return getattr(torch, kind)(x.abs() + 0.5)

    x = torch.cat([torch.randn(50, 8) * 10, torch.arange(-4.0, 4.0)[None]])
    packed = bnn.convert(Function().eval(), x[:1])
    rtol = 2e-7 if "sqrt" in kind else 0
    np.testing.assert_allclose(packed(x.numpy()), Function()(x).numpy(), rtol=rtol, atol=0)


def test_the_deviation_of_a_large_map_is_not_held_against_rounded_sums():
    """65,536 squares, many of them alike: added up one after the other in float32 they are off by 1e-4 of their sum."""

    class Standardized(nn.Module):
        def forward(self, x):
            x = 1.04 * nn.functional.hardtanh(x)
            return x / x.std((1, 2, 3), keepdim=True)

    check(Standardized().eval(), 9 * images(2, 64, 32, 32))
