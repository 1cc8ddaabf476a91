"""Conversion of networks that are no chains: each topology on a small random network with hostile batch norms."""

from functools import partial

import bnn_kernels as bk
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conversion import check, images, upset
from torch import nn

import bnn
from bnn.converter import ConversionError
from bnn.layers import QuantConv1d, QuantConv2d, QuantLinear, RPReLU
from bnn.quantizers import DoReFaActivation, FullPrecision, RSign, SteSign, TernaryWeight, XnorWeight

BINARY = partial(QuantConv2d, weight_quantizer=XnorWeight, input_quantizer=SteSign, bias=False)
LINEAR = partial(QuantLinear, weight_quantizer=XnorWeight, input_quantizer=SteSign)


class Network(nn.Module):
    """Modules by name, and a forward given as a function of them and the inputs."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._run = forward

    def forward(self, x):
        return self._run(self, x)


class TwoInputs(Network):
    def forward(self, x, y):
        return self._run(self, x, y)


def conv(c=6, o=6, **options):
    return BINARY(c, o, 3, padding=1, **options)


def norm(c=6):
    return nn.BatchNorm2d(c)


def head(c=6):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 5))


def shuffled(x, groups):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


def bireal(m, x):
    a = m.n1(m.c1(x)) + x
    b = m.n2(m.c2(a)) + a
    return m.head(b)


def downsampled(m, x):
    a = F.relu(m.n1(m.c1(x)))
    return m.head(F.hardtanh(m.n2(m.c2(a)) + m.side_norm(m.side(m.pool(x)))))


def quantized_branch(m, x):
    """Both branches quantize one value: by the same signs, and by two bits."""
    y = m.n1(x)
    return m.head(m.c1(y) + m.c2(y) + m.c3(y))


def dense(m, x):
    a = torch.cat([x, m.c1(m.n1(x))], 1)
    b = torch.cat([a, m.c2(m.n2(a))], dim=1)
    return m.head(b)


def preactivated(m, x):
    """Batch norm and ReLU between the sum, which is needed again, and the signs."""
    a = x + m.c1(m.n1(x))
    return m.head(a + m.c2(F.relu(m.n2(a)) - 0.3))


def gated(m, x):
    y = m.n1(m.c1(x))
    gate = torch.sigmoid(m.up(F.relu(m.down(m.pool(y).flatten(1)))))
    return m.head(m.n2(m.c2(y * gate.view(-1, 6, 1, 1))) + x)


def gated_by_convolution(m, x):
    y = m.n1(m.c1(x))
    return m.head(y * m.gate(y) + x)


def scaled(m, x):
    y = m.c1(x + m.shift) * m.scale + m.shift
    return m.head(y / 3 - 0.5 * x)


def shared(m, x):
    y = m.n1(m.c1(x))
    return m.head(m.n1(m.c1(y)) + m.n1(m.c1(x)))


def moved(m, x):
    a, b = x.chunk(2, 1)
    y = torch.cat([m.c1(a), b[:, [2, 0, 1]]], 1)
    return m.head(shuffled(m.n1(y), 2) + F.pad(x[:, :, 1:-1, :-1], (0, 1, 1, 1)))


def option_a(m, x):
    """ResNet's parameter-free shortcut."""
    shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3))
    return m.head(F.hardtanh(m.n1(m.c1(x)) + shortcut))


def in_place(m, x):
    y = m.n1(m.c1(x))
    z = F.relu(y, inplace=True)
    z = z.add_(x)
    return m.head(m.c2(z) + y)


