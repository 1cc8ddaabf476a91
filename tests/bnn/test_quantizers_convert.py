"""Every quantizer of configs/quantizer becomes bits that answer like the network, or says why it cannot."""

from functools import partial

import pytest
import quantizer_configs as configs
import torch
from torch import nn

import bnn
from bnn.converter import ConversionError
from bnn.layers import BitLinear, OutputScale, QuantConv2d, QuantConvTranspose2d, QuantLinear
from bnn.quantizers import (
    AbcWeight,
    AbsmaxActivation,
    AbsmeanTernary,
    AdaBinActivation,
    AdaBinWeight,
    DoReFaWeight,
    FullPrecision,
    LqActivation,
    LqWeight,
    LsqActivation,
    LsqWeight,
    Pact,
    RSign,
    SteSign,
    TernaryActivation,
    TernaryWeight,
    XnorWeight,
)
from paper_figures.quantizer_table import config_table


def network(weight, given):
    quantized = {"weight_quantizer": weight, "input_quantizer": given}
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        QuantConv2d(8, 8, 3, padding=1, **quantized),
        nn.BatchNorm2d(8),
        QuantConv2d(8, 6, 3, bias=False, **quantized),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        QuantLinear(6 * 9, 10, **quantized),
    )


def trained(weight, given):
    """The network after a few steps: every learned scale, shift and basis has moved, gammas have both signs."""
    torch.manual_seed(0)
    net = network(weight, given)
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    for _ in range(3):
        loss = nn.functional.cross_entropy(net(torch.randn(16, 1, 8, 8)), torch.arange(16) % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        for norm in (net[1], net[3], net[6]):
            norm.weight[::3] *= -1
    return net.eval()


@pytest.mark.quick_cases(16)
@pytest.mark.parametrize("name", configs.NAMES)
def test_conversion_parity(name):
    weight, given = configs.factories()[name]
    net, x = trained(weight, given), torch.randn(32, 1, 8, 8)
    packed = bnn.convert(net, x)
    report = bnn.check_parity(net, packed, x)
    assert report.ok, str(report)
    has_bits = any(tensor.startswith("bits") for step in packed.steps for tensor in step.tensors)
    (row,) = [line for line in config_table().splitlines() if line.startswith(f"| `{name}` |")]
    assert row.endswith("| yes |" if has_bits else "| yes, as floats |")  # as docs/quantizers.md says


WIDTHS = [
    *[(partial(LsqWeight, k), partial(LsqActivation, k, signed=True)) for k in (1, 2, 3, 5, 8)],
    *[(partial(DoReFaWeight, k), partial(Pact, k, alpha=2.0)) for k in (1, 3, 7)],
    *[(partial(LqWeight, k), RSign) for k in (1, 3, 5)],
    *[(partial(AbcWeight, k), partial(LsqActivation, 2)) for k in (1, 2, 5)],
    (partial(LsqWeight, 4, per_channel=True), partial(LqActivation, 1)),
    (AdaBinWeight, partial(TernaryActivation, threshold=0.5)),
    *[(weight, partial(LqActivation, k)) for weight, k in ((XnorWeight, 2), (AdaBinWeight, 3), (FullPrecision, 2))],
    (XnorWeight, AdaBinActivation),
    (TernaryWeight, partial(AdaBinActivation, form="released")),
    (FullPrecision, AdaBinActivation),
    (partial(XnorWeight, center=True), partial(SteSign, boundary="open")),
]


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize(("weight", "given"), WIDTHS, ids=[str(i) for i in range(len(WIDTHS))])
def test_other_widths_and_pairs_convert_too(weight, given):
    net, x = trained(weight, given), torch.randn(32, 1, 8, 8)
    report = bnn.check_parity(net, bnn.convert(net, x), x)
    assert report.ok, str(report)


@pytest.mark.parametrize("name", ["adabin", "bitnet", "lqnet2"])
def test_the_weights_of_a_pair_convert_behind_other_inputs(name):
    weight, _ = configs.factories()[name]
    for given in (configs.factories()["bnn"][1], FullPrecision):
        net, x = trained(weight, given), torch.randn(32, 1, 8, 8)
        report = bnn.check_parity(net, bnn.convert(net, x), x)
        assert report.ok, str(report)


@pytest.mark.parametrize("given", [AbsmaxActivation, partial(AbsmaxActivation, 3), FullPrecision])
def test_bit_linears_convert(given):
    torch.manual_seed(0)
    linear = partial(BitLinear, input_quantizer=given)
    net = nn.Sequential(linear(12, 8), nn.SiLU(), linear(8, 5, bias=True)).eval()
    for shape in ((7, 12), (7, 4, 12), (7, 2, 3, 12)):
        x = torch.randn(shape)
        packed = bnn.convert(net, x)
        report = bnn.check_parity(net, packed, x)
        assert report.ok, str(report)
        layers = [step for step in packed.steps if "bits.0" in step.tensors]
        assert len(layers) == 2
        assert all(step.op.startswith("float" if given is FullPrecision else "binary") for step in layers)
    zero = torch.zeros(2, 12)
    found = bnn.convert(net, zero)(zero.numpy())
    assert torch.allclose(torch.from_numpy(found), net(zero), rtol=0, atol=1e-6)


def test_a_scale_that_follows_the_input_in_other_layers():
    torch.manual_seed(0)
    ternary = {"weight_quantizer": AbsmeanTernary, "input_quantizer": AbsmaxActivation}
    net = nn.Sequential(
        QuantConv2d(3, 6, 3, padding=1, **ternary),
        nn.BatchNorm2d(6),
        QuantConv2d(6, 6, 3, weight_quantizer=FullPrecision, input_quantizer=partial(AbsmaxActivation, 4)),
        QuantConvTranspose2d(6, 3, 4, 2, 1, **ternary),
    ).eval()
    x = torch.randn(5, 3, 8, 8)
    report = bnn.check_parity(net, bnn.convert(net, x), x)
    assert report.ok, str(report)
    padded = nn.Sequential(QuantConv2d(3, 6, 3, padding=1, pad_value=1, **ternary)).eval()
    with pytest.raises(ValueError, match="pad_value"):
        bnn.convert(padded, x)
    alone = nn.Sequential(AbsmaxActivation(), nn.Conv2d(3, 4, 3)).eval()
    with pytest.raises(ConversionError, match=r"^0: AbsmaxActivation computes its scale from the whole input"):
        bnn.convert(alone, x)


def scaled_by(case):
    torch.manual_seed(0)
    weight, given = configs.factories()["binaryconnect"][0], configs.factories()["bnn"][1]
    conv = QuantConv2d(8, 6, 3, bias=False, weight_quantizer=weight, input_quantizer=given)
    scale = OutputScale(6, 6, 6, case)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), conv, scale, nn.BatchNorm2d(6), nn.Flatten())
    with torch.no_grad():
        for factor in scale.factors:
            factor.uniform_(-1, 2)
    net(torch.randn(16, 1, 8, 8))
    return net.eval(), torch.randn(8, 1, 8, 8)


@pytest.mark.parametrize("case", [1, 2, 3, 4])
def test_scales_of_channels_and_of_places_convert(case):
    net, x = scaled_by(case)
    report = bnn.check_parity(net, bnn.convert(net, x), x)
    assert report.ok, str(report)
