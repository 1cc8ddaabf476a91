"""Costs against numbers worked out by hand."""

import copy
from functools import partial

import bnn_kernels as bk
import pytest
import torch
from torch import nn

import bnn
from bnn import models
from bnn.converter.stored_bytes import stored_bytes
from bnn.layers import QuantConv2d, QuantConv3d, QuantConvTranspose2d, QuantEmbedding, RPReLU
from bnn.layers.base import shapes_only
from bnn.models import (
    AlexNet,
    LeNet5,
    ReActNetA,
    ResNet20,
    VGGSmall,
    trained_like,
)
from bnn.quantizers import (
    DoReFaActivation,
    DoReFaWeight,
    FullPrecision,
    LsqActivation,
    LsqWeight,
    RSign,
    SteSign,
    TernaryWeight,
    XnorWeight,
)

BINARY = {"weight_quantizer": XnorWeight, "input_quantizer": SteSign}


def test_lenet5_in_bits():
    summary = bnn.summary(LeNet5(**BINARY), (1, 28, 28))
    rows = {row.name: row for row in summary.layers}
    macs = {"conv1": 20 * 25 * 24 * 24, "conv2": 50 * 500 * 8 * 8, "linear3": 800 * 500, "linear4": 500 * 10}
    assert {name: rows[name].macs for name in macs} == macs
    assert summary.macs == sum(macs.values())
    assert summary.bops == 1024 * (macs["conv1"] + macs["linear4"]) + macs["conv2"] + macs["linear3"]
    floats, bits = macs["conv1"] + macs["linear4"], macs["conv2"] + macs["linear3"]
    assert summary.macs_by_precision == {(1, 1): bits, (32, 32): floats}
    assert summary.operations == floats + bits / 64
    # A threshold and a direction for all between two binary layers, two codes, and which way pooling goes;
    # scale and bias where floats come out.
    assert rows["conv2"].bytes == 50 * 500 / 8 + 5 * 50 + 2 + 50
    assert rows["linear3"].bytes == 800 * 500 / 8 + 8 * 500
    assert rows["conv1"].bytes == 4 * (500 + 20) + 5 * 20 + 20
    assert rows["norm1"].bytes == 0
    assert rows["norm2"].bytes == rows["norm3"].bytes == 0
    assert summary.parameters == 520 + 80 + 80 + 25050 + 200 + 400500 + 5010
    assert rows["conv2"].output_shape == (50, 8, 8)
    assert "conv2" in str(summary)
    assert f"{summary.parameters:,}" in str(summary)
    assert f"1/1: {bits:,}, 32/32: {floats:,}" in str(summary)


ZOO = [kind for kind in vars(models).values() if isinstance(kind, type) and issubclass(kind, nn.Module)]


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("kind", ZOO)
def test_bytes_are_those_of_the_packed_file(kind, tmp_path):
    """Over the zoo (large networks at half their width, for time): summary == loaded weights == file payload."""
    options = {**BINARY, "input_quantizer": RSign} if kind is ReActNetA else BINARY
    model = kind(**options)
    if sum(weight.numel() for weight in model.parameters()) > 5e6:
        model = kind(**options, width=0.5)
    size = 64 if model.input_shape[1] == 224 and kind is not AlexNet else model.input_shape[1]
    images = torch.randn(2, model.input_shape[0], size, size)
    trained_like(model, images)
    packed = bnn.convert(model, images)
    assert bnn.summary(model, tuple(images.shape[1:])).bytes == packed.nbytes
    packed.save(tmp_path / "packed.safetensors")
    loaded = bk.load(tmp_path / "packed.safetensors")
    assert loaded.nbytes == packed.nbytes
    # Header and table of tensors come to the payload.
    assert 0 < (tmp_path / "packed.safetensors").stat().st_size - packed.nbytes < 1000 * len(packed.steps)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("kind", "weight", "given"),
    [
        (LeNet5, partial(DoReFaWeight, 2), partial(DoReFaActivation, 2)),
        (ResNet20, partial(DoReFaWeight, 2), partial(DoReFaActivation, 2)),
        (VGGSmall, partial(DoReFaWeight, 4), partial(DoReFaActivation, 4)),
        (LeNet5, TernaryWeight, FullPrecision),
        (ResNet20, XnorWeight, FullPrecision),
        (VGGSmall, FullPrecision, FullPrecision),
    ],
)
def test_bytes_of_other_precisions(kind, weight, given):
    model = kind(weight_quantizer=weight, input_quantizer=given)
    images = torch.randn(2, *model.input_shape)
    trained_like(model, images)
    assert bnn.summary(model, model.input_shape).bytes == bnn.convert(model, images).nbytes


