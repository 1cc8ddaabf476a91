"""sign_of_zero: who takes torch.sign(0) as +1 gets one plane of bits, held against the network with that sign."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bnn_kernels import load
from torch import Tensor, nn

import bnn


class Signs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.sign(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def in_place(x: Tensor) -> Tensor:
    return x.clone().sign_()


def scaled(x: Tensor) -> Tensor:
    return 0.5 * x.sign()


def of_plus(x: Tensor) -> Tensor:
    """What torch.sign is where sign(0) is +1."""
    return torch.where(x >= 0, 1.0, -1.0)


SPELLINGS = {
    "function": torch.sign, "method": Tensor.sign, "in place": in_place, "scaled": scaled, "sgn": torch.sgn,
    "autograd": Signs.apply,
}  # fmt: skip


def binary(weight: Tensor) -> Tensor:
    return of_plus(weight) * weight.abs().mean((1, 2, 3), keepdim=True)


class Net(nn.Module):
    """Two binary convolutions: the sums of the first, of 36 signs, are often 0."""

    def __init__(self, sign) -> None:
        super().__init__()
        self.sign = sign
        self.first, self.second = nn.Conv2d(4, 8, 3, bias=False), nn.Conv2d(8, 4, 3, bias=False)

    def sums(self, x: Tensor) -> Tensor:
        return F.conv2d(of_plus(x), of_plus(self.first.weight))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.sign(self.sums(x)), binary(self.second.weight)).mean((2, 3))


def second(explained):
    """Return what is said of the second convolution."""
    return explained.layers[1]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_signs_are_one_plane_and_zeros_plus_one(spelling, tmp_path):
    torch.manual_seed(0)
    model = Net(SPELLINGS[spelling]).eval()
    x = torch.randn(4, 4, 8, 8)
    three = bnn.converter.explain(model, x)
    assert second(three).input_bits == 2
    assert "sign_of_zero=1" in second(three).note
    assert "sign_of_zero=1" in str(three)
    two = bnn.converter.explain(model, x, sign_of_zero=1)
    assert (second(two).input_bits, second(two).note) == (1, "")

    packed = bnn.convert(model, x, sign_of_zero=1)
    scale = 0.5 if spelling == "scaled" else 1.0
    twin = Net(lambda y: scale * of_plus(y)).eval()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected, own = twin(x), model(x)
    np.testing.assert_allclose(packed(x.numpy()), expected.numpy(), rtol=0, atol=1e-5)
    assert float((expected - own).abs().max()) > 0.01  # many zeros were met
    packed.save(tmp_path / "signs.safetensors")
    report = bnn.check_parity(model, load(tmp_path / "signs.safetensors"), x)
    assert report.ok, str(report)
    with torch.no_grad():
        zeros = int((model.sums(x) == 0).sum())
    assert (report.signs, report.signs_of_zero) == (4 * 8 * 36, zeros)
    assert f"{zeros:,} of 1,152 signs are of 0, and count as +1 in both networks" in str(report)
    assert report.explanation.layers == two.layers


def test_pytorch_keeps_its_own_sign():
    model = Net(torch.sign).eval()
    x = torch.randn(2, 4, 8, 8)
    packed = bnn.convert(model, x)
    report = bnn.check_parity(model, packed, x)
    assert report.ok
    assert report.signs == 0
    assert "signs are of 0" not in str(report)
    assert float(torch.sign(torch.zeros(1))) == 0
    bnn.convert(model, x, sign_of_zero=1)
    assert float(torch.sign(torch.zeros(1))) == 0


def test_other_signs_are_refused():
    with pytest.raises(ValueError, match="sign_of_zero must be 0, as PyTorch has it, or 1, got -1"):
        bnn.convert(Net(torch.sign).eval(), torch.randn(1, 4, 8, 8), sign_of_zero=-1)
