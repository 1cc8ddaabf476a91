"""Networks over three axes convert: compared with PyTorch, bit for bit where weights and inputs are levels."""

from functools import partial

import bnn_kernels as bk
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bnn
from bnn.layers import QuantConv3d
from bnn.quantizers import DoReFaActivation, SteSign, TernaryWeight, XnorWeight

SIGNS = {"weight_quantizer": XnorWeight, "input_quantizer": SteSign}
FEW_BITS = {"weight_quantizer": TernaryWeight, "input_quantizer": partial(DoReFaActivation, bits=2)}


def both(model: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, bk.PackedModel]:
    """Return what PyTorch and the packed network make of the same numbers, and the packed network."""
    torch.manual_seed(0)
    x = torch.randn(3, *shape)
    packed = bnn.convert(model.eval(), x)
    with torch.no_grad():
        return model(x), torch.from_numpy(packed(x.numpy())), packed


FLOATS = {
    "plain": (lambda: nn.Conv3d(3, 4, 3), (3, 5, 6, 7)),
    "sides": (lambda: nn.Conv3d(4, 6, (3, 2, 3), (2, 3, 2), (1, 2, 1), (1, 2, 1), groups=2), (4, 7, 9, 8)),
    "depthwise": (lambda: nn.Conv3d(4, 4, 3, 1, "same", groups=4, bias=False), (4, 3, 4, 5)),
    "one slice": (lambda: nn.Conv3d(2, 3, (1, 3, 3), padding=(0, 1, 1)), (2, 3, 4, 5)),
    "max": (lambda: nn.MaxPool3d(3, 2, 1), (3, 5, 6, 7)),
    "max dilated": (lambda: nn.MaxPool3d(2, 1, 1, 2, ceil_mode=True), (3, 5, 6, 7)),
    "mean": (lambda: nn.AvgPool3d((1, 3, 2), (1, 2, 1), (0, 1, 1)), (3, 5, 6, 7)),
    "mean inside": (lambda: nn.AvgPool3d(3, 2, 1, ceil_mode=True, count_include_pad=False), (3, 5, 6, 7)),
    "mean divisor": (lambda: nn.AvgPool3d(2, divisor_override=5), (3, 4, 6, 7)),
    "adaptive mean": (lambda: nn.AdaptiveAvgPool3d((1, 4, None)), (3, 5, 6, 7)),
    "adaptive max": (lambda: nn.AdaptiveMaxPool3d((2, 4, 3)), (3, 5, 6, 7)),
    "norm": (lambda: nn.Sequential(nn.BatchNorm3d(3), nn.PReLU(3)), (3, 2, 3, 4)),
}


@pytest.mark.parametrize("name", FLOATS)
def test_floats_agree(name: str) -> None:
    make, shape = FLOATS[name]
    torch.manual_seed(1)
    expected, made, _ = both(make(), shape)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "pad"), [(SIGNS, 0.0), (SIGNS, 1.0), (SIGNS, -1.0), (FEW_BITS, 0.0)], ids=["0", "+1", "-1", "few bits"]
)
@pytest.mark.parametrize("groups", [1, 2])
def test_levels_are_exact(options: dict, pad: float, groups: int) -> None:
    torch.manual_seed(1)
    layer = QuantConv3d(4, 6, (3, 3, 2), (1, 2, 1), 1, groups=groups, pad_value=pad, **options)
    expected, made, packed = both(layer, (4, 4, 5, 6))
    assert torch.equal(made, expected)
    assert "binary_conv" in [step.op for step in packed.steps]


class Residual(nn.Module):
    """Two convolutions, a sum and a gate of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8)
        self.body, self.gate, self.head = nn.Conv3d(8, 8, 3, padding=1), nn.Conv3d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.stem(x)))
        y = self.body(x) + x
        y = y * torch.sigmoid(self.gate(y.mean((2, 3, 4), keepdim=True)))
        return self.head(y.mean((2, 3, 4)))


def test_network_as_file(tmp_path) -> None:
    torch.manual_seed(1)
    model = bnn.quantize(Residual(), **SIGNS, skip=("first", "last", "gate"))
    expected, made, packed = both(model, (2, 4, 5, 6))
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    report = {row.place: row for row in bnn.converter.explain(model, torch.randn(1, 2, 4, 5, 6)).layers}
    assert report["body"].on_bits
    packed.save(tmp_path / "volume.safetensors")
    loaded = bk.load(tmp_path / "volume.safetensors")
    x = np.random.default_rng(0).normal(size=(2, 2, 4, 5, 6)).astype(np.float32)
    assert loaded.input_shape == (2, 4, 5, 6)
    for _ in range(3):  # step by step, recorded, played back
        np.testing.assert_array_equal(loaded(x), packed(x))


def test_volumes_in_and_out() -> None:
    x = torch.randn(2, 2, 3, 4, 5)
    packed = bnn.convert(nn.ReLU().eval(), x)
    np.testing.assert_array_equal(packed(x.numpy()), x.relu().numpy())
    with pytest.raises(ValueError, match=r"must have shape \(N, 2, 3, 4, 5\)"):
        packed(np.zeros((1, 2, 3, 5, 4), np.float32))


def test_scale_of_inputs_is_refused() -> None:
    layer = QuantConv3d(2, 2, 2, **SIGNS, input_scale=True).eval()
    with pytest.raises(bnn.ConversionError, match="input_scale"):
        bnn.convert(layer, torch.randn(1, 2, 3, 3, 3))


@pytest.mark.parametrize("pool", [nn.MaxPool3d(2), nn.AvgPool3d(2), nn.AdaptiveAvgPool3d(2), nn.AdaptiveMaxPool3d(2)])
def test_pooling_of_three_axes_needs_them_behind_the_channels(pool) -> None:
    with pytest.raises(bnn.ConversionError, match=r"takes windows over 3 axes, got \('N', 4, 4, 4\): put the batch"):
        bnn.convert(pool.eval(), torch.randn(1, 4, 4, 4))


class Loop(nn.Module):
    """A cell in a loop of one's own."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return state[0] if isinstance(state, tuple) else state


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("bias", [True, False])
def test_cells_in_a_loop_agree(cell, bias: bool) -> None:
    torch.manual_seed(1)
    expected, made, _ = both(Loop(cell(5, 7, bias=bias)), (4, 5))
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_same_padding_of_even_filters_is_refused() -> None:
    """Volumes have the same padding on both sides; over two axes it may differ."""
    model = nn.Sequential(nn.Conv3d(2, 2, 2, padding="same")).eval()
    with pytest.raises(bnn.ConversionError, match="lopsided"):
        bnn.convert(model, torch.randn(2, 2, 4, 4, 4))
    found, expected, _ = both(nn.Sequential(nn.Conv3d(2, 2, 3, padding="same")).eval(), (2, 4, 4, 4))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