def test_bytes_follow_the_bits():
    """The published sizes: weights of AlexNet, ResNet-18 and VGG-small at 1 bit, first and last layer at 32."""
    for kind, float_weights in ((AlexNet, 96 * 363 + 4096 * 1000), (VGGSmall, 3456 + 81920)):
        model = kind(**BINARY)
        weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
        size = (weights - float_weights) / 8 + 4 * float_weights
        assert bnn.summary(model, model.input_shape).bytes == pytest.approx(size, rel=0.02)


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
    packed = bnn.convert(nn.Sequential(layer).eval(), torch.zeros(1, 10))
    assert row.bytes == packed.nbytes
    assert row.bytes >= 40 * bits[0] / 8 + 4 * 4  # and a scale for each output
    assert row.bops == 40 * bits[0] * bits[1]


def test_macs_of_every_kind_of_layer():
    layers = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.Unflatten(2, (2, 3)), nn.ConvTranspose2d(4, 6, 3, 2, groups=2),
        nn.Unflatten(2, (1, 5)), QuantConv3d(6, 4, (1, 2, 2)), nn.Flatten(2), nn.Linear(24, 5), nn.Flatten(),
        nn.Linear(20, 2),
    )  # fmt: skip
    rows = [row.macs for row in bnn.summary(layers, (2, 8)).layers]
    assert rows == [4 * 2 * 3 * 6, 4 * 3 * 9 * 6, 4 * 6 * 4 * 1 * 4 * 6, 4 * 24 * 5, 20 * 2]


def test_embeddings_and_layers_of_unknown_cost():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = QuantEmbedding(16, 8, weight_quantizer=XnorWeight)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.linear = nn.Linear(8, 8)
            self.position = nn.Parameter(torch.zeros(1, 4, 8))

        def forward(self, x):
            x = self.embedding(x) + self.position
            x = self.attention(x, x, x)[0]
            return self.linear(self.linear(x))  # twice

    model = Net()
    summary = bnn.summary(model, torch.zeros(3, 4, dtype=torch.long))
    rows = {row.name: row for row in summary.layers}
    assert rows["embedding"].bytes > 0
    assert rows["embedding"].macs == 0
    assert rows["linear"].macs == 2 * 4 * 64
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert set(summary.uncounted) == {"", "attention", "attention.out_proj"}
    assert "which are not known here" in str(summary)


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


ACTIVATIONS = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "hardtanh": nn.Hardtanh,
    "tanh": nn.Tanh,
    "prelu": partial(nn.PReLU, 8),
    "leaky": nn.LeakyReLU,
    "gelu": nn.GELU,
    "rprelu": partial(RPReLU, 8),
}


@pytest.mark.quick_cases(8)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "kind",
    [
        (XnorWeight, SteSign),
        (partial(LsqWeight, 8), partial(LsqActivation, 8, signed=True)),
        (TernaryWeight, partial(DoReFaActivation, 2)),
        (XnorWeight, FullPrecision),
    ],
)
def test_bytes_are_the_payload_behind_every_activation(activation, kind):
    weight, given = kind
    conv = partial(QuantConv2d, 8, 8, 3, weight_quantizer=weight, input_quantizer=given)
    act = ACTIVATIONS[activation]
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), act(), conv(), nn.BatchNorm2d(8), act(), conv(), act(),
        nn.BatchNorm2d(8), conv(),
    )  # fmt: skip
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    model.train()(images)  # what learns from a first batch
    trained_like(model, images)
    summary = bnn.summary(model, (3, 12, 12))
    assert not summary.estimated
    assert summary.bytes == bnn.convert(model, images).nbytes
    assert bnn.summary(model.train(), (3, 12, 12)).bytes == summary.bytes


