"""Evenly spaced levels behind layers and floats: rounded, without a table, and the very levels of PyTorch."""

from functools import partial

import pytest
import torch
from conversion import check, images, upset
from torch import nn

import bnn
from bnn.layers import QuantConv1d, QuantConv2d, QuantLinear
from bnn.planes import Planes
from bnn.quantizers import AffineActivation, DoReFaActivation, LsqActivation, LsqWeight, Pact
from bnn.quantizers.base import Uniform

ACTIVATIONS = {
    **{f"lsq{k}": partial(LsqActivation, k) for k in range(3, 9)},
    **{f"lsq{k} signed": partial(LsqActivation, k, signed=True) for k in range(3, 9)},
    **{f"affine{k}": partial(AffineActivation, k) for k in (3, 8)},
    "dorefa4": partial(DoReFaActivation, 4),
    "dorefa8": partial(DoReFaActivation, 8),
    "pact4": partial(Pact, 4, alpha=3.0),
}


def layers(activation, weight_bits=4):
    options = {"weight_quantizer": partial(LsqWeight, weight_bits), "input_quantizer": activation}
    return partial(QuantConv2d, **options), partial(QuantLinear, **options)


def trained(model, x):
    """The model after a batch, with hostile batch norms, and steps that are no powers of two."""
    torch.manual_seed(0)
    model.train()(x)
    for module in model.modules():
        if isinstance(module, LsqActivation):
            module.step.data.mul_(1.37 * 4 / 2**module.bits)
    return upset(model)


def tables(packed):
    return [step.op for step in packed.steps if step.tensors.keys() & {"thresholds", "threshold_residuals", "codes"}]


def exact_rows(report):
    return [row for row in report.steps if row.kind == "exact"]


BETWEEN = {
    "norm": lambda: [nn.BatchNorm2d(12)],
    "norm, relu": lambda: [nn.BatchNorm2d(12), nn.ReLU()],
    "norm, hardtanh": lambda: [nn.BatchNorm2d(12), nn.Hardtanh(-0.9, 1.1)],
    "pool, norm": lambda: [nn.MaxPool2d(2), nn.BatchNorm2d(12)],
    "norm, pool, relu": lambda: [nn.BatchNorm2d(12), nn.MaxPool2d(2, 1), nn.ReLU()],
    "prelu": lambda: [nn.BatchNorm2d(12), nn.PReLU(12)],
    "nothing": lambda: [],
}


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("activation", ["lsq4", "lsq8 signed"])
def test_between_layers(activation, between, tmp_path):
    """Falling and constant channels are among the batch norm's."""
    conv, linear = layers(ACTIVATIONS[activation])
    x = images(16, 3, 8, 8)
    model = nn.Sequential(conv(3, 12, 3), *BETWEEN[between](), conv(12, 8, 3, bias=False), nn.Flatten())
    model.append(linear(model(x).shape[1], 5))
    model = trained(model, x)
    packed, report = check(model, x, tmp_path)
    assert not tables(packed)
    # Behind integers, levels are PyTorch's to the last one: no allowance for rounding.
    assert len(exact_rows(report)) == 3 and not any(row.different for row in report.steps if row.levels)
    steps = [step for step in packed.steps if step.attrs.get("exact")]
    assert len(steps) == 2
    assert {step.op for step in steps} <= {"binary_conv", "elementwise"}
    assert any(step.op == "pool_int" for step in packed.steps) == ("pool" in between)


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_all_widths(activation):
    conv, linear = layers(ACTIVATIONS[activation], 8)
    x = images(24, 2, 9, 9)
    parts = [conv(2, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), conv(10, 8, 3, stride=2), nn.BatchNorm2d(8)]
    model = trained(nn.Sequential(*parts, nn.Flatten(), linear(72, 13), nn.BatchNorm1d(13), linear(13, 5)), x)
    packed, report = check(model, x)
    assert not tables(packed)
    assert len(exact_rows(report)) == 4
    assert all(bool(row.levels) for row in exact_rows(report))


class Residual(nn.Module):
    def __init__(self, conv, body):
        super().__init__()
        self.first, self.body = conv(4, 12, 3), nn.Sequential(*body)
        self.last = conv(12, 4, 1)

    def forward(self, x):
        y = self.first(x)
        return self.last(torch.relu(y + self.body(y)))


