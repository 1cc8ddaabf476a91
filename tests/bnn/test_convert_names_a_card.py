"""Networks whose code names a graphics card: on the CPU they compute what they compute without that."""

import pytest
import torch
from torch import nn

import bnn


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 4)

    def card(self, x):
        return x

    def forward(self, x):
        return self.card(self.layer(x)) * self.card(torch.tensor([2.0]))


class ByMethod(Plain):
    def card(self, x):
        return x.cuda()


class ByNumber(Plain):
    def card(self, x):
        return x.cuda(0)


class ByName(Plain):
    def card(self, x):
        return x.to("cuda:0")


class ByKeyword(Plain):
    def card(self, x):
        return x.to(device=torch.device("cuda"))


class Made(Plain):
    def card(self, x):
        return x + torch.zeros(1, device="cuda")


@pytest.mark.parametrize("network", [ByMethod, ByNumber, ByName, ByKeyword, Made])
def test_a_named_card_is_the_cpu(network):
    x = torch.randn(5, 6)
    expected = Plain().eval()(x)
    model = network().eval()
    packed = bnn.convert(model, x)
    torch.testing.assert_close(torch.from_numpy(packed(x.numpy())), expected)
    if not torch.cuda.is_available():
        assert bnn.check_parity(model, packed, x).ok


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card to move to")
def test_after_a_conversion_a_card_is_asked_for_again():
    bnn.convert(ByMethod().eval(), torch.randn(1, 6))
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1).cuda()
