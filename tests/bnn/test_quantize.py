"""bnn.quantize: which layers become quantized, with what, and what is refused."""

import copy
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnn
from bnn.data_flow import data_flow
from bnn.layers import (
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
    QuantEmbedding,
    QuantLinear,
)
from bnn.layers.base import QuantLayer
from bnn.models import ResNet18
from bnn.quantizers import DoReFaActivation, DoReFaWeight, FullPrecision, RSign, SteSign, XnorWeight

BINARY = {"weight_quantizer": XnorWeight, "input_quantizer": SteSign}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Residual(nn.Module):
    """Two stems, a block with a downsample branch and functional calls, two heads; defined in a muddled order."""

    def __init__(self):
        super().__init__()
        self.head_a = nn.Linear(8, 3)
        self.downsample = nn.Sequential(nn.Conv2d(8, 8, 1, 2), nn.BatchNorm2d(8))
        self.conv = nn.Conv2d(8, 8, 3, 2, 1)
        self.stem_a = nn.Conv2d(3, 8, 3, padding=1)
        self.head_b = nn.Linear(8, 2)
        self.stem_b = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        x = F.hardtanh(self.stem_a(x) + self.stem_b(x))
        x = self.conv(x) + self.downsample(x)
        x = x.mean((2, 3))
        return self.head_a(x), self.head_b(x)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 4)
        self.middle = nn.Linear(4, 4)
        self.first = nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x)
        if x.sum() > 1e9:
            x = -x
        return self.last(self.middle(x))


def quantized(model):
    return {name for name, m in model.named_modules() if isinstance(m, QuantLayer)}


def test_a_plain_network():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10))
    before = copy.deepcopy(model)
    ours = bnn.quantize(model, **BINARY)
    assert ours is not model
    assert quantized(ours) == {"2"}
    assert quantized(model) == set()
    assert list(ours.state_dict()) == list(model.state_dict())
    assert all(torch.equal(v, ours.state_dict()[k]) for k, v in before.state_dict().items())
    assert not {id(p) for p in ours.parameters()} & {id(p) for p in model.parameters()}
    x = draw(2, 3, 8, 8)
    h = model[1](model[0](x))
    w = model[2].weight
    sign = [torch.where(t < 0, -1.0, 1.0) for t in (h, w)]
    expected = F.conv2d(sign[0], sign[1] * w.abs().mean((1, 2, 3), keepdim=True), model[2].bias)
    torch.testing.assert_close(ours(x), model[4](expected.flatten(1)))
    ours(x).sum().backward()
    assert all(p.grad is not None for p in ours.parameters())
    assert all(p.grad is None for p in model[2].parameters())


@pytest.mark.parametrize(
    ("model", "shape", "kind"),
    [
        (nn.Conv1d(4, 6, 3, 2, 1, 2, 2, bias=False), (2, 4, 9), QuantConv1d),
        (nn.Conv2d(4, 6, (3, 1), (2, 1), (1, 0), 2, 2), (2, 4, 9, 8), QuantConv2d),
        (nn.Conv2d(4, 4, 3, padding="same"), (2, 4, 6, 6), QuantConv2d),
        (nn.Conv3d(4, 6, 3, 2, 1, groups=2), (2, 4, 5, 6, 5), QuantConv3d),
        (nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2, dilation=2), (2, 4, 5), QuantConvTranspose1d),
        (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2, dilation=2), (2, 4, 5, 5), QuantConvTranspose2d),
        (nn.ConvTranspose3d(4, 6, 3, 2, 1, 1, 2, bias=False), (2, 4, 3, 4, 3), QuantConvTranspose3d),
        (nn.Linear(4, 3, bias=False), (2, 5, 4), QuantLinear),
    ],
)
def test_every_kind_keeps_its_arguments(model, shape, kind):
    """With full precision the exchanged layer is the same function, with a quantizer it is one of quantized values."""
    x = draw(*shape)
    ours = bnn.quantize(model, weight_quantizer=FullPrecision, skip=())
    assert type(ours) is kind
    assert torch.equal(ours(x), model(x))
    binary = bnn.quantize(model, **BINARY, skip=())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        filters = binary.filters(twin.weight)
        alpha = filters.abs().flatten(1).mean(1).reshape(-1, *[1] * (filters.ndim - 1))
        twin.weight.copy_(binary.from_filters(torch.where(filters < 0, -alpha, alpha)))
    torch.testing.assert_close(binary(x), twin(torch.where(x < 0, -1.0, 1.0)))