class BinarizesInForward(nn.Module):
    """As published code does: the weight is exchanged for its signs whenever the layer runs."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 5)
        self.latent = self.inner.weight.data.clone()

    def forward(self, x):
        self.inner.weight.data = self.latent.sign() * 0.5
        return self.inner(x)


def test_planning_shares_the_weights_and_changes_none():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), BinarizesInForward()).eval()
    model(torch.zeros(1, 4))
    weights = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    stored_bytes(model, torch.zeros(1, 4))
    for name, p in model.named_parameters():
        assert p.data_ptr() == weights[name][0]
        assert torch.equal(p, weights[name][1])


@pytest.mark.parametrize("kind", [(XnorWeight, SteSign), (XnorWeight, FullPrecision), (FullPrecision, SteSign)])
def test_summaries_run_no_quantizer_on_the_way(kind):
    """Only shapes count; the layers compute as before when it is done."""
    weight, given = kind
    conv = partial(QuantConv2d, weight_quantizer=weight, input_quantizer=given)
    model = nn.Sequential(conv(3, 8, 3, stride=2, padding=1), QuantConvTranspose2d(8, 4, 2, 2, **BINARY)).eval()
    x = torch.randn(2, 3, 9, 9)
    before, state = model(x), dict(vars(model[0]))
    with shapes_only(model):
        assert model(x).shape == before.shape
        assert not torch.equal(model(x), before)
    assert torch.equal(model(x), before)
    assert vars(model[0]) == state
    bnn.summary(model, (3, 9, 9))
    assert vars(model[0]) == state


def test_what_cannot_be_packed_is_estimated_and_says_so():
    layer = partial(QuantConv3d, 2, 4, 3, weight_quantizer=XnorWeight, input_quantizer=SteSign)
    assert not bnn.summary(nn.Sequential(layer()), (2, 5, 5, 5)).estimated
    summary = bnn.summary(nn.Sequential(layer(input_scale=True)), (2, 5, 5, 5))
    assert "input_scale" in summary.estimated
    assert "estimate" in str(summary)
    assert summary.bytes == 4 * 2 * 27 / 8 + 4 * 4 + 4 * 4
    diverged = nn.Sequential(nn.Linear(4, 4))
    nn.init.constant_(diverged[0].weight, float("nan"))
    assert "NaN" in bnn.summary(diverged, (4,)).estimated


def test_synchronized_batch_norms_count_as_others():
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), QuantConv2d(8, 8, 3, **BINARY), nn.BatchNorm2d(8))
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    a, b = (bnn.summary(model, (3, 9, 9)) for model in (plain, synchronized))
    assert [row.parameters for row in a.layers] == [row.parameters for row in b.layers]
    assert b.estimated or a.bytes == b.bytes


def test_a_file_larger_than_the_floats_is_told():
    """Thresholds of 8-bit levels, one set a channel, take more than the weights they save; rounding takes nothing."""
    norm = nn.BatchNorm2d(64)
    quantized = partial(
        QuantConv2d, weight_quantizer=partial(LsqWeight, 8), input_quantizer=partial(LsqActivation, 8, signed=True)
    )
    model = nn.Sequential(nn.Conv2d(3, 64, 1), norm, nn.Sigmoid(), quantized(64, 8, 1))
    images = torch.randn(2, 3, 5, 5)
    model.train()(images)
    trained_like(model, images)
    assert (
        bnn.summary(model, (3, 5, 5)).bytes
        == bnn.convert(model, images).nbytes
        > 4 * bnn.summary(model, (3, 5, 5)).parameters
    )
    del model[2]
    summary = bnn.summary(model, (3, 5, 5))
    assert summary.bytes == bnn.convert(model, images).nbytes < 4 * summary.parameters
