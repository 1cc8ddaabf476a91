"""Conversion: every pair of quantizers, hostile batch norms, a file between, and refusals by dotted path."""

from collections import OrderedDict
from functools import partial

import bnn_kernels as bk
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conversion import check, images, upset
from torch import nn

import bnn
from bnn.converter import ConversionError
from bnn.layers import QuantConv1d, QuantConv2d, QuantLinear
from bnn.models import DigitsCNN, LeNet5
from bnn.quantizers import (
    DoReFaActivation,
    DoReFaWeight,
    FullPrecision,
    Quantizer,
    SteSign,
    TernaryWeight,
    XnorWeight,
)

PAIRS = {
    "xnor": (XnorWeight, SteSign),
    "bnn": (SteSign, SteSign),
    "twn": (TernaryWeight, FullPrecision),
    "twn_channel_1": (partial(TernaryWeight, per_channel=True), SteSign),
    "bwn": (XnorWeight, FullPrecision),
    "dorefa1": (partial(DoReFaWeight, 1), partial(DoReFaActivation, 1)),
    "dorefa2": (partial(DoReFaWeight, 2), partial(DoReFaActivation, 2)),
    "dorefa4": (partial(DoReFaWeight, 4), partial(DoReFaActivation, 4)),
    "dorefa8": (partial(DoReFaWeight, 8), partial(DoReFaActivation, 8)),
    "w1a2": (XnorWeight, partial(DoReFaActivation, 2)),
    "a1": (FullPrecision, SteSign),
    "fp32": (FullPrecision, FullPrecision),
}
BINARY = partial(QuantConv2d, weight_quantizer=XnorWeight, input_quantizer=SteSign)


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(("model", "shape"), [(LeNet5, (1, 28, 28)), (DigitsCNN, (1, 8, 8))])
def test_models_convert_save_load_equal(pair, model, shape, tmp_path):
    torch.manual_seed(0)
    weight, given = PAIRS[pair]
    network = upset(model(weight_quantizer=weight, input_quantizer=given))
    check(network, images(24, *shape), tmp_path)


@pytest.mark.parametrize("model", [LeNet5, DigitsCNN])
def test_input_scale_converts(model):
    torch.manual_seed(0)
    network = upset(model(weight_quantizer=XnorWeight, input_quantizer=SteSign, input_scale=True))
    check(network, images(24, 1, *((28, 28) if model is LeNet5 else (8, 8))))


def between(*modules):
    """A binary convolution, these modules, another binary convolution."""
    return nn.Sequential(BINARY(6, 10, 3, padding=1), *modules, BINARY(10, 4, 3, bias=False))


CHAINS = {
    "nothing": (),
    "norm": (nn.BatchNorm2d(10),),
    "norm without affine": (nn.BatchNorm2d(10, affine=False),),
    "norm relu norm": (nn.BatchNorm2d(10), nn.ReLU(), nn.BatchNorm2d(10)),
    "hardtanh": (nn.Hardtanh(-0.7, 1.2), nn.BatchNorm2d(10)),
    "relu6": (nn.BatchNorm2d(10), nn.ReLU6()),
    "pool first": (nn.MaxPool2d(2), nn.BatchNorm2d(10)),
    "pool last": (nn.BatchNorm2d(10), nn.MaxPool2d(3, 2, 1)),
    "pool between": (nn.BatchNorm2d(10), nn.MaxPool2d((2, 1), 1), nn.ReLU(), nn.BatchNorm2d(10)),
    "two pools": (nn.BatchNorm2d(10), nn.MaxPool2d(2, 1), nn.BatchNorm2d(10), nn.MaxPool2d(2, 1), nn.BatchNorm2d(10)),
    "average": (nn.AvgPool2d(2), nn.BatchNorm2d(10)),
    "nothing that counts": (nn.Identity(), nn.Dropout(0.5), nn.BatchNorm2d(10), nn.Dropout2d(0.5)),
}


