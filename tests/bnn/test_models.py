"""The networks: published counts, what is quantized, gradients of every parameter, and the trained-like state."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from model_configs import CASES, build, small_shape
from torch import nn

import bnn
from bnn.layers import DroppedInput, QuantConv2d
from bnn.layers.base import QuantLayer
from bnn.models import (
    BNNVGG,
    DSCNN,
    MLP,
    NIN,
    AlexNet,
    BinaryDenseNet28,
    BiRealNet18,
    DarknetExtraction,
    LeNet5,
    MeliusNet22,
    QuickNet,
    ReActNetA,
    RealToBinaryNet,
    ResNet8,
    ResNet18,
    ResNet20,
    ResNetE18,
    VGGSmall,
    trained_like,
)
from bnn.models.binary_densenet28 import DenseLayer
from bnn.models.birealnet18 import BiRealBlock
from bnn.models.meliusnet22 import ImprovementBlock
from bnn.models.reactnet import ReActBlock
from bnn.models.real_to_binary import RealToBinaryUnit
from bnn.models.resnet20 import ShortcutA
from bnn.quantizers import DoReFaActivation, DoReFaWeight, Quantizer, RSign, SteSign, XnorWeight

BINARY = {"weight_quantizer": XnorWeight, "input_quantizer": SteSign}
NARROW = 0.125


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("quantizer", ["xnor", "fp32"])
@pytest.mark.parametrize("name", CASES)
def test_every_model_trains(name, quantizer):
    model = build(name, quantizer, NARROW)
    x = draw(2, *small_shape(model))
    y = model.train()(x)
    assert y.shape[0] == 2
    assert y.ndim == 2
    F.cross_entropy(y, torch.tensor([0, 1])).backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
    # Weights and affine parameters alike: something reaches each, but for what batch norm cancels (biases before it).
    dead = [path for path, p in model.named_parameters() if p.ndim > 1 and p.grad.abs().max() == 0]
    assert dead == []


# Float layers beside the first and the last: how many, and the kernels of convolutions, or what they are.
FLOATS = {
    "birealnet18": (3, {1}),
    "birealnet18_cifar": (3, {1}),
    "resnet_e18": (3, {1}),
    "binary_densenet28": (3, {1}),
    "meliusnet22": (5, {1, "grouped"}),
    "quicknet": (5, {1, "grouped"}),
    "real_to_binary": (3 + 2 * 16, {1, "gate"}),
}


@pytest.mark.parametrize("name", CASES)
def test_first_and_last_layers_are_float_and_all_others_quantized(name):
    model = build(name, "xnor", NARROW)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    quantized = [isinstance(m, QuantLayer) and m.weight_quantizer.packable for m in layers]
    assert not quantized[0]
    assert not quantized[-1]
    floats = [m for m, q in zip(layers[1:-1], quantized[1:-1], strict=True) if not q]
    kinds = {"gate" if isinstance(m, nn.Linear) else "grouped" if m.groups > 1 else m.kernel_size[0] for m in floats}
    assert (len(floats), kinds) == FLOATS.get(name, (0, set()))
    own = [m.weight_quantizer for m in layers if isinstance(m, QuantLayer)]
    assert len(set(map(id, own))) == len(own)


@pytest.mark.parametrize("name", CASES)
def test_the_fp32_twin_is_no_linear_map(name):
    model = build(name, "fp32", NARROW)
    trained_like(model, draw(4, *model.input_shape))
    x = draw(2, *model.input_shape, seed=1)
    with torch.no_grad():
        middle = (model(x) + model(-x)) / 2 - model(torch.zeros_like(x))
    assert middle.abs().max() > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_integers_that_cover_all_of_an_input_are_the_fp32_network(name):
    """Levels of INT8 libraries bend nothing, so what is a ReLU in full precision stays one."""
    full, integers = (build(name, quantizer, NARROW) for quantizer in ("fp32", "int8"))
    quantizers = {name for name, m in integers.named_modules() if isinstance(m, Quantizer)}
    kinds = {name: type(m) for name, m in integers.named_modules() if name not in quantizers}
    assert kinds == {name: type(m) for name, m in full.named_modules() if name not in quantizers}


def parameters(model, *kinds):
    chosen = [m for m in model.modules() if isinstance(m, kinds)] if kinds else [model]
    return sum(p.numel() for m in chosen for p in m.parameters(recurse=not kinds))


@pytest.mark.parametrize(
    ("make", "count", "counted"),
    [
        (ResNet20, 269_850, ()),  # 0.27 M
        (BiRealNet18, 11_689_512, ()),  # ResNet-18
        (AlexNet, 62_378_344, (nn.Conv2d,)),  # one-tower AlexNet
        (partial(ResNet18, quantize_shortcuts=False), 11_689_512 - 9_600, (nn.Conv2d, nn.Linear)),  # less its BN
        (partial(BNNVGG, quantize_ends=True), 14_033_566, ()),  # 14.03 M
        (VGGSmall, 4_656_522, (nn.Conv2d, nn.Linear)),
        (NIN, 966_986, (nn.Conv2d,)),
        (LeNet5, 431_080, (nn.Conv2d, nn.Linear)),
        # the table of larq zoo 2, which counts no running statistics in these
        (ResNetE18, 11_689_640, ()),
        (BinaryDenseNet28, 5_131_496, ()),
        (MeliusNet22, 6_944_584, ()),
        # less the constants of its blurs, and 2 x 16 of a norm without parameters, which it counts
        (QuickNet, 13_234_088 - 9 * (64 + 128 + 256) - 32, ()),
        (partial(QuickNet, channels=(32, 64, 256, 512)), 12_655_688 - 9 * (32 + 64 + 256) - 16, ()),
        (partial(QuickNet, blocks=(6, 8, 12, 6)), 23_342_248 - 9 * (64 + 128 + 256) - 32, ()),
        # BinaryNet's code: 784-4096-4096-4096-10, and 784-2048-2048-2048-10
        (MLP, 785 * 4096 + 2 * 4097 * 4096 + 4097 * 10, (nn.Conv2d, nn.Linear)),
        (partial(MLP, hidden=2048), 785 * 2048 + 2 * 2049 * 2048 + 2049 * 10, (nn.Conv2d, nn.Linear)),
        # the lines of extraction.cfg, without its biases of convolutions
        (
            DarknetExtraction,
            49 * 3 * 64
            + 9 * 64 * 192
            + 192 * 128
            + 9 * 128 * 256
            + 256 * 256
            + 9 * 256 * 512
            + 4 * (512 * 256 + 9 * 256 * 512)
            + 512 * 512
            + 3 * (9 * 512 * 1024)
            + 2 * (1024 * 512)
            + 1025 * 1000,
            (nn.Conv2d, nn.Linear),
        ),
    ],
)
def test_numbers_of_parameters(make, count, counted):
    with torch.device("meta"):
        assert parameters(make(), *counted) == count


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (ResNet8, 78_666),  # mlcommons/tiny, as Keras counts
        (DSCNN, 24_908),
        (RealToBinaryNet, 11_995_624),  # larq zoo 2
        (ResNetE18, 11_699_368),  # larq zoo 1
        (BinaryDenseNet28, 5_150_504),
    ],
)
def test_numbers_of_parameters_that_hold_running_statistics(make, count):
    with torch.device("meta"):
        model = make()
        running = sum(value.numel() for name, value in model.named_buffers() if name.rpartition(".")[2] in RUNNING)
        assert parameters(model) + running == count


RUNNING = ("running_mean", "running_var")


def test_numbers_of_parameters_as_they_are_published_for_cifar_stems():
    with torch.device("meta"):
        for kind in (ResNet18, BiRealNet18):
            assert round(parameters(kind(10, layout="cifar")) / 1e6, 2) == 11.17


@pytest.mark.parametrize(
    ("make", "published"),
    [(BiRealNet18, 1.63e8), (ReActNetA, 0.87e8), pytest.param(MeliusNet22, 2.08e8, marks=pytest.mark.slow)],
)
def test_operations_as_they_are_published(make, published):
    """The papers' count: binary operations / 64 + floating-point operations. Bi-Real Net 1.63e8 and ReActNet-A 0.87e8,
    both to the precision of what is counted in them beside convolutions; MeliusNet-22 2.08e8."""
    rows = bnn.summary(make(**BINARY), (3, 224, 224)).layers
    count = sum(row.macs / 64 if row.weight_bits == row.activation_bits == 1 else row.macs for row in rows)
    assert abs(count / published - 1) < 0.01


def test_multiply_accumulates_of_mlperf_tiny():
    """12.5 M and 2.66 M: sums over the layers of the reference models, by hand."""
    resnet8 = (
        32**2 * 9 * 16 * (3 + 2 * 16) + 16**2 * (9 * 32 * (16 + 32) + 16 * 32) + 8**2 * (9 * 64 * 96 + 32 * 64) + 640
    )
    ds_cnn = 125 * (40 * 64 + 4 * (9 * 64 + 64 * 64)) + 64 * 12
    for model, count in ((ResNet8(), resnet8), (DSCNN(), ds_cnn)):
        assert sum(row.macs for row in bnn.summary(model, model.input_shape).layers) == count


def test_dropout_lies_behind_the_quantizer():
    model = NIN(width=0.125, dropout=0.5, **BINARY).train()
    dropped = [m for m in model.modules() if isinstance(m, DroppedInput)]
    assert len(dropped) == 2
    y = dropped[0](draw(4, 3, 8, 8))
    assert set(y.unique().tolist()) == {-2.0, 0.0, 2.0}
    model.eval()
    x = draw(4, 3, 8, 8)
    assert torch.equal(dropped[0](x), dropped[0].planes(x).value())
    assert dropped[0].bits == 1
    assert not any(isinstance(m, DroppedInput) for m in NIN(width=0.125, dropout=0.0, **BINARY).modules())
    with pytest.raises(ValueError, match="p must lie"):
        DroppedInput(SteSign, 1.0)


@pytest.mark.parametrize(("make", "layers"), [(BNNVGG, 9), (MLP, 4), (partial(MLP, dropout=0.5), 4)])
def test_binarynet_quantizes_the_ends_as_well(make, layers):
    model = make(width=0.125, quantize_ends=True, **BINARY)
    bits = [(m.weight_quantizer.bits, m.input_quantizer.bits) for m in model.modules() if isinstance(m, QuantLayer)]
    assert bits == [(1, 32)] + [(1, 1)] * (layers - 1)


def test_dropout_of_an_mlp_and_its_layers():
    model = MLP(hidden=16, layers=2, dropout=0.5, **BINARY).train()
    dropped = [name for name, m in model.named_modules() if isinstance(m, DroppedInput)]
    assert dropped == ["linear2.input_quantizer", "linear3.input_quantizer"]
    x = draw(8, 1, 28, 28)
    assert not torch.equal(model(x), model(x))
    with pytest.raises(ValueError, match="layers must be"):
        MLP(layers=0)


def test_a_dense_layer_appends_and_an_improvement_block_adds():
    x = draw(2, 12, 6, 6)
    y = DenseLayer(12, 4, BINARY)(x)
    assert y.shape == (2, 16, 6, 6)
    assert torch.equal(y[:, :12], x)
    block = ImprovementBlock(12, 4, BINARY)
    y = block(x)
    assert torch.equal(y[:, :8], x[:, :8])
    torch.testing.assert_close(y[:, 8:] - x[:, 8:], block.conv(block.norm(x)))


def test_the_blur_of_quicknet_is_the_binomial_filter():
    kernel = torch.tensor([1.0, 2, 1]).outer(torch.tensor([1.0, 2, 1])).div(16).repeat(3, 1, 1, 1)
    blur = nn.Sequential(*[m for m in QuickNet(width=0.125).stages if isinstance(m, nn.AvgPool2d)][:2])
    x = draw(2, 3, 15, 15)  # what max pooling of stride 1 leaves of an even size
    torch.testing.assert_close(blur(x), F.conv2d(x, kernel, stride=2, padding=1, groups=3))
    with pytest.raises(ValueError, match="of one length"):
        QuickNet(blocks=(1, 2))
    pads = {m.pad_value for m in QuickNet(width=0.125, **BINARY).modules() if isinstance(m, QuantConv2d)}
    assert pads == {1.0}


def test_a_gate_scales_each_channel_of_a_real_to_binary_unit():
    """Of equal means the gate gives one scale for a channel, whatever the places; 1/2 where its weights are zero."""
    unit = RealToBinaryUnit(8, 8, 1, 4, BINARY).eval()
    nn.init.zeros_(unit.gate.expand.weight)
    x = draw(2, 8, 5, 5)
    torch.testing.assert_close(unit(x), unit.prelu(unit.conv(unit.norm(x)) / 2) + x)
    assert unit.gate(x).shape == (2, 8, 1, 1)
    assert unit.gate.reduce.out_features == 2


def test_options_of_the_models_of_mlperf_tiny():
    floats = [m for m in DSCNN(quantize_depthwise=False, **BINARY).modules() if isinstance(m, QuantConv2d)]
    assert [m.groups > 1 for m in floats] == [not m.weight_quantizer.packable for m in floats] == [True, False] * 4
    assert sum(isinstance(m, nn.Dropout) for m in DSCNN(dropout=(0.2, 0.4)).modules()) == 2
    for quantized in (True, False):
        model = ResNet8(quantize_shortcuts=quantized, **BINARY)
        shortcuts = [m for m in model.modules() if isinstance(m, QuantConv2d) and m.kernel_size == (1, 1)]
        assert [m.weight_quantizer.packable for m in shortcuts] == [quantized] * 2


def test_shortcut_a_picks_pixels_and_adds_zero_channels():
    x = draw(2, 3, 5, 6)
    y = ShortcutA(3, 6, 2)(x)
    assert torch.equal(y[:, 1:4], x[:, :, ::2, ::2])
    assert y[:, [0, 4, 5]].abs().max() == 0
    with pytest.raises(ValueError, match="adds channels"):
        ShortcutA(6, 3, 1)


def test_bi_real_block_keeps_the_real_input():
    """Where gamma and beta are 0 nothing but the shortcut is left."""
    block = BiRealBlock(8, 8, 1, BINARY).eval()
    nn.init.zeros_(block.norm.weight)
    x = draw(2, 8, 4, 4)
    assert torch.equal(block(x), x)
    assert BiRealBlock(4, 8, 2, BINARY)(draw(2, 4, 6, 6)).shape == (2, 8, 3, 3)


def test_reactnet_learns_its_shifts():
    model = ReActNetA(10, width=0.25, weight_quantizer=XnorWeight, input_quantizer=RSign)
    convs = [m for m in model.modules() if isinstance(m, QuantConv2d)]
    assert [len(m.input_quantizer.shift) for m in convs] == [m.in_channels for m in convs]
    model(draw(2, 3, 64, 64)).square().sum().backward()
    shifts = [m.input_quantizer.shift.grad.abs().max() for m in convs]
    assert min(shifts) > 0


def test_a_doubling_block_is_the_authors_two_convolutions():
    """One 1x1 convolution with twice the filters is two beside each other, concatenated, each with its shortcut."""
    block = ReActBlock(4, 8, 1, BINARY).eval()
    x = draw(2, 4, 6, 6)
    middle = block.activation1(block.norm1(block.conv1(x)) + x)
    halves = []
    for half in (slice(0, 4), slice(4, 8)):
        conv = QuantConv2d(4, 4, 1, bias=False, **BINARY).eval()
        conv.weight = nn.Parameter(block.conv2.weight[half])
        scale = block.norm2.weight[half] / (block.norm2.running_var[half] + block.norm2.eps).sqrt()
        halves.append(conv(middle) * scale.reshape(-1, 1, 1) + middle)
    torch.testing.assert_close(block(x), block.activation2(torch.cat(halves, 1)))
    with pytest.raises(ValueError, match="keeps or doubles"):
        ReActBlock(4, 12, 1, BINARY)


def test_dropped_input_passes_on_the_channels():
    assert (
        len(NIN(width=0.5, weight_quantizer=XnorWeight, input_quantizer=RSign).conv4.input_quantizer.quantizer.shift)
        == 48
    )


def test_options_reach_every_layer():
    few = {"weight_quantizer": partial(DoReFaWeight, 2), "input_quantizer": partial(DoReFaActivation, 3)}
    model = ResNet18(10, layout="cifar", width=0.125, pad_value=1, **few)
    convs = [m for m in model.modules() if isinstance(m, QuantConv2d)]
    assert len(convs) == 16 + 3
    assert {(m.weight_quantizer.bits, m.input_quantizer.bits, m.pad_value) for m in convs} == {(2, 3, 1.0)}
    with pytest.raises(TypeError, match="unexpected keyword"):
        ResNet18(wieght_quantizer=SteSign)
    with pytest.raises(ValueError, match="layout must be"):
        ResNet18(layout="mnist")
    with pytest.raises(ValueError, match="width"):
        VGGSmall(width=0)


@pytest.mark.parametrize("name", CASES)
def test_pixels_and_stems(name):
    """A float stem of pixels is the same model behind its normalization; of an int8 stem the first layer differs."""
    plain, of_pixels, int8 = (build(name, "xnor", NARROW, **o) for o in ({}, {"pixels": True}, {"stem": "int8"}))
    assert [bnn.takes_pixels(model) for model in (plain, of_pixels, int8)] == [False, True, True]
    added = set(of_pixels.state_dict()) - set(plain.state_dict())
    assert {key.rpartition(".")[2] for key in added} == {"mean", "std", "max_value"}
    first = next(m for m in int8.modules() if isinstance(m, QuantConv2d))
    assert (first.weight_quantizer.bits, first.weight_quantizer.per_channel, first.input_quantizer.bits) == (8, True, 8)
    old = {key: value for key, value in int8.state_dict().items() if key.rpartition(".")[2] not in OF_PIXELS}
    assert {k: v.shape for k, v in old.items()} == {k: v.shape for k, v in plain.state_dict().items()}
    channels = plain.input_shape[0]
    pixels = bnn.Pixels([0.1, 0.5, 0.9][:channels], [0.2, 0.3, 0.4][:channels], 100)
    for model in (of_pixels, int8):
        bnn.set_pixels(model, pixels)
    for model, options in ((of_pixels, {"pixels": True}), (int8, {"stem": "int8"})):
        again = build(name, "xnor", NARROW, **options)  # as a run is loaded: statistics are in its state
        again.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="channels"):
        bnn.set_pixels(int8, bnn.Pixels((0.1, 0.2), (0.1, 0.2)))
    if channels == 3:
        assert first.input_quantizer.zero_points.tolist() == [640, 3200, 5760]
    x = torch.randint(0, 256, (1, *plain.input_shape), dtype=torch.uint8)
    of_pixels.load_state_dict(plain.state_dict(), strict=False)
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (pixels.mean, pixels.std))
    normalized = (x.float() / 100 - mean) / std
    torch.testing.assert_close(of_pixels.eval()(x), plain.eval()(normalized), rtol=0, atol=0)


OF_PIXELS = ("step", "zero_points", "initialized")


def test_options_of_the_first_layer_that_are_none():
    with pytest.raises(ValueError, match="stem must be 'fp32' or 'int8', got 'int4'"):
        LeNet5(stem="int4")
    with pytest.raises(ValueError, match=r"pixels must be bnn\.Pixels"):
        NIN(pixels=(0.5, 0.5))
    with pytest.raises(ValueError, match="takes no pixels"):
        bnn.set_pixels(LeNet5(), bnn.Pixels())
    assert ResNet18(10, stem="cifar", width=0.1).input_shape == (3, 32, 32)  # what the layout was called once
    ends = BNNVGG(width=0.1, quantize_ends=True, stem="int8", **BINARY)
    assert type(ends.conv1.weight_quantizer) is XnorWeight
    assert ends.conv1.input_quantizer.bits == 8


def test_trained_like_state():
    model = VGGSmall(width=0.25, **BINARY)
    twin = copy.deepcopy(model)
    inputs = draw(8, *model.input_shape)
    assert trained_like(model, inputs, seed=3) is model
    assert not model.training
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    gammas = torch.cat([m.weight for m in norms])
    variances = torch.cat([m.running_var for m in norms])
    for share, mask in ((0.5, gammas < 0), (0.05, gammas == 0), (0.03, variances < 1e-5)):
        assert share / 3 < mask.float().mean() < share * 3
    assert (model.conv2.weight == 0).any()
    x = model.conv1(inputs)
    torch.testing.assert_close(model.norm1.running_mean, x.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    assert all(m.momentum == 0.1 for m in norms)
    other = trained_like(twin, inputs, seed=3).state_dict()
    assert all(torch.equal(value, other[key]) for key, value in model.state_dict().items())
    assert not torch.equal(trained_like(twin, inputs, seed=4).conv2.weight, model.conv2.weight)
    with torch.no_grad():
        assert model(inputs).argmax(1).unique().numel() > 1


class OwnConv(nn.Module):
    """A layer of somebody's own, begun with weights of one sign, beside a constant that is no buffer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(200, 8, 3, 3) * 0.001)
        self.two = nn.Parameter(torch.tensor([2.0]), requires_grad=False)

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight / self.two)


