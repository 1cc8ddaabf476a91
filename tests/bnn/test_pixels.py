"""Networks that take pixels: normalization inside, and first layers of 8-bit weights as exact integer layers."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conversion import check, upset
from torch import nn

import bnn
from bnn.converter import ConversionError
from bnn.data import Normalize
from bnn.layers import PixelNormalize, QuantConv1d, QuantConv2d, QuantLinear
from bnn.planes import Planes, PlanesError, Term
from bnn.quantizers import LsqWeight, PixelLevels, SteSign, TernaryWeight, XnorWeight

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
pixels_in = partial(PixelLevels, mean=MEAN, std=STD)
eight_bits = partial(LsqWeight, bits=8, per_channel=True)
stem = partial(QuantConv2d, weight_quantizer=eight_bits, input_quantizer=pixels_in)
binary = partial(QuantConv2d, weight_quantizer=XnorWeight, input_quantizer=SteSign)


def pixels(n, *shape, seed=0):
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def trained(model, x):
    """A model whose learned steps have seen their weights, with hostile batch norms."""
    torch.manual_seed(0)
    model.train()(x)
    return upset(model)


def test_every_pixel_in_plain_numbers():
    """(64 u - z) s with the mean in 64ths: within rounding of it, (u / 255 - mean) / std of one deviation for all."""
    quantizer = PixelLevels(MEAN, STD).eval()
    u = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    z = np.rint(64 * 255 * np.array(MEAN))
    step = np.float32(1 / (64 * 255 * np.mean(STD)))
    expected = (64 * u.numpy().astype(np.float32) - z.astype(np.float32).reshape(-1, 1, 1)) * step
    np.testing.assert_array_equal(quantizer(u), expected)
    np.testing.assert_array_equal(quantizer.planes(u).value(), expected)
    exact = (u.double().numpy() / 255 - np.array(MEAN).reshape(-1, 1, 1)) / np.mean(STD)
    assert np.abs(expected - exact).max() <= 0.51 / 64 / 255 / np.mean(STD)


def test_floats_are_rounded_to_pixels_with_a_gradient():
    quantizer = PixelLevels(0.5, 0.25)
    x = torch.tensor([[-3.0, 0.4, 127.5, 255.0, 300.0]], requires_grad=True)
    y = quantizer(x)
    torch.testing.assert_close(y, quantizer(torch.tensor([[0, 0, 128, 255, 255]], dtype=torch.uint8)), rtol=0, atol=0)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[0, 1, 1, 1, 0]]) / (255 * 0.25))


def test_normalization_is_that_of_the_data():
    x = pixels(2, 3, 5, 4)
    data = Normalize(torch.tensor(MEAN), torch.tensor(STD), 255)
    ours = PixelNormalize(MEAN, STD)
    torch.testing.assert_close(ours(x), data(x), rtol=0, atol=0)
    torch.testing.assert_close(ours(x.float()), data(x), rtol=0, atol=0)
    assert len(PixelNormalize(0.5, STD).mean) == len(PixelNormalize(0.5, STD).std) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": 124.0}, r"means must be in \[0, 1\]"),
        ({"std": 0.0}, "deviations must be positive"),
        ({"std": float("nan")}, "deviations must be positive"),
        ({"mean": (0.5, 0.5), "std": STD}, "mean has 2 channels, std 3"),
        ({"mean": MEAN, "channels": 1}, "mean has 3 channels, the input 1"),
        ({"mean": "grey"}, "mean must be a number"),
        ({"max_value": 65535}, "max_value must be in"),
    ],
)
@pytest.mark.parametrize("kind", [PixelLevels, PixelNormalize])
def test_statistics_that_are_not_those_of_pixels(kind, options, words):
    with pytest.raises(ValueError, match=words):
        kind(**options)


def test_zero_points_of_a_term():
    bits, one = torch.zeros(1, 2, 3, 4, dtype=torch.bool), torch.tensor(1.0)
    points = torch.tensor([1, 2, 3])
    assert Term(bits, False, (4,), one, points).levels()[0, :, 0].tolist() == [-1, -2, -3]
    for wrong in (points[:2], points.float(), 3):
        with pytest.raises(PlanesError, match=r"do not fit axis 1|must be an int64 tensor \(channels,\)"):
            Term(bits, False, (4,), one, wrong)
    with pytest.raises(PlanesError, match="signed=False"):
        Term(bits, True, (4,), one, points)


NETWORKS = {
    "imagenet": lambda: [stem(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), binary(16, 8, 3, padding=1)],
    "bias, pooling": lambda: [
        stem(3, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(20), binary(20, 8, 3),
    ],
    "floats out": lambda: [stem(3, 10, 5, padding=(2, 1), stride=(1, 2)), nn.BatchNorm2d(10), nn.Hardtanh()],
    "8 bits behind": lambda: [
        stem(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        QuantConv2d(16, 8, 3, weight_quantizer=eight_bits, input_quantizer=partial(bnn.quantizers.LsqActivation, 8)),
    ],
    "binary": lambda: [
        QuantConv2d(3, 16, 3, padding=1, weight_quantizer=XnorWeight, input_quantizer=pixels_in), nn.BatchNorm2d(16),
    ],
    "ternary, dilated, one mean": lambda: [
        QuantConv2d(3, 8, 3, padding=2, dilation=2, groups=1, weight_quantizer=TernaryWeight,
                    input_quantizer=partial(PixelLevels, 0.5, 0.25)),
    ],
    "float weights": lambda: [
        QuantConv2d(3, 16, 3, padding=1, input_quantizer=pixels_in), nn.BatchNorm2d(16), binary(16, 8, 3, padding=1),
    ],
    "float stem": lambda: [PixelNormalize(MEAN, STD), nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), binary(16, 8, 3)],
    "one mean for all": lambda: [PixelNormalize(0.5, 0.25), nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU()],
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_packed_networks_take_bytes(name, tmp_path):
    """Exactly what PyTorch gives, from uint8 and from floats of the same values, whatever it was converted with."""
    x = pixels(4, 3, 12, 15)
    network = trained(nn.Sequential(*NETWORKS[name]()), x)
    packed, _ = check(network, x, tmp_path)
    assert packed.input_dtypes == ["uint8"]
    with torch.no_grad():
        expected = network(x).numpy()
        np.testing.assert_array_equal(network(x.float()), expected)
    floats = any(step.op == "unpack" for step in packed.steps)
    assert floats == (name in ("float weights", "float stem", "one mean for all"))
    found = packed(x.numpy())
    if not floats:
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(packed(x.numpy().astype(np.float64)), found)
    assert bnn.summary(network, (3, 12, 15)).bytes == packed.nbytes
    of_floats, _ = check(network, x.float())
    assert of_floats.input_dtypes == ["float32"]
    np.testing.assert_allclose(of_floats(x.float().numpy()), found, rtol=0, atol=1e-5 if floats else 0)


def test_padding_is_the_normalized_zero():
    """A border of zeros around the normalized image, though the mean is no pixel: against floats padded by hand."""
    x = pixels(2, 3, 9, 9)
    layer = trained(nn.Sequential(stem(3, 6, 5, padding=4, bias=False)), x)
    weight = layer[0].quantized_weight().detach().double()
    normalized = PixelLevels(MEAN, STD)(x).double()
    expected = nn.functional.conv2d(nn.functional.pad(normalized, [4] * 4), weight)
    found = bnn.convert(layer, x)(x.numpy())
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-7 * float(expected.abs().max()))
    levels = layer[0].input_quantizer.planes(x).terms[0].levels()
    assert not (levels == 0).any()  # no pixel is what the border is


def test_normalization_in_plain_code_is_a_table():
    """What users write in forward: functions of a pixel alone become one table of PyTorch's own numbers."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.tensor(MEAN).reshape(1, 3, 1, 1))
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv((x / 255 - self.mean) * 4)

    x = pixels(3, 3, 6, 6)
    packed, _ = check(Own().eval(), x)
    assert [step.op for step in packed.steps] == ["unpack", "float_conv"]
    assert packed.steps[0].tensors["values"].shape == (3, 256)