@pytest.mark.quick_cases(8)
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("given", [SteSign, partial(DoReFaActivation, 2)])
def test_everything_between_two_binary_layers(chain, given, tmp_path):
    torch.manual_seed(2)
    network = between(*CHAINS[chain])
    network[-1].input_quantizer = given()
    packed, report = check(upset(network, seed=3), images(16, 6, 9, 8), tmp_path)
    # Several levels behind a norm that follows a bend are computed from floats.
    bent = given is not SteSign and chain == "pool between"
    assert not {"affine", "clamp", "max_pool"} & {step.op for step in packed.steps} - ({"max_pool"} if bent else set())
    levels = [row for row in report.steps if row.levels]
    assert sum(row.different for row in levels) == 0
    assert len(levels) >= 2


@pytest.mark.parametrize("given", [SteSign, partial(DoReFaActivation, 3)])
def test_everything_before_a_float_layers_quantizer(given, tmp_path):
    """The stem's batch norm, activation and pooling become thresholds on its floats."""
    torch.manual_seed(3)
    layer = partial(QuantConv2d, weight_quantizer=XnorWeight, input_quantizer=given)
    network = nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.Hardtanh(), nn.MaxPool2d(2), nn.BatchNorm2d(10), layer(10, 4, 3)
    )
    packed, _ = check(upset(network, seed=4), images(16, 3, 11, 10), tmp_path)
    ops = [step.op for step in packed.steps]
    if given is SteSign:
        assert ops == ["float_conv", "pool_bits", "binary_conv"]
    else:
        assert "pool_bits" not in ops


