"""What a packed network says of its kernels and of the form of its levels, and that both are what runs."""

import pytest
import torch
from bnn_kernels.bits.level_bytes import LevelBytes
from torch import nn

import bnn
from bnn.layers import QuantConv2d
from bnn.quantizers import LsqActivation, LsqWeight, SteSign, TernaryWeight, XnorWeight


def packed_network(weight, activation, channels=32):
    """Two layers of these quantizers, converted, and an input."""
    torch.manual_seed(0)
    conv = (
        QuantConv2d(8, channels, 3, padding=1, **weight),
        nn.BatchNorm2d(channels),
        QuantConv2d(channels, 32, 3, **weight, **activation),
    )
    network = nn.Sequential(*conv, nn.BatchNorm2d(32))
    x = torch.randn(2, 8, 7, 7)
    network(x)
    network.eval()
    packed = bnn.convert(network, x)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(packed(x.numpy())), network(x), rtol=1e-4, atol=1e-4)
    return packed, x.numpy()


def uniform(bits):
    def weight(**given):
        return LsqWeight(bits=bits, **given)

    def activation(**given):
        return LsqActivation(bits=bits, signed=True, **given)

    return {"weight_quantizer": weight}, {"input_quantizer": activation}


def test_levels_of_several_bits_are_bytes_between_layers():
    packed, x = packed_network(*uniform(4))
    lines = packed.summary().splitlines()
    assert "kernel" in lines[0]
    assert any("16 pairs of planes" in line and "products of" in line for line in lines)
    assert any("4-bit 32x7x7 as bytes" in line for line in lines)
    forms = [spec.as_bytes for cost in packed.costs() for spec in cost.outputs if spec.kind == "bits"]
    step = packed._program.placed[-1].step
    seen, run = [], step.run
    step.run = lambda *given: (seen.append(type(given[0])), run(*given))[1]
    packed(x[:1])
    assert forms == [True]
    assert seen[0] is LevelBytes


@pytest.mark.parametrize("weight", [XnorWeight, TernaryWeight])
def test_signs_are_bit_planes(weight):
    packed, _ = packed_network({"weight_quantizer": weight}, {"input_quantizer": SteSign}, channels=72)
    text = packed.summary()
    assert "as bytes" not in text
    assert "products" not in text
    assert "pair of planes" in text or "2 pairs of planes" in text
    assert "float32, weights held as bits" in text