def test_embeddings_and_tied_weights():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 8, padding_idx=0)
            self.hidden = nn.Linear(8, 8)
            self.output = nn.Linear(8, 10, bias=False)
            self.output.weight = self.embedding.weight

        def forward(self, x):
            return self.output(torch.tanh(self.hidden(self.embedding(x))))

    model = Language()
    ours = bnn.quantize(model, **BINARY)
    assert quantized(ours) == {"hidden"}
    ours = bnn.quantize(model, **BINARY, skip=())
    assert isinstance(ours.embedding, QuantEmbedding)
    assert ours.embedding.padding_idx == 0
    assert ours.output.weight is ours.embedding.weight
    assert ours(torch.tensor([[1, 0, 3]])).shape == (1, 3, 10)


def test_first_and_last_follow_the_data():
    model = Residual()
    assert quantized(bnn.quantize(model, **BINARY)) == {"conv", "downsample.0"}
    assert quantized(bnn.quantize(model, **BINARY, skip="first")) == {"conv", "downsample.0", "head_a", "head_b"}
    assert quantized(bnn.quantize(model, **BINARY, skip=["last", "downsample"])) == {"conv", "stem_a", "stem_b"}
    assert quantized(bnn.quantize(model, **BINARY, skip=())) == {
        name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
    }


def test_a_model_that_cannot_be_traced_is_run():
    model = Untraceable()
    with pytest.raises(ValueError, match=r"Untraceable cannot be traced .* example_input"):
        bnn.quantize(model, **BINARY)
    ours = bnn.quantize(model.train(), **BINARY, example_input=draw(1, 4))
    assert quantized(ours) == {"middle"}
    assert ours.training
    assert quantized(bnn.quantize(model, **BINARY, skip=["la*"])) == {"first", "middle"}  # no need to trace
    assert not any(m._forward_hooks for m in ours.modules())


def test_rules():
    def net():
        return nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Hardtanh()) for _ in range(5)))

    few = {"weight_quantizer": partial(DoReFaWeight, 4), "input_quantizer": partial(DoReFaActivation, 2)}
    ours = bnn.quantize(
        net(),
        **BINARY,
        skip=(),
        pad_value=1,
        rules={
            "first": {"weight_quantizer": partial(DoReFaWeight, 8), "input_quantizer": FullPrecision},
            "[12].*": few,
            "2.0": {"weight_quantizer": partial(DoReFaWeight, 3), "pad_value": 0},
            "3": None,
        },
    )
    convs = {name: m for name, m in ours.named_modules() if isinstance(m, nn.Conv2d)}
    found = {
        name: (m.weight_quantizer.bits, m.input_quantizer.bits, m.pad_value)
        for name, m in convs.items()
        if isinstance(m, QuantLayer)
    }
    assert found == {"0.0": (8, 32, 1), "1.0": (4, 2, 1), "2.0": (3, 2, 0), "4.0": (1, 1, 1)}
    assert type(convs["3.0"]) is nn.Conv2d
    own = [q for m in convs.values() if isinstance(m, QuantLayer) for q in (m.weight_quantizer, m.input_quantizer)]
    assert len(set(map(id, own))) == len(own)
    # skip goes before rules
    assert quantized(bnn.quantize(net(), **BINARY, rules={"0.0": few, "4.0": few})) == {"1.0", "2.0", "3.0"}


def test_shared_modules_stay_shared():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(4, 4), shared, nn.Tanh(), nn.Sequential(shared), nn.Linear(4, 2))
    ours = bnn.quantize(model, **BINARY)
    assert ours[1] is ours[3][0]
    assert isinstance(ours[1], QuantLinear)
    assert type(bnn.quantize(model, **BINARY, rules={"3.0": None})[1]) is nn.Linear


def test_parameters_can_be_shared_with_the_model():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    ours = bnn.quantize(model, **BINARY, share_parameters=True)
    assert [id(p) for p in ours.parameters()] == [id(p) for p in model.parameters()]
    assert ours[2].weight is model[2].weight
    assert ours[1] is not model[1]
    assert not any(m.training for m in ours.modules())


def test_quantizers_get_the_layers_channels_and_dtype():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1)).double()
    ours = bnn.quantize(model, weight_quantizer=XnorWeight, input_quantizer=RSign)
    assert ours[1].input_quantizer.shift.shape == (6,)
    assert {p.dtype for p in ours.parameters()} == {torch.float64}
    assert not any(p.is_meta for p in ours.parameters())