@pytest.mark.quick_cases(16)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 2, (0, 1), "same"])
@pytest.mark.parametrize("dilation", [1, (2, 2)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("pad_value", [0, 1, -1])
def test_every_geometry(stride, padding, dilation, groups, pad_value):
    if padding == "same" and stride == 2:
        pytest.skip("torch has no such layer")
    torch.manual_seed(4)
    network = nn.Sequential(
        BINARY(4, 6, 3, stride, padding, dilation, groups, pad_value=pad_value), nn.BatchNorm2d(6), BINARY(6, 2, 1)
    )
    check(upset(network), images(4, 4, 9, 10))


def test_flatten_before_and_after():
    torch.manual_seed(5)
    linear = partial(QuantLinear, weight_quantizer=XnorWeight, input_quantizer=SteSign)
    network = nn.Sequential(
        BINARY(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), linear(5 * 16, 7), nn.BatchNorm1d(7), linear(7, 3)
    )
    packed, _ = check(upset(network), images(8, 3, 6, 6))
    assert [step.op for step in packed.steps] == ["pack", "binary_conv", "binary_linear", "binary_linear"]
    by_pixel = nn.Sequential(BINARY(3, 5, 3), nn.Flatten(), nn.BatchNorm1d(80), linear(80, 3))
    check(upset(by_pixel), images(8, 3, 6, 6))
    one_pixel = nn.Sequential(BINARY(3, 5, 3), nn.Flatten(), nn.BatchNorm1d(5), linear(5, 3))
    packed, _ = check(upset(one_pixel), images(8, 3, 3, 3))
    assert "affine" not in [step.op for step in packed.steps]


def test_global_average_and_functional_calls():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(OrderedDict(conv=BINARY(3, 8, 3), norm=nn.BatchNorm2d(8)))
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            return self.head(torch.flatten(self.pool(F.relu(self.body(x))), 1))

    check(upset(Network()), images(8, 3, 7, 6))


def test_linear_networks_and_numbers_of_inputs():
    network = nn.Sequential(
        nn.Linear(20, 30),
        nn.BatchNorm1d(30),
        QuantLinear(30, 40, weight_quantizer=TernaryWeight, input_quantizer=SteSign),
        nn.Hardtanh(),
        nn.Linear(40, 3),
    )
    packed, _ = check(upset(network), images(9, 20))
    assert packed(np.zeros((0, 20), np.float32)).shape == (0, 3)
    one_by_one = np.concatenate([packed(row[None]) for row in images(9, 20).numpy()])
    np.testing.assert_allclose(one_by_one, packed(images(9, 20).numpy()), rtol=0, atol=1e-5)


def test_a_new_quantizer_converts_by_its_planes_alone():
    """Two scaled sign planes (ABC-Net's idea): nothing in the converter knows of it."""
    from bnn.planes import Planes, Term, sign_bits

    class TwoBases(Quantizer):
        def planes(self, w):
            first, second = w.abs().mean(), w.abs().mean() / 3
            rest = w - torch.where(w < 0, -first, first)
            return Planes((Term(sign_bits(w), True, (1,), first), Term(sign_bits(rest), True, (1,), second)))

        def forward(self, w):
            return self.planes(w).value()

    layer = partial(QuantConv2d, weight_quantizer=TwoBases, input_quantizer=SteSign)
    check(upset(nn.Sequential(layer(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), layer(6, 2, 3))), images(8, 4, 8, 8))


def test_conversion_leaves_the_model_alone_and_takes_any_precision():
    network = upset(LeNet5(weight_quantizer=XnorWeight, input_quantizer=SteSign)).double()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    packed = bnn.convert(network, images(1, 1, 28, 28).double())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert packed(images(2, 1, 28, 28).numpy()).shape == (2, 10)


def test_the_file_is_as_small_as_the_bits_say(tmp_path):
    network = LeNet5(weight_quantizer=XnorWeight, input_quantizer=SteSign).eval()
    packed = bnn.convert(network, images(1, 1, 28, 28))
    packed.save(tmp_path / "packed.safetensors")
    binary = 50 * 20 * 25 // 8 + 500 * 800 // 8
    floats = 4 * (20 * 25 + 20 + 500 * 10 + 10)
    assert binary + floats < packed.nbytes < binary + floats + 5000  # thresholds and scales
    fp32 = 4 * sum(p.numel() for p in network.parameters())
    assert (tmp_path / "packed.safetensors").stat().st_size < fp32 / 8


# -- the parity report ------------------------------------------------------------------------------------------------


def test_parity_names_the_first_step_that_differs():
    network = upset(DigitsCNN(weight_quantizer=XnorWeight, input_quantizer=SteSign))
    x = images(32, 1, 8, 8)
    packed = bnn.convert(network, x)
    index = next(i for i, step in enumerate(packed.steps) if step.op == "binary_linear")
    packed.steps[index].tensors["bits.0"][0, :64] ^= 255  # two rows the other way round
    wrong = bk.PackedModel(packed.input_shape, packed.steps)
    report = bnn.check_parity(network, wrong, x)
    assert not report.ok
    assert report.first_difference.step == "binary_linear"
    assert report.first_difference.source == "relu4"
    assert "DIFFERS" in str(report)
    assert '"ok": false' in report.to_json()


def test_parity_sees_wrong_thresholds():
    network = upset(DigitsCNN(weight_quantizer=XnorWeight, input_quantizer=SteSign))
    x = images(32, 1, 8, 8)
    packed = bnn.convert(network, x)
    index = next(i for i, step in enumerate(packed.steps) if "thresholds" in step.tensors and i > 0)
    packed.steps[index].tensors["thresholds"][:] = 3
    report = bnn.check_parity(network, bk.PackedModel(packed.input_shape, packed.steps), x)
    assert report.first_difference is not None


def test_parity_refuses_train_mode_and_no_inputs():
    network = upset(DigitsCNN())
    packed = bnn.convert(network, images(1, 1, 8, 8))
    with pytest.raises(ValueError, match="at least one input"):
        bnn.check_parity(network, packed, images(0, 1, 8, 8))
    with pytest.raises(ValueError, match="train mode"):
        bnn.check_parity(network.train(), packed, images(1, 1, 8, 8))


# -- refusals ---------------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x


class LayerScale(Quantizer):
    """Computes its scale from the whole input, so it is no set of thresholds."""

    def planes(self, x):
        return DoReFaWeight(1).planes(x)

    def forward(self, x):
        return DoReFaWeight(1)(x)


def nest(module):
    return nn.Sequential(OrderedDict(body=nn.Sequential(OrderedDict(odd=module)))).eval()


def between_layers(module):
    return nn.Sequential(BINARY(3, 4, 3), module, BINARY(4, 2, 3)).eval()


def before_layer(module):
    return nn.Sequential(module, BINARY(3, 2, 3)).eval()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            nest(nn.Hardshrink()),
            r"body\.odd: function 'hardshrink' cannot be converted.*register_rule",
        ),
        (nest(nn.MaxPool2d(2, 7, 1, dilation=7)), r"body\.odd: a window of max pooling lies outside the map"),
        (nest(nn.MaxPool2d(2, return_indices=True)), r"body\.odd: .*indices"),
        (nest(nn.ConvTranspose2d(3, 2, 1, 2)), "without a tap"),
        (nest(nn.LayerNorm((6, 6))), r"body\.odd: a normalization of \(6, 6\)"),
        (nest(nn.Softmax(0)), r"body\.odd: softmax over the batch"),
        (nest(nn.BatchNorm2d(3, track_running_stats=False)), r"body\.odd: batch norm without running"),
        (nest(nn.Flatten(0)), r"body\.odd: changes the batch"),
        (between_layers(nn.BatchNorm2d(4, track_running_stats=False)), "1: batch norm without running"),
        (before_layer(nn.BatchNorm2d(3, track_running_stats=False)), "0: batch norm without running"),
        (nest(Branching()), r"body\.odd cannot be recorded.*test_convert\.py:\d+.*register_rule"),
        (TwoInputs().eval(), r"takes 2 inputs \('x', 'y'\), got 1"),
        (nest(QuantConv2d(3, 2, 3, weight_quantizer=XnorWeight, input_quantizer=LayerScale)), r"body\.odd: LayerScale"),
        (nest(BINARY(3, 2, 3, padding=1, pad_value=-1, input_quantizer=partial(DoReFaActivation, 2))), "pad_value -1"),
        (nest(nn.Identity()), "nothing is left"),
    ],
)
def test_unsupported_modules_are_refused_by_path(model, words):
    with pytest.raises(ConversionError, match=words):
        bnn.convert(model, images(1, 3, 6, 6))