TOPOLOGIES = {
    "bireal": (bireal, {"c1": conv(), "n1": norm(), "c2": conv(), "n2": norm(), "head": head()}),
    "reactnet": (
        lambda m, x: m.head(m.a2(m.n2(m.c2(m.a1(m.n1(m.c1(x)) + x))) + x)),
        {
            "c1": conv(input_quantizer=RSign), "n1": norm(), "a1": RPReLU(6),
            "c2": conv(input_quantizer=RSign), "n2": norm(), "a2": RPReLU(6), "head": head(),
        },
    ),
    "downsampled": (
        downsampled,
        {
            "c1": conv(stride=2), "n1": norm(), "c2": conv(6, 8), "n2": norm(8),
            "pool": nn.AvgPool2d(2, ceil_mode=True),
            "side": nn.Conv2d(6, 8, 1, bias=False), "side_norm": norm(8), "head": head(8),
        },
    ),
    "quantized branch": (
        quantized_branch,
        {
            "n1": norm(), "c1": conv(), "c2": conv(o=6),
            "c3": conv(input_quantizer=partial(DoReFaActivation, 2)), "head": head(),
        },
    ),
    "dense": (dense, {"n1": norm(), "c1": conv(o=4), "n2": norm(10), "c2": conv(10, 4), "head": head(14)}),
    "preactivated": (preactivated, {"n1": norm(), "c1": conv(), "n2": norm(), "c2": conv(), "head": head()}),
    "gated": (
        gated,
        {
            "c1": conv(), "n1": norm(), "pool": nn.AdaptiveAvgPool2d(1), "down": nn.Linear(6, 3), "up": nn.Linear(3, 6),
            "c2": conv(), "n2": norm(), "head": head(),
        },
    ),
    "gated by convolution": (
        gated_by_convolution,
        {
            "c1": conv(), "n1": norm(), "head": head(),
            "gate": nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 3, 1), nn.ReLU(), nn.Conv2d(3, 6, 1), nn.Hardsigmoid()
            ),
        },
    ),
    "shared": (shared, {"c1": conv(), "n1": norm(), "head": head()}),
    "moved": (moved, {"c1": conv(3, 3), "n1": norm(), "head": head()}),
    "shuffle module": (
        lambda m, x: m.head(m.c2(m.shuffle(m.n1(m.c1(x))))),
        {"c1": conv(groups=2), "n1": norm(), "shuffle": nn.ChannelShuffle(3), "c2": conv(groups=3), "head": head()},
    ),
    "option A": (option_a, {"c1": conv(6, 12, stride=2), "n1": norm(12), "head": head(12)}),
    "in place": (in_place, {"c1": conv(), "n1": norm(), "c2": conv(), "head": head()}),
    "depthwise": (
        lambda m, x: m.head(m.a(m.n2(m.c2(m.n1(m.c1(x))))) + x),
        {
            "c1": conv(groups=6), "n1": norm(), "c2": BINARY(6, 6, 1), "n2": norm(), "a": nn.PReLU(6), "head": head(),
        },
    ),
    "input scale": (
        lambda m, x: m.head(m.n1(m.c1(m.n0(x))) + x),
        {"n0": norm(), "c1": conv(input_scale=True), "n1": norm(), "head": head()},
    ),
    "several terms": (
        lambda m, x: m.head(F.leaky_relu(m.n1(m.c1(x))) + x),
        {"c1": conv(weight_quantizer=TernaryWeight), "n1": norm(), "head": head()},
    ),
    "quantizer alone": (
        lambda m, x: m.head(m.n1(m.c1(m.q(x))) + x.mean((2, 3), keepdim=True)),
        {"q": RSign(6), "c1": conv(input_quantizer=FullPrecision), "n1": norm(), "head": head()},
    ),
    "negative slope": (
        lambda m, x: m.head(m.c2(m.a(m.n1(m.c1(x))))),
        {"c1": conv(), "n1": norm(), "a": nn.PReLU(6, init=-0.5), "c2": conv(), "head": head()},
    ),
    "curves": (
        lambda m, x: m.head(m.c2(torch.tanh(m.n1(m.c1(x)))) + F.silu(m.c3(F.hardswish(x)))),
        {"c1": conv(), "n1": norm(), "c2": conv(), "c3": conv(), "head": head()},
    ),
    "pooled residual": (
        lambda m, x: m.head(m.c2(F.max_pool2d(m.n1(m.c1(x)) + x, 2)) + F.avg_pool2d(x, 2)),
        {"c1": conv(), "n1": norm(), "c2": conv(input_quantizer=partial(DoReFaActivation, 2)), "head": head()},
    ),
    "pooled signs of a sum": (
        lambda m, x: m.head(m.c2(F.max_pool2d(m.n2(m.n1(m.c1(x)) + x), 2))),
        {"c1": conv(), "n1": norm(), "n2": norm(), "c2": conv(), "head": head()},
    ),
    "linear residual": (
        lambda m, x: m.l3(m.n2(m.l2(m.n1(m.l1(x.flatten(1))))) + m.n1(m.l1(x.flatten(1)))),
        {
            "l1": LINEAR(6 * 9 * 9, 16), "n1": nn.BatchNorm1d(16), "l2": LINEAR(16, 16), "n2": nn.BatchNorm1d(16),
            "l3": nn.Linear(16, 4),
        },
    ),
}  # fmt: skip

SIZES = {"pooled residual": (8, 8), "downsampled": (8, 10)}


