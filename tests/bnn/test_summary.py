"""Costs against numbers worked out by hand."""

from functools import partial

import pytest
from torch import nn

import bnn
from bnn.models import LeNet5
from bnn.quantizers import DoReFaActivation, DoReFaWeight, SteSign, TernaryWeight, XnorWeight


def test_lenet5_in_bits():
    summary = bnn.summary(LeNet5(weight_quantizer=XnorWeight, input_quantizer=SteSign), (1, 28, 28))
    rows = {row.name: row for row in summary.layers}
    macs = {"conv1": 20 * 25 * 24 * 24, "conv2": 50 * 500 * 8 * 8, "linear3": 800 * 500, "linear4": 500 * 10}
    assert {name: rows[name].macs for name in macs} == macs
    assert summary.macs == sum(macs.values())
    assert summary.bops == 1024 * (macs["conv1"] + macs["linear4"]) + macs["conv2"] + macs["linear3"]
    assert rows["conv2"].bytes == 50 * 500 / 8 + 4 * 50
    assert rows["linear3"].bytes == 800 * 500 / 8 + 4 * 500
    assert rows["conv1"].bytes == 4 * (500 + 20)
    assert rows["norm1"].bytes == 4 * 4 * 20
    assert summary.parameters == 520 + 80 + 80 + 25050 + 200 + 400500 + 5010
    assert rows["conv2"].output_shape == (50, 8, 8)
    assert "conv2" in str(summary)
    assert f"{summary.parameters:,}" in str(summary)


@pytest.mark.parametrize(
    ("weight", "given", "bits"),
    [
        (TernaryWeight, SteSign, (2, 1)),
        (partial(DoReFaWeight, 3), partial(DoReFaActivation, 5), (3, 5)),
        (XnorWeight, bnn.quantizers.FullPrecision, (1, 32)),
    ],
)
def test_bits_of_a_layer(weight, given, bits):
    layer = bnn.layers.QuantLinear(10, 4, False, weight_quantizer=weight, input_quantizer=given)
    (row,) = bnn.summary(nn.Sequential(layer), (10,)).layers
    assert (row.weight_bits, row.activation_bits) == bits
    assert row.bytes == 40 * bits[0] / 8
    assert row.bops == 40 * bits[0] * bits[1]


def test_the_model_is_left_as_it_was():
    model = LeNet5().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bnn.summary(model, (1, 28, 28))
    assert model.training
    assert all((value == before[name]).all() for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("shape", [(), (0, 28, 28)])
def test_bad_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="input_shape"):
        bnn.summary(LeNet5(), shape)