def test_other_readers_of_pixels():
    """Pixels that are read as floats, and as signs, beside the exact layer."""

    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.sign = stem(3, 4, 3, padding=1), SteSign()
            self.other = binary(3, 4, 3, padding=1)

        def forward(self, x):
            centered = x.float() - 127.5
            return self.stem(x) + self.other(centered), self.sign(centered)

    x = pixels(3, 3, 6, 6)
    check(trained(Several(), x), x)


def test_sequences_of_bytes():
    layer = QuantConv1d(2, 6, 5, padding=2, weight_quantizer=eight_bits, input_quantizer=partial(PixelLevels, 0.3, 0.2))
    x = pixels(3, 2, 20)
    check(trained(nn.Sequential(layer, nn.ReLU()), x), x)


@pytest.mark.parametrize("mean", [0.4, tuple(i / 108 for i in range(108))])
def test_linear_layers_on_pixels(mean):
    x = pixels(5, 3, 6, 6)
    given = partial(PixelLevels, mean, 0.2)
    linear = QuantLinear(108, 4, weight_quantizer=eight_bits, input_quantizer=given)
    packed, _ = check(trained(nn.Sequential(nn.Flatten(), linear), x), x)
    assert not any(step.op.startswith("float") for step in packed.steps)


def test_what_cannot_be_converted():
    x = pixels(2, 3, 6, 6)
    with pytest.raises(ValueError, match=r"pad_value \+1 cannot be had of inputs with zero points"):
        trained(nn.Sequential(stem(3, 4, 3, padding=1, pad_value=1)), x)(x)
    with pytest.raises(ConversionError, match=r"input of shape \(N, 2, 6, 6\)"):
        bnn.convert(trained(nn.Sequential(stem(3, 4, 3)), x), pixels(1, 2, 6, 6))
    network = trained(nn.Sequential(stem(3, 4, 3)), x)
    with pytest.raises(TypeError, match=r"input 0 is torch\.float32, .* made for uint8 examples"):
        bnn.check_parity(network, bnn.convert(network, x), x.float())