def small_state(network, seed):
    """Hostile batch norms, and shifts and slopes of both signs where a module learns them."""
    generator = torch.Generator().manual_seed(seed)
    upset(network, seed)
    for module in network.modules():
        if isinstance(module, RPReLU | RSign):
            for parameter in module.parameters():
                parameter.data += torch.randn(parameter.shape, generator=generator) / 4
    return network.eval()


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_topologies(name, tmp_path):
    torch.manual_seed(0)
    forward, modules = TOPOLOGIES[name]
    network = small_state(Network(forward, **modules), 5)
    _, report = check(network, images(12, 6, *SIZES.get(name, (9, 9))), tmp_path)
    assert any(row.levels for row in report.steps)
    assert report.free.different_levels == 0


def test_learned_scales_and_constants():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.c1, self.head = conv(), head()
            self.scale = nn.Parameter(torch.randn(6, 1, 1))
            self.shift = nn.Parameter(torch.randn(1, 6, 1, 1))

        def forward(self, x):
            y = self.c1(x + self.shift) * self.scale.abs() + self.shift.expand_as(x)
            return self.head(y / 3 - 0.5 * x + torch.exp(self.scale) * (1 - x))

    torch.manual_seed(1)
    check(Scaled().eval(), images(8, 6, 7, 7))


def test_bireal_blocks_are_one_pass_each():
    forward, modules = TOPOLOGIES["bireal"]
    packed = bnn.convert(upset(Network(forward, **modules)), images(1, 6, 9, 9))
    assert [step.op for step in packed.steps] == [
        "pack", "binary_conv", "binary_conv", "avg_pool", "reshape", "float_linear",
    ]  # fmt: skip
    assert [len(step.outputs) for step in packed.steps[1:3]] == [2, 1]


@pytest.mark.skipif(bk.cpu_features()["isa"] == "generic", reason="PyTorch rounds a batch norm once, with FMA")
@pytest.mark.parametrize("name", ["bireal", "reactnet", "preactivated"])
def test_floats_of_residual_networks_are_the_same_numbers(name):
    """Not within rounding: the operations are PyTorch's, in its order, so no sign behind them can differ."""
    torch.manual_seed(0)
    forward, modules = TOPOLOGIES[name]
    network = small_state(Network(forward, **modules), 6)
    x = images(8, 6, 9, 9)
    report = bnn.check_parity(network, bnn.convert(network, x), x)
    maps = [row for row in report.free.steps if not row.source.startswith("head")]
    assert len(maps) >= 3
    assert sum(row.different for row in maps) == 0, str(report)


def test_several_inputs_and_outputs(tmp_path):
    torch.manual_seed(2)
    network = TwoInputs(
        lambda m, x, y: (m.head(m.n1(m.c1(x)) + y), m.c2(y), x.mean((2, 3))),
        c1=conv(),
        n1=norm(),
        c2=conv(),
        head=head(),
    )
    x = images(5, 6, 8, 8), images(5, 6, 8, 8, seed=3)
    packed, _ = check(upset(network), x, tmp_path)
    assert [y.shape for y in packed(*(part.numpy() for part in x))] == [(5, 5), (5, 6, 8, 8), (5, 6)]
    with pytest.raises(TypeError, match="takes 2 inputs, got 1"):
        packed(x[0].numpy())
    with pytest.raises(ValueError, match="same length"):
        packed(x[0].numpy(), x[1].numpy()[:2])


def test_sequences(tmp_path):
    """Conv1d and its company are maps of one row."""
    torch.manual_seed(3)
    layer = partial(QuantConv1d, weight_quantizer=XnorWeight, input_quantizer=SteSign)
    network = nn.Sequential(
        nn.Conv1d(4, 8, 5, padding=2),
        nn.BatchNorm1d(8),
        nn.MaxPool1d(2),
        layer(8, 8, 3, padding=2, dilation=2),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        layer(8, 6, 3, stride=2, groups=2),
    )
    with torch.no_grad():
        for module in network:
            if isinstance(module, nn.BatchNorm1d):
                module.weight.normal_()
                module.bias.normal_()
    check(network.eval(), images(6, 4, 30), tmp_path)
    pooled = nn.Sequential(*network, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 3))
    check(pooled.eval(), images(6, 4, 30), tmp_path)


class LearnedPower(nn.Module):
    """A module that the converter does not know."""

    def __init__(self, channels):
        super().__init__()
        self.power = nn.Parameter(torch.randn(channels))

    def forward(self, x):
        if x.max() > 1e6:  # cannot be recorded
            return x
        return x * 2 ** self.power.reshape(1, -1, 1, 1)