@pytest.mark.parametrize("activation", ["lsq4", "lsq8", "dorefa4"])
def test_residuals(activation):
    """Floats that are kept, and levels made of them in the same pass."""
    conv, _ = layers(ACTIVATIONS[activation])
    x = images(12, 4, 8, 8)
    norm, last = nn.BatchNorm2d(12), nn.BatchNorm2d(12)
    model = trained(Residual(conv, [norm, conv(12, 12, 3, padding=1, bias=False), last]), x)
    packed, report = check(model, x)
    assert not tables(packed)
    both = [step for step in packed.steps if "levels" in step.attrs and "residual" in step.attrs]
    assert len(both) == 1 and not both[0].attrs.get("exact")
    assert report.ok


class BeforeActivation(nn.Module):
    """XNOR-Net's order of blocks: batch norm, quantizer, convolution; the sum of two blocks is read as it is, too."""

    def __init__(self, conv, act):
        super().__init__()
        self.first = conv(4, 12, 3)
        self.norms = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(12), act()) for _ in range(3))
        self.convs = nn.ModuleList(conv(12, 12, 3, padding=1, bias=False) for _ in range(3))
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x):
        y = self.first(x)
        y = y + self.convs[0](self.norms[0](y))
        # Two norms of one sum: the levels of one come with it, those of the other by a pass of their own.
        return self.head(y + self.convs[1](self.norms[1](y)) + self.convs[2](self.norms[2](y)))


@pytest.mark.parametrize("act", [nn.Identity, nn.ReLU, nn.Hardtanh])
@pytest.mark.parametrize("activation", ["lsq8", "lsq4 signed", "dorefa4"])
def test_a_norm_before_the_levels_alone(activation, act, tmp_path):
    """Floats that are kept, and levels of what a norm makes of them in the same pass, unless a clamp changes them."""
    conv, _ = layers(ACTIVATIONS[activation])
    x = images(12, 4, 8, 8)
    packed, report = check(trained(BeforeActivation(conv, act), x), x, tmp_path)
    assert not tables(packed)
    own = [step for step in packed.steps if "level_scale" in step.tensors]
    passes = [step for step in packed.steps if step.op == "elementwise"]
    # ReLU takes levels from signed ones alone; whether hardtanh does depends on the learned step.
    clamps = act is nn.ReLU and "signed" in activation
    assert (len(own), len(passes)) in ([(0, 3), (2, 1)] if act is nn.Hardtanh else [(0, 3)] if clamps else [(2, 1)])
    assert all("low" not in step.attrs for step in own)
    assert len(exact_rows(report)) == len([step for step in packed.steps if "exact" in step.attrs]) + 1


class Tokens(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(24), linear(24, 40), linear(40, 24)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


@pytest.mark.parametrize("activation", ["lsq3 signed", "lsq8 signed", "lsq8"])
def test_behind_layer_norm(activation):
    _, linear = layers(ACTIVATIONS[activation], 8)
    x = images(8, 10, 24)
    model = nn.Sequential(Tokens(linear), Tokens(linear))
    for block in model:
        nn.init.normal_(block.norm.weight)
        nn.init.normal_(block.norm.bias)
    packed, _ = check(trained(model, x), x)
    assert not tables(packed)


def test_behind_float_layers_and_on_the_input():
    """A float stem: levels in its own epilogue; the input of a network: a rounding of its floats, exact."""
    conv, _ = layers(ACTIVATIONS["lsq8"], 8)
    x = images(8, 3, 8, 8)
    stem = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 8, 3))
    packed, report = check(trained(stem, x), x)
    assert [step.op for step in packed.steps] == ["float_conv", "binary_conv"]
    assert packed.steps[0].attrs["levels"]["high"] == 255
    packed, report = check(trained(nn.Sequential(conv(3, 8, 3)), x), x)
    assert [step.op for step in packed.steps] == ["pack", "binary_conv"]
    assert packed.steps[0].nbytes == 0
    assert next(row for row in report.steps if row.source == "0 input").kind == "exact"


class PooledStem(nn.Module):
    """A stem in floats whose pooled outputs two quantizers read, as a bottleneck network's first block does."""

    def __init__(self, readers):
        super().__init__()
        self.stem, self.norm, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.MaxPool2d(2)
        quantizers = {
            "weight_quantizer": partial(LsqWeight, bits=4),
            "input_quantizer": partial(LsqActivation, bits=4, signed=True),
        }
        self.readers = nn.ModuleList(QuantConv2d(8, 8, 3, **quantizers) for _ in range(readers))

    def forward(self, x):
        y = self.pool(torch.relu(self.norm(self.stem(x))))
        first, *others = [reader(y) for reader in self.readers]
        return first + others[0] if others else first