def test_train_mode_is_refused():
    with pytest.raises(ConversionError, match=r"train mode.*model\.eval\(\)"):
        bnn.convert(DigitsCNN().train(), images(1, 1, 8, 8))
    network = DigitsCNN().eval()
    network.norm2.train()
    with pytest.raises(ConversionError, match="norm2 is in train mode"):
        bnn.convert(network, images(1, 1, 8, 8))


def test_diverged_weights_are_refused():
    network = DigitsCNN().eval()
    network.conv2.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ConversionError, match=r"conv2\.weight holds NaN"):
        bnn.convert(network, images(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("example", "error", "words"),
    [
        (torch.zeros(1, 1, 8, 8, dtype=torch.int64), TypeError, "int64"),
        (np.zeros((1, 1, 8, 8), np.float32), TypeError, "float tensor"),
        (torch.zeros(1, 8, 8), ConversionError, r"\(N, 8, 8\), at conv1"),
        (torch.zeros(0, 1, 8, 8), ConversionError, "N >= 1"),
    ],
)
def test_bad_examples_are_refused(example, error, words):
    with pytest.raises(error, match=words):
        bnn.convert(DigitsCNN().eval(), example)


def test_sums_beyond_32_bits_are_refused():
    """255 * 255 * 33,025 is the last multiple that int32 holds: the converter asks the kernels for the limit."""
    eight = {"weight_quantizer": partial(DoReFaWeight, bits=8), "input_quantizer": partial(DoReFaActivation, bits=8)}
    with pytest.raises(ConversionError, match="can overflow int32"):
        bnn.convert(QuantConv1d(2, 1, 16_513, bias=False, **eight).eval(), torch.rand(2, 2, 16_513))
