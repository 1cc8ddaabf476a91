"""AdaBin's Maxout: its formula, its gradients, its bits."""

from functools import partial

import pytest
import torch
from conversion import check, images
from torch import nn

from bnn.layers import Maxout, QuantConv2d, QuantLinear
from bnn.quantizers import AdaBinActivation, AdaBinWeight


def test_maxout_is_its_formula():
    torch.manual_seed(0)
    f = Maxout(3).double()
    assert (f.positive.tolist(), f.negative.tolist()) == ([1] * 3, [0.25] * 3)
    with torch.no_grad():
        for p in f.parameters():
            p.normal_()
    for shape in ((4, 3), (2, 3, 5), (2, 3, 4, 4)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        by_channel = [p.reshape(-1, *[1] * (len(shape) - 2)) for p in (f.positive, f.negative)]
        assert torch.equal(f(x), by_channel[0] * x.relu() - by_channel[1] * (-x).relu())
    assert torch.autograd.gradcheck(lambda x, *p: f(x), (x, *f.parameters()))


def test_maxout_at_zero_and_at_the_edges():
    f = Maxout(1, positive=2.0, negative=0.5)
    x = torch.tensor([[-4.0], [-0.0], [0.0], [4.0], [torch.inf], [-torch.inf]], requires_grad=True)
    y = f(x)
    assert y.flatten().tolist() == [-2, 0, 0, 8, torch.inf, -torch.inf]
    y[:4].sum().backward()
    assert x.grad.flatten().tolist() == [0.5, 0, 0, 2, 0, 0]
    assert f(torch.tensor([[torch.nan]])).isnan()
    assert f(torch.randn(2, 1, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="channels must be at least 1"):
        Maxout(0)


def test_maxout_converts():
    """Within AdaBin's block; slopes of either sign."""
    torch.manual_seed(0)
    quantized = {"weight_quantizer": AdaBinWeight, "input_quantizer": AdaBinActivation}
    conv = partial(QuantConv2d, bias=False, **quantized)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), Maxout(8), conv(8, 8, 3), nn.BatchNorm2d(8), Maxout(8), nn.Flatten(),
        QuantLinear(8 * 25, 10, **quantized),
    )  # fmt: skip
    net(images(16, 1, 9, 9))
    with torch.no_grad():
        for m in net:
            if isinstance(m, Maxout):
                m.positive.uniform_(-0.5, 2)
                m.negative.uniform_(-0.5, 1)
    check(net.eval(), images(6, 1, 9, 9))