@pytest.mark.parametrize("readers", [1, 2])
def test_a_pooled_stem_is_one_pass_and_one_pooling(readers):
    torch.manual_seed(0)
    model = trained(PooledStem(readers), images(8, 3, 12, 12))
    with torch.no_grad():
        model.readers[-1].input_quantizer.step *= 1.5
    packed, _ = check(model, images(8, 3, 12, 12))
    kinds = [step.op for step in packed.steps]
    assert kinds[:2] == ["float_conv", "max_pool"]
    assert sorted(kinds[2:]) == sorted(["pack", "binary_conv"] * readers)


def test_sequences():
    conv = partial(QuantConv1d, weight_quantizer=partial(LsqWeight, 4), input_quantizer=ACTIVATIONS["lsq4"])
    x = images(8, 3, 20)
    packed, _ = check(trained(nn.Sequential(conv(3, 9, 3), nn.BatchNorm1d(9), nn.ReLU(), conv(9, 4, 5)), x), x)
    assert not tables(packed)


# -- what says that it is uniform and is not --------------------------------------------------------------------------


class HalvesUp(LsqActivation):
    """Rounds halves up, and so is not what `uniform` says."""

    def forward(self, x):
        return self.planes(x).value()

    def planes(self, x: torch.Tensor) -> Planes:
        step = self._step(x).detach()
        return super().planes(((x.detach() / step).clamp(*self.bounds) + 0.5).floor() * step)


class WrongFactor(LsqActivation):
    @property
    def uniform(self) -> Uniform:
        return Uniform(float(torch.nextafter(self.step.detach(), torch.tensor(9.0))), True, *self.bounds)


class NoNumbers(LsqActivation):
    @property
    def uniform(self) -> Uniform:
        return Uniform(float("nan"), True, 0, 300)


@pytest.mark.parametrize("kind", [HalvesUp, WrongFactor, NoNumbers])
def test_what_rounds_otherwise_keeps_its_table(kind):
    """A declaration is believed only where it gives the levels of all thresholds."""
    conv, _ = layers(partial(kind, 4))
    x = images(8, 3, 8, 8)
    model = nn.Sequential(conv(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4, 3))
    for layer in (model[0], model[3]):
        layer.input_quantizer.initialized.fill_(True)
    model.train()(x)
    for layer in (model[0], model[3]):
        layer.input_quantizer.step.data.fill_(0.25)
    packed, _ = check(upset(model), x)
    assert "pack" in tables(packed)


# -- the size of the file ---------------------------------------------------------------------------------------------


def test_bytes_of_eight_bits():
    """Within 2 % of 8 bits a weight and four floats a channel: scale, bias, and those of batch norm."""
    conv, linear = layers(partial(LsqActivation, 8), 8)
    widths = [(16, 64), (64, 64), (64, 96)]
    parts = [part for a, b in widths for part in (conv(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())]
    x = images(4, 16, 6, 6)
    model = trained(nn.Sequential(*parts, nn.MaxPool2d(2), nn.Flatten(), linear(864, 40)), x)
    packed = bnn.convert(model, x)
    weights = sum(9 * a * b for a, b in widths) + 864 * 40
    channels = sum(b for _, b in widths) + 40
    assert weights < packed.nbytes <= 1.02 * (weights + 16 * channels)


@pytest.mark.parametrize("network", [partial(bnn.models.VGGSmall, width=0.5), bnn.models.LeNet5])
def test_the_file_of_a_network_of_eight_bits(network, tmp_path):
    """8/8 layers: first and last layer of floats, four floats a channel, a header, and the weights.

    LeNet-5's batch norms follow ReLU, so levels of their outputs are no function that one pass makes of a layer's sums.
    """
    layers = {"weight_quantizer": partial(LsqWeight, 8), "input_quantizer": partial(LsqActivation, 8, signed=True)}
    model = network(**layers)
    x = images(4, *model.input_shape)
    bnn.models.trained_like(bnn.calibrate(model, x), x)
    bnn.convert(model, x).save(tmp_path / "packed.safetensors")
    kinds = (nn.Conv2d, nn.Linear)
    sizes = {
        m: (4 - 3 * hasattr(m, "weight_quantizer")) * m.weight.numel() for m in model.modules() if isinstance(m, kinds)
    }
    assert sorted(set(size // m.weight.numel() for m, size in sizes.items())) == [1, 4]
    weights, channels = sum(sizes.values()), sum(len(m.weight) for m in sizes)
    assert weights < (tmp_path / "packed.safetensors").stat().st_size <= 1.02 * (weights + 16 * channels)
