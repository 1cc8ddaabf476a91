"""RSign and RPReLU in layers: a channel count told by the layer, the formulas of ReActNet, conversion."""

from functools import partial

import pytest
import torch
from torch import nn

import bnn
from bnn.layers import QuantConv2d, QuantLinear, RPReLU
from bnn.layers.base import make_quantizer
from bnn.quantizers import DoReFaActivation, RSign, XnorWeight


def test_rprelu_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    f = RPReLU(3).double()
    x = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for p in f.parameters():
            p.copy_(torch.randn(3, generator=generator))
        x[0, :, 0] = f.gamma
    y = f(x)
    for n, c, i in [(n, c, i) for n in range(2) for c in range(3) for i in range(4)]:
        gamma, zeta, beta = (float(p.detach()[c]) for p in (f.gamma, f.zeta, f.beta))
        v = float(x[n, c, i].detach())
        assert float(y[n, c, i].detach()) == (v - gamma + zeta if v > gamma else beta * (v - gamma) + zeta)
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in f.named_parameters()]
    whole = lambda x, *p: torch.func.functional_call(f, dict(zip(names, p, strict=True)), (x,))  # noqa: E731
    assert torch.autograd.gradcheck(whole, (x, *f.parameters()))


def test_rprelu_keeps_the_dtype_and_refuses_no_channels():
    assert RPReLU(2)(torch.randn(1, 2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="channels must be at least 1"):
        RPReLU(0)


def test_layers_tell_a_quantizer_what_it_needs():
    conv = QuantConv2d(4, 6, 3, groups=2, input_quantizer=RSign)
    linear = QuantLinear(5, 3, input_quantizer=RSign)
    assert conv.input_quantizer.shift.shape == (4,)
    assert linear.input_quantizer.shift.shape == (5,)
    shared = QuantConv2d(4, 6, 3, input_quantizer=partial(RSign, channels=1))
    assert shared.input_quantizer.shift.shape == (1,)
    assert "input_quantizer.shift" in conv.state_dict()
    made = {}
    make_quantizer(lambda fan_in: made.update(fan_in=fan_in) or XnorWeight(), "weight_quantizer", channels=2, fan_in=9)
    assert made == {"fan_in": 9}
    with pytest.raises(ValueError, match="channels must be at least 1"):
        RSign(0)
    with pytest.raises(TypeError, match=r"input_quantizer: .*DoReFaActivation.* needs bits"):
        QuantLinear(5, 3, input_quantizer=DoReFaActivation)


@pytest.mark.parametrize("pad_value", [0, 1, -1])
def test_shifted_signs_in_layers(pad_value):
    torch.manual_seed(0)
    layer = QuantConv2d(3, 4, 3, padding=1, weight_quantizer=XnorWeight, input_quantizer=RSign, pad_value=pad_value)
    linear = QuantLinear(3, 4, weight_quantizer=XnorWeight, input_quantizer=RSign)
    with torch.no_grad():
        for part in (layer, linear):
            part.input_quantizer.shift.copy_(torch.tensor([-0.5, 0.0, 0.5]))
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(layer.eval()(x), layer.train()(x))
    signs = torch.where(x >= torch.tensor([-0.5, 0.0, 0.5]).reshape(3, 1, 1), 1.0, -1.0)
    assert torch.equal(layer.input_quantizer(x), signs)
    tokens = x[0].permute(1, 2, 0)  # channels last, two axes before them
    torch.testing.assert_close(linear.eval()(tokens), linear.train()(tokens))
    assert torch.equal(linear.input_quantizer(tokens), signs[0].permute(1, 2, 0))
    layer(x).sum().backward()
    assert layer.input_quantizer.shift.grad.abs().sum() > 0


def test_shifted_signs_convert():
    torch.manual_seed(0)
    binary = partial(QuantConv2d, weight_quantizer=XnorWeight, input_quantizer=RSign)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), binary(8, 8, 3, padding=1), nn.BatchNorm2d(8), binary(8, 4, 3), nn.Flatten()
    )
    with torch.no_grad():
        for m in net:
            if isinstance(m, QuantConv2d):
                m.input_quantizer.shift.normal_()
    net.train()(torch.randn(16, 1, 9, 9))
    x = torch.randn(8, 1, 9, 9)
    report = bnn.check_parity(net.eval(), bnn.convert(net, x), x)
    assert report.ok, str(report)