def test_layers_that_are_quantized_already_stay():
    model = ResNet18(10, layout="cifar", width=0.125, **BINARY)
    ours = bnn.quantize(model, weight_quantizer=SteSign, skip=())
    bits = {type(m.weight_quantizer) for m in ours.modules() if isinstance(m, QuantLayer)}
    assert bits == {XnorWeight, SteSign}
    assert type(ours.stem.conv.weight_quantizer) is SteSign
    assert type(ours.stages.stage1[0].unit1.conv.weight_quantizer) is XnorWeight
    # They count as layers: what lies between them is neither first nor last.
    model = nn.Sequential(QuantLinear(4, 4), nn.Linear(4, 4), OwnConv(4, 4, 1))
    assert type(bnn.quantize(model, **BINARY, skip=("first", "last"))[1]) is QuantLinear


def relu_net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(),
        nn.Conv2d(4, 4, 1), nn.Tanh(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip


def test_signs_behind_a_relu_are_warned_of():
    with pytest.warns(UserWarning, match=r"input of 4, 6 is never negative .* replace="):
        bnn.quantize(relu_net(), **BINARY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bnn.quantize(relu_net(), weight_quantizer=XnorWeight)
        bnn.quantize(relu_net(), weight_quantizer=XnorWeight, input_quantizer=partial(DoReFaActivation, 1))
        ours = bnn.quantize(relu_net(), **BINARY, replace={nn.ReLU: nn.Hardtanh})
    assert isinstance(ours[2], nn.Hardtanh)
    assert ours[2] is not ours[5]


def test_data_flow_of_functional_calls():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x):
            x = self.a(x).relu()
            y = self.b(F.dropout(x) + x.flatten(1))
            return self.d(torch.cat([self.c(x), F.relu(y)], 1)[:, :4])

    model = Net()
    flow = data_flow(model, dict(model.named_children()))
    assert (flow.first, flow.last, flow.not_negative) == ({"a"}, {"d"}, {"b", "c"})


class OwnConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            nn.Sequential(nn.Sequential(nn.LSTM(4, 4))),
            r"0\.0: LSTM cannot be quantized as a layer .*; put it into skip",
        ),
        (nn.Sequential(nn.MultiheadAttention(4, 2)), "0: MultiheadAttention reads weights past its layers"),
        (nn.TransformerEncoderLayer(4, 2), "TransformerEncoderLayer reads weights"),
        (nn.Sequential(nn.Bilinear(4, 4, 4)), "0: Bilinear cannot be quantized"),
        (nn.Sequential(OwnConv(3, 3, 1)), "0: OwnConv is a Conv2d of its own kind"),
        (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")), "0: padding mode 'reflect'"),
        (nn.Sequential(nn.Conv2d(3, 3, 2, padding="same")), "0: padding='same' would be lopsided"),
        (nn.Sequential(nn.Embedding(3, 3, max_norm=1.0)), "0: an Embedding with max_norm"),
        (nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))), "ParametrizedLinear is a Linear"),
        (nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(3, 3))), "0: its hooks or reparametrized weight"),
    ],
)
def test_what_cannot_be_quantized_is_refused_by_its_path(model, words):
    with pytest.raises(ValueError, match=words):
        bnn.quantize(model, **BINARY, skip=())


def test_what_cannot_be_quantized_can_be_skipped():
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2), OwnConv(3, 3, 1))
    assert quantized(bnn.quantize(model, **BINARY, skip=["1", "2"])) == {"0"}
    assert quantized(bnn.quantize(model, **BINARY, skip=(), rules={"[12]": None})) == {"0"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"skip": ["conv9"]}, "pattern 'conv9' matches no module; there are: 0, 1"),
        ({"rules": {"7": None}}, "pattern '7' matches no module"),
        ({"rules": {"0": {"bits": 4}}}, "rule '0': unknown option 'bits'; options are weight_quantizer"),
        ({"skip": (), "pad_value": 3}, r"0: pad_value must be 0, \+1 or -1"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        bnn.quantize(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)), **BINARY, **options)
    with pytest.raises(TypeError, match="0: weight_quantizer must be a factory"):
        bnn.quantize(nn.Sequential(nn.Linear(3, 3)), weight_quantizer=SteSign(), skip=())
