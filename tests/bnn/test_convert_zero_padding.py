"""Zeros around a map become the padding of the convolution that reads it: no map is copied, and nothing changes."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conversion import check, images, upset
from torch import nn

from bnn.layers import QuantConv1d, QuantConv2d
from bnn.quantizers import (
    AbsmaxActivation,
    AffineActivation,
    FullPrecision,
    LsqActivation,
    LsqWeight,
    RSign,
    SteSign,
    TernaryActivation,
    TernaryWeight,
    XnorWeight,
)

# Rows and columns (left, right, top, bottom) around a map.
AROUND = [(0, 1, 0, 1), (1, 1, 1, 1), (2, 0, 1, 3)]
PAIRS = {
    "xnor": (XnorWeight, SteSign),
    "ternary": (TernaryWeight, TernaryActivation),
    "lsq2": (partial(LsqWeight, 2), partial(LsqActivation, 2)),
    "lsq8": (partial(LsqWeight, 8), partial(LsqActivation, 8, signed=True)),
    "zero point": (partial(LsqWeight, 8), partial(AffineActivation, 8)),
    "floats": (TernaryWeight, FullPrecision),
    "float weights": (FullPrecision, partial(LsqActivation, 4)),
}


def steps_of(model, x):
    """Check a model's conversion; return its steps."""
    packed, _ = check(model, x)
    return [spec.op for spec in packed.steps]


def between_layers(conv, pad, channels=8):
    """A network in which a padded map that a layer made is convolved."""
    torch.manual_seed(0)
    dims = isinstance(conv, nn.Conv2d)
    first = (nn.Conv2d if dims else nn.Conv1d)(3, channels, 1)
    norms = [(nn.BatchNorm2d if dims else nn.BatchNorm1d)(n) for n in (channels, conv.out_channels)]
    model = nn.Sequential(first, norms[0], nn.Hardtanh(), pad, conv, norms[1])
    model.train()(images(4, 3, *([9, 8] if dims else [9])))
    return upset(model)


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("groups", [1, 8])
def test_floats(around, groups):
    conv = nn.Conv2d(8, 16, 3, stride=2, groups=groups)
    assert "select" not in steps_of(between_layers(conv, nn.ZeroPad2d(around)), images(2, 3, 9, 8))


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("groups", [1, 8])
def test_levels(pair, around, groups):
    """sign(0) is +1 and has a level; others have 0 around them."""
    weight, activation = PAIRS[pair]
    options = {"weight_quantizer": weight, "input_quantizer": activation}
    conv = QuantConv2d(8, 16, 3, stride=2, groups=groups, **options)
    assert "select" not in steps_of(between_layers(conv, nn.ZeroPad2d(around)), images(2, 3, 9, 8))


def test_sequences():
    conv = QuantConv1d(8, 12, 3, stride=2, weight_quantizer=XnorWeight, input_quantizer=SteSign)
    assert "select" not in steps_of(between_layers(conv, nn.ConstantPad1d((0, 2), 0.0)), images(2, 3, 9))


@pytest.mark.parametrize("activation", [partial(RSign, 8), partial(AbsmaxActivation, 8)])
def test_levels_that_depend_on_the_channel_or_on_the_input(activation):
    """A shifted sign of zeros differs by channel, a scale is that of the whole input: these are copied as before."""
    conv = QuantConv2d(8, 6, 3, stride=2, weight_quantizer=XnorWeight, input_quantizer=activation)
    model = between_layers(conv, nn.ZeroPad2d((0, 1, 0, 1)))
    check(model, images(2, 3, 9, 8))


def test_a_scale_of_the_input_sees_the_zeros():
    conv = QuantConv2d(8, 6, 3, stride=2, weight_quantizer=XnorWeight, input_quantizer=SteSign, input_scale=True)
    check(between_layers(conv, nn.ZeroPad2d((0, 1, 0, 1))), images(2, 3, 9, 8))


class Signs(nn.Module):
    """Signs before the padding have plain zeros around them, which add nothing."""

    def __init__(self):
        super().__init__()
        self.conv = QuantConv2d(8, 6, 3, stride=2, weight_quantizer=XnorWeight, input_quantizer=FullPrecision)
        self.first = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        return self.conv(F.pad(SteSign()(self.first(x)), (0, 1, 0, 1)))


def test_zeros_behind_a_quantizer():
    torch.manual_seed(0)
    steps = steps_of(Signs().eval(), images(2, 3, 9, 8))
    assert "select" not in steps
    assert "binary_conv" in steps


class Plain(nn.Module):
    """A convolution whose weights have few values, written by hand."""

    def __init__(self, around, number):
        super().__init__()
        self.around, self.number = around, number
        self.weight = nn.Parameter(torch.randn(6, 8, 3, 3))
        self.first = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        y = torch.where(self.first(x) < 0, -1.0, 1.0)
        return F.conv2d(F.pad(y, self.around, value=self.number), torch.sign(self.weight), stride=2)


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("number", [0.0, 1.0, -1.0])
def test_plain_convolutions_of_signs(around, number):
    torch.manual_seed(0)
    steps = steps_of(Plain(around, number).eval(), images(2, 3, 9, 8))
    assert "select" not in steps
    assert "binary_conv" in steps


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("kernel", [2, 4, (3, 2)])
@pytest.mark.parametrize("dilation", [1, 3])
def test_same_padding_of_even_filters(kernel, dilation):
    """PyTorch pads one more behind than before."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, kernel, padding="same", dilation=dilation))
    assert steps_of(model.eval(), images(2, 3, 13, 12)) == ["float_conv"]


def test_padding_with_more_than_zeros_stays_a_step():
    """Cut and padded at once, mirrored, or far wider than the map: none of these is a convolution's padding."""
    conv = nn.Conv2d(8, 4, 3)
    for pad in (nn.ZeroPad2d((-1, 2, 0, 0)), nn.ReflectionPad2d(1), nn.ZeroPad2d(40)):
        check(between_layers(conv, pad), images(2, 3, 9, 8))


def test_a_padded_map_that_others_read_is_still_made():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.conv = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            y = F.pad(self.first(x), (0, 1, 0, 1))
            return y + self.conv(y)

    torch.manual_seed(0)
    check(Both().eval(), images(2, 3, 9, 8))


def test_the_file_says_how_much_is_around(tmp_path):
    conv = QuantConv2d(8, 16, 3, stride=2, weight_quantizer=XnorWeight, input_quantizer=SteSign)
    packed, _ = check(between_layers(conv, nn.ZeroPad2d((0, 1, 0, 1))), images(2, 3, 9, 8), tmp_path)
    (spec,) = [spec for spec in packed.steps if spec.op == "binary_conv"]
    assert spec.attrs["padding"] == [0, 0, 1, 1]
