"""Every quantizer of configs/quantizer becomes bits that answer like the network, or says why it cannot."""

import re
from functools import partial
from pathlib import Path

import pytest
import quantizer_configs as configs
import torch
from torch import nn

import bnn
from bnn.converter import ConversionError
from bnn.layers import BitLinear, OutputScale, QuantConv2d, QuantLinear
from bnn.quantizers import (
    AbcWeight,
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

# Configs that cannot become bits as a whole, and what the error must say.
REFUSED = {
    "bitnet": "computes its scale from the whole input",
}


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


@pytest.mark.parametrize("name", configs.NAMES)
def test_conversion_parity(name):
    weight, given = configs.factories()[name]
    net, x = trained(weight, given), torch.randn(32, 1, 8, 8)
    if name in REFUSED:
        with pytest.raises(ConversionError, match=REFUSED[name]):
            bnn.convert(net, x)
        return
    report = bnn.check_parity(net, bnn.convert(net, x), x)
    assert report.ok, str(report)


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


@pytest.mark.parametrize(("weight", "given"), WIDTHS, ids=[str(i) for i in range(len(WIDTHS))])
def test_other_widths_and_pairs_convert_too(weight, given):
    net, x = trained(weight, given), torch.randn(32, 1, 8, 8)
    report = bnn.check_parity(net, bnn.convert(net, x), x)
    assert report.ok, str(report)


def test_the_page_that_compares_them_says_the_same():
    page = (Path(__file__).parents[2] / "docs" / "quantizers.md").read_text()
    rows = [line.split("|")[1:-1] for line in page[page.index("## Configs") :].splitlines() if line.startswith("| `")]
    said = {}
    for row in rows:
        names, weight, given, bits = (re.findall(r"`(\w+)`", row[i]) or row[i].strip() for i in (0, 2, 3, 4))
        for name in names:
            said[name] = (*weight, *given, bits)
    for name, pair in configs.factories().items():
        *classes, bits = said.pop(name)
        assert classes == [factory.func.__name__ for factory in pair]
        assert bits.startswith("no:") == (name in REFUSED)
    assert said == {}
    for _, _, factory in configs.quantizers():
        assert f"| `{factory.func.__name__}`" in page


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_the_weights_of_a_refused_pair_convert_behind_other_inputs(name):
    weight, _ = configs.factories()[name]
    for given in (configs.factories()["bnn"][1], FullPrecision):
        net, x = trained(weight, given), torch.randn(32, 1, 8, 8)
        report = bnn.check_parity(net, bnn.convert(net, x), x)
        assert report.ok, str(report)


def test_a_bit_linear_converts_but_for_scales_that_follow_the_input():
    torch.manual_seed(0)
    net = nn.Sequential(BitLinear(12, 5, input_quantizer=FullPrecision)).eval()
    for shape in ((7, 12), (7, 4, 12)):
        x = torch.randn(shape)
        assert bnn.check_parity(net, bnn.convert(net, x), x).ok
    with pytest.raises(ConversionError, match=r"^0\.linear: AbsmaxActivation"):
        bnn.convert(nn.Sequential(BitLinear(12, 5)).eval(), x)


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