@pytest.mark.parametrize("change", ["offset", "multipliers"])
def test_zero_points_of_other_quantizers(change):
    """One term of codes times a factor converts, whoever makes it; with an offset or other planes it is refused."""

    class Own(PixelLevels):
        def planes(self, x):
            (term,) = super().planes(x).terms
            if change == "multipliers":
                multipliers = (*term.multipliers[1:], term.multipliers[0])
                return Planes((replace(term, multipliers=multipliers, bits=term.bits.roll(-1, 0)),))
            return Planes((term,), torch.tensor(0.0))

    x = pixels(2, 3, 6, 6)
    own = partial(Own, mean=MEAN, std=STD)
    network = trained(nn.Sequential(QuantConv2d(3, 4, 3, weight_quantizer=eight_bits, input_quantizer=own)), x)
    with pytest.raises(ConversionError, match=r"0: Own.* has zero points beside several terms, an offset, or other"):
        bnn.convert(network, x)


def test_gradients_reach_weights_and_steps():
    layer = stem(3, 4, 3, padding=1)
    layer(pixels(2, 3, 6, 6)).square().sum().backward()
    assert float(layer.weight.grad.abs().sum()) > 0
    assert float(layer.weight_quantizer.step.grad.abs().sum()) > 0


# -- bnn.quantize -----------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A float model of normalized images; `before` is what stands in its forward before the first convolution."""

    def __init__(self, before=lambda x: x, groups=1):
        super().__init__()
        self.before = before
        self.first = nn.Conv2d(3, 12, 3, 2, 1, groups=groups)
        self.norm = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 8, 3)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        x = self.second(torch.nn.functional.hardtanh(self.norm(self.first(self.before(x)))))
        return self.last(x.mean((2, 3)))