def test_trained_like_state_of_layers_that_are_not_pytorchs():
    layer = trained_like(OwnConv(), torch.randn(2, 8, 5, 5)).requires_grad_(False)
    assert (
        0.9 < float(layer.weight.std()) * 72**0.5 < 1.1 and abs(float((layer.weight > 0).float().mean()) - 0.5) < 0.05
    )
    assert 0 < int((layer.weight == 0).sum()) < 0.03 * layer.weight.numel()
    assert float(layer.two) == 2.0


def test_alexnet_in_the_usual_order_is_convolution_norm_activation_pool():
    """Table 3b's order, walked through as it is written: pooling sees signs."""
    torch.manual_seed(0)
    net = AlexNet(5, order="cbap", width=0.0625, **BINARY)
    trained_like(net, torch.randn(2, 3, 224, 224))
    layers = dict(net.named_children())
    x = out = torch.randn(2, 3, 224, 224)
    for index in range(1, 8):
        out = layers[f"norm{index}"](layers[f"conv{index}"](out))
        if index < 7:
            out = torch.where(out >= 0, 1.0, -1.0)
        if f"pool{index}" in layers:
            out = layers[f"pool{index}"](out)
    expected = layers["conv8"](out.relu()).flatten(1)
    torch.testing.assert_close(net(x), expected)
    assert {name: p.numel() for name, p in net.named_parameters() if "conv" in name} == {
        name: p.numel() for name, p in AlexNet(5, width=0.0625).named_parameters() if "conv" in name
    }
    with pytest.raises(ValueError, match=r"order must be .bacp. or .cbap., got 'abc'"):
        AlexNet(order="abc")