def test_a_rule_for_a_module_of_ones_own():
    torch.manual_seed(4)
    network = Network(lambda m, x: m.head(m.power(m.c1(x)) + x), power=LearnedPower(6), c1=conv(), head=head()).eval()
    with pytest.raises(ConversionError, match=r"cannot be recorded.*register_rule"):
        bnn.convert(network, images(1, 6, 8, 8))

    @bnn.converter.register_rule(LearnedPower)
    def learned_power(build, module, x):
        return build.affine(x, scale=2**module.power)

    try:
        check(network, images(6, 6, 8, 8))

        @bnn.converter.register_rule(LearnedPower)
        def by_known_modules(build, module, x):
            return build.lower(nn.Sequential(nn.ReLU(), nn.Flatten()), x)

        with pytest.raises(ConversionError, match=r"power: its rule gives .*correct the rule"):
            bnn.convert(network, images(1, 6, 8, 8))
    finally:
        from bnn.converter import registry

        del registry._MODULES[LearnedPower]
    with pytest.raises(TypeError, match="module class, a function"):
        bnn.converter.register_rule(3)(learned_power)


class LoudReLU(nn.ReLU):
    """Overrides forward: the rule of its base class must not be taken for it."""

    def forward(self, x):
        return super().forward(x) * 2


def test_a_subclass_with_a_forward_of_its_own_is_looked_into():
    check(nn.Sequential(LoudReLU(), conv(), LoudReLU()).eval(), images(4, 6, 8, 8))


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda m, x: m.c1(torch.sort(x)[0]), r"sort.*cannot be converted"),
        (lambda m, x: m.c1(torch.cat([x, x], 0)), r"cat.*along the batch"),
        (
            lambda m, x: m.c1(torch.cat([x, torch.arange(2.0).view(2, 1, 1, 1).expand(2, 6, 8, 8)], 2)),
            r"cat.*from image to image",
        ),
        (lambda m, x: m.c1(x).flatten(0, 1), r"flatten.*changes the batch"),
        (lambda m, x: m.c1(x).view(-1, 6, 2, 4, 2, 4) * 2, r"view.*takes part in a computation"),
        (lambda m, x: m.c1(F.dropout(x)), r"dropout.*training"),
        (lambda m, x: x.view(2, 6, 8, 8).mean(), r"mean.*over the batch"),
        (lambda m, x: {"a": m.c1(x)}, "returns a dict"),
        (lambda m, x: (m.c1(x), torch.ones(3)), "returns a constant"),
        (lambda m, x: F.conv2d(x, x), r"conv2d.*weight depends on the input"),
    ],
)
def test_what_cannot_be_converted_is_named(forward, words):
    network = Network(forward, c1=conv()).eval()
    with pytest.raises(ConversionError, match=words):
        bnn.convert(network, images(1, 6, 8, 8))


def masked(m, x):
    y = m.c1(x)
    y[:, :2] = 0.5
    y[..., 1] = x[..., 2]
    y[:, 3, ::2] *= 2
    return y


IN_PLACE = {
    "by another name": lambda m, x: m.c1((y := m.c1(x)).add_(x)) + y,
    "on a part": lambda m, x: x[:, :3].relu_() + x[:, 3:] + x[:, :3],
    "assignments": masked,
    "into zeros": lambda m, x: torch.zeros_like(x).copy_(x) + m.c1(x),
    "into another": lambda m, x: filled(torch.ones(len(x), 6, 8, 8), x) * m.c1(x),
}


def filled(y, x):
    y[:, 1:4] = x[:, :3] * 2
    return y


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_works_in_place(name):
    torch.manual_seed(0)
    model, x = Network(IN_PLACE[name], c1=conv()).eval(), images(5, 6, 8, 8)
    packed = bnn.convert(model, x)
    with torch.no_grad():
        expected = model(x.clone()).numpy()
    np.testing.assert_allclose(packed(x.numpy()), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_hooks_are_refused():
    network = nn.Sequential(conv()).eval()
    network[0].register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(ConversionError, match="0 has forward hooks"):
        bnn.convert(network, images(1, 6, 8, 8))


def test_dynamic_batch():
    forward, modules = TOPOLOGIES["moved"]
    network = upset(Network(forward, **modules))
    x = images(7, 6, 9, 9)
    packed = bnn.convert(network, x[:3])
    whole = packed(x.numpy())
    assert packed(x[:0].numpy()).shape == (0, 5)
    for size in (1, 2, 5):
        np.testing.assert_allclose(packed(x[:size].numpy()), whole[:size], rtol=0, atol=1e-6)