PIXELS = bnn.Pixels(MEAN, (0.1, 0.2, 0.4))


@pytest.mark.parametrize("groups", [1, 3])
def test_quantize_gives_any_model_a_stem_of_pixels(groups):
    """The same function but for 8 bits, though one deviation stands for three: the weights take the rest up."""
    model, x = upset(Plain(groups=groups)), pixels(6, 3, 12, 12)
    normalized = PixelNormalize(MEAN, PIXELS.std)(x)
    ours = bnn.quantize(model, **{"weight_quantizer": XnorWeight}, skip=["*"], stem="int8", pixels=PIXELS)
    bnn.calibrate(ours, [x.float()])
    with torch.no_grad():
        before, after = model.first(normalized), ours.first(x)
    step = float(ours.first.weight_quantizer.step.detach().max())
    assert float((before - after).abs().max()) < 0.1 * float(before.abs().max()) + 27 * step
    torch.testing.assert_close(before.mean(), after.mean(), rtol=0.05, atol=0.02)
    binary = bnn.quantize(model, "bnn", stem="int8", pixels=PIXELS)
    assert type(binary.second.input_quantizer) is SteSign
    assert type(binary.last) is nn.Linear
    check(trained(binary, x), x)


def test_quantize_puts_the_normalization_before_a_float_stem():
    model, x = upset(Plain()), pixels(6, 3, 12, 12)
    ours = bnn.quantize(model, "bnn", pixels=PIXELS)
    assert list(dict(ours.named_children())) == ["pixels", "network"]
    packed, _ = check(ours, x)
    assert packed.input_dtypes == ["uint8"]
    with torch.no_grad():
        twin = bnn.quantize(model, "bnn")(PixelNormalize(MEAN, PIXELS.std)(x))
        torch.testing.assert_close(ours(x), twin, rtol=0, atol=0)


def untraceable(x):
    return x if x.sum() > -1e9 else -x


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (Plain(), {"stem": "int4"}, "stem must be 'fp32' or 'int8'"),
        (Plain(), {"stem": "int8"}, r"say how images were normalized with pixels=bnn\.Pixels"),
        (Plain(lambda x: (x - 0.5) / 0.2), {}, r"goes into sub.*Normalization in forward belongs into"),
        (nn.Sequential(nn.Flatten(), nn.Linear(432, 4)), {}, "here 1 comes first, a Linear"),
        (nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3)), {}, "goes into 0"),
        (Plain(), {"share_parameters": True}, "first: its weights take up"),
        (Plain(untraceable), {}, "cannot be traced"),
    ],
)
def test_stems_that_quantize_refuses(model, options, words):
    given = {"stem": "int8", "pixels": None if options.get("stem") == "int8" else PIXELS} | options
    with pytest.raises(ValueError, match=words):
        bnn.quantize(model, "bnn", **given)


def test_stems_of_models_that_cannot_be_traced():
    x = torch.randn(1, 3, 12, 12)
    ours = bnn.quantize(Plain(untraceable), "bnn", stem="int8", pixels=PIXELS, example_input=x)
    assert isinstance(ours.first.input_quantizer, PixelLevels)
    model = Plain(lambda x: untraceable(x) * 2)
    with pytest.raises(ValueError, match="goes into nothing"):
        bnn.quantize(model, "bnn", stem="int8", pixels=PIXELS, example_input=x)
    with pytest.raises(TypeError, match=r"pixels must be bnn\.Pixels"):
        bnn.quantize(Plain(), "bnn", pixels=(MEAN, STD))
