"""Quantization in plain operations is found whatever its spelling, and becomes bits."""

import pytest
import torch
from conversion import check, images, upset
from torch import nn

import bnn
from bnn.converter.graph.builder import Builder
from bnn.converter.graph.values import Value
from bnn.converter.recognize.few_values import few_values
from bnn.converter.recognize.staircase import quantizer_of, staircase


class Written(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, x):
        return self.run(x)


class SignWeights(nn.Conv2d):
    def forward(self, x):
        weight = torch.sign(self.weight) * self.weight.abs().mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding)


def masked(x):
    s = torch.sign(x)
    s[s == 0] = 1
    return s


def through(x):
    return (x.round() - x).detach() + x


def halved(x):
    """Each sum reads the one before twice."""
    y = masked(x)
    for _ in range(20):
        y = y * 0.5 + y * 0.5
    return y


def written_everywhere(x):
    y = torch.empty_like(x)
    y[x >= 0] = 1
    y[x < 0] = -1
    return y


def counted_up(x):
    """Constants that are written to after they were read, as learned thresholds are summed up."""
    threshold, level, y = torch.full((1,), -0.5), torch.zeros(1), torch.zeros(())
    for _ in range(3):
        threshold += 0.3
        level += 1
        y = torch.where(x > threshold, level, y)
    return y


def looked_up(x):
    """The nearest value of a table in no order, found over all numbers of all images at once."""
    table = torch.tensor([0.0, 1.0, 0.25, 0.5, 0.625])
    nearest = (x.view(1, -1) - table[:, None]).abs().min(dim=0)[1]
    return table[nearest].view(x.shape)


def shuffled(x):
    return nn.functional.channel_shuffle(x, 4)


def rounded_by_sign(x):
    return x.sign() * torch.floor(x.abs() + 0.5)


# What a network writes, and the planes that it takes.
SPELLED = {
    "masked": (masked, 1),
    "written everywhere": (written_everywhere, 1),
    "counted up": (counted_up, 2),
    "looked up": (lambda x: looked_up((x / 0.7).clamp(-1, 1)), 4),
    "in many sums": (halved, 1),
    "where": (lambda x: torch.where(torch.sign(x) == 0, 1.0, torch.sign(x)), 1),
    "one added": (lambda x: x.sign() + (x.sign() == 0).float(), 1),
    "two comparisons": (lambda x: (x > 0.5).float() - (x < -0.5).float(), 2),
    "both": (lambda x: ((x > -0.5) & (x <= 1)).float() + 2 * (x > 1).float(), 2),
    "scaled and shifted": (lambda x: 0.7 * (torch.sign((x - 0.2) / 0.7) + 0.2), 2),
    "rounded": (lambda x: torch.round(x.clamp(0, 1) * 3) / 3, 2),
    "clamped later": (lambda x: (x / 0.3).round().clamp(-4, 3) * 0.3, 3),
    "straight through": (lambda x: through(torch.clamp(x / 0.4, 0, 3)) * 0.4, 2),
    "floored": (lambda x: torch.floor(x.clamp(-1, 0.99) * 2 + 0.5), 3),
    "polynomial": (lambda x: torch.sign(x) - (y := (x * x + 2 * x) * (x < 0) * (x.abs() < 1)) + y, 1),
    "shuffled and rounded by its sign": (lambda x: rounded_by_sign(shuffled(x).mul(0.4).clamp(0, 1) / 0.2) * 0.2, 3),
    "shuffled and masked": (lambda x: masked(shuffled(x)), 1),
    "viewed": (lambda x: masked(x).permute(0, 2, 3, 1).reshape(len(x), -1, 8).transpose(1, 2).reshape(x.shape), 1),
    "padded": (lambda x: nn.functional.pad(masked(x), (1, 1, 1, 1), value=-1), 1),
    "pooled": (lambda x: nn.functional.max_pool2d(masked(x), 3, 1, 1), 1),
}


@pytest.mark.quick_cases(8)
@pytest.mark.parametrize("name", SPELLED)
def test_inputs_of_few_values_become_bits(name):
    torch.manual_seed(0)
    run, planes = SPELLED[name]
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), Written(run), SignWeights(8, 8, 3), nn.Flatten()
    )
    packed, _ = check(upset(network), images(4, 3, 8, 8))
    assert f"W1A{planes}" in repr(packed)
    assert "binary_conv" in [step.op for step in packed.steps]


def test_values_that_do_not_rise_stay_floats():
    torch.manual_seed(0)
    for run in (lambda x: x.sign().abs() * 2 - x.sign(), lambda x: x.sign() * x, lambda x: x - x.round()):
        network = nn.Sequential(nn.Conv2d(3, 8, 3), Written(run), SignWeights(8, 8, 3)).eval()
        try:
            packed = bnn.convert(network, images(1, 3, 8, 8))
        except bnn.converter.ConversionError:
            continue
        assert "binary_conv" not in [step.op for step in packed.steps]


def test_what_is_looked_up_for_all_numbers_together_is_refused():
    network = nn.Sequential(nn.Linear(9, 12), Written(lambda x: looked_up(x / x.abs().max())), nn.Linear(12, 3)).eval()
    with pytest.raises(bnn.converter.ConversionError, match="changes the batch"):
        bnn.convert(network, images(1, 9))


def test_staircases_begin_where_their_function_says():
    for function in (
        lambda x: torch.round(x.clamp(-1, 1) * 7.3) / 7.3,
        lambda x: (x > 0.1).to(x.dtype) + (x >= 0.7).to(x.dtype),
        lambda x: torch.floor((x / 0.37).clamp(-3.5, 9.9)),
    ):
        quantizer = quantizer_of(staircase(function))
        x = torch.cat([torch.linspace(-3, 3, 20_001), quantizer.starts, quantizer.starts.nextafter(torch.tensor(-9.0))])
        torch.testing.assert_close(quantizer(x), function(x), rtol=1e-5, atol=1e-6)
    for function in (torch.relu, torch.sin, torch.round, lambda x: x * 0, lambda x: -x.sign()):
        assert staircase(function) is None


GRIDS = {
    "two's complement": (torch.arange(-4, 4) * 0.3, 3, 1),
    "from zero": (torch.arange(16) * 0.2, 4, 1),
    "as far below zero as above": ((torch.arange(4) - 1.5) * 0.5, 2, 1),
    "shifted": (torch.arange(4) * 0.5 + 0.2, 2, 2),
    "some levels alone": (torch.tensor([0.0, 0.25, 0.5, 1.75]), 3, 1),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("by_filter", [False, True])
def test_weights_of_evenly_spaced_values(name, by_filter):
    values, bits, terms = GRIDS[name]
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(len(values), (6, 64), generator=generator)
    levels[:, : len(values)] = torch.arange(len(values))
    weight = values[levels] * ((torch.arange(6)[:, None] + 1) / 3 if by_filter else 1)
    found = few_values(weight)
    assert len(found.terms) == terms
    assert len(found.term.multipliers) == bits
    made = sum(term.levels() * term.scale[:, None] for term in found.terms)
    torch.testing.assert_close(made, weight, rtol=0, atol=2e-5 * float(weight.abs().max()))
    assert few_values(weight + torch.randn(6, 64, generator=generator) * 0.02) is None


def test_weights_of_evenly_spaced_values_in_long_filters():
    """Filters of more numbers than are tried first, each with a spacing of its own; one has a value too many."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(-1, 3, (5, 5000), generator=generator).float()
    scale = torch.rand(5, 1, generator=generator) + 0.1
    found = few_values(levels * scale)
    assert len(found.terms) == 1 and torch.equal(found.term.levels().float(), levels)
    torch.testing.assert_close(found.term.scale, scale[:, 0])
    levels[3, 4321] = 0.4
    assert few_values(levels * scale) is None


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_weights_rounded_at_the_size_of_what_was_scaled(bits):
    """q(w) - w / s + w / s: weights of hundredths with the rounding of numbers as large as 5."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(8, 256, 3, 3, generator=generator) / 150
    scale = 1.6 * real.abs().mean((1, 2, 3), keepdim=True)
    top = 2**bits - 1
    exact = scale * (2 * ((real / scale).clamp(-1, 1) / 2 + 0.5).mul(top).round() / top - 1)
    weight = exact - real / scale + real / scale
    assert not torch.equal(weight, exact) and float((weight - exact).abs().max()) > 1e-5 * float(weight.abs().min())
    found = few_values(weight)
    assert [len(term.multipliers) for term in found.terms] == [bits] and not found.same
    made = found.term.levels() * found.term.scale[:, None, None, None]
    torch.testing.assert_close(made, exact, rtol=0, atol=2e-5 * float(exact.abs().max()))


def test_one_function_of_all_channels_takes_maps_of_any_width():
    """Thresholds are sought with one column: numbers that are equal for all channels are computed once."""
    x = Value((6, 4, 4), ())
    build = Builder("here")
    for made in (build.affine(x, 3.0, torch.full((6,), 0.5)), build.bend(x, torch.full((6,), 0.25), 1.0, 2.0)):
        columns = torch.linspace(-4, 4, 18).reshape(3, 6)
        assert made.uniform and made.function(columns[:, :1]).shape == (3, 1)
        assert torch.equal(made.function(columns), torch.cat([made.function(c) for c in columns.split(1, 1)], 1))
    own = build.affine(x, torch.arange(1.0, 7), 1.0)
    assert not own.uniform and torch.equal(own.function(torch.ones(1, 6)), torch.arange(2.0, 8)[None])


def test_few_bit_weights_take_few_bits_in_the_file():
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 32, 3)
    layer.weight.data = (layer.weight.data * 20).round().clamp(-4, 3) / 20
    packed, _ = check(nn.Sequential(nn.ReLU(), layer).eval(), images(3, 16, 8, 8))
    assert packed.nbytes < layer.weight.numel() * 3 / 8 + 1000


def test_what_becomes_bits_is_explained():
    torch.manual_seed(0)
    # Values that fall: few, and no levels of the input.
    falling = Written(lambda x: x.sign().abs() - x.sign())
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), Written(masked), SignWeights(8, 8, 3), falling, SignWeights(8, 8, 3), nn.Tanh(),
        SignWeights(8, 4, 1),
    ).eval()  # fmt: skip
    x = images(1, 3, 12, 12)
    found = bnn.converter.explain(network, x)
    assert [layer.on_bits for layer in found.layers] == [False, True, False, False]
    assert [(layer.weight_bits, layer.input_bits) for layer in found.layers] == [
        (None, None),
        (1, 1),
        (1, None),
        (1, None),
    ]
    assert [layer.place for layer in found.missed] == ["4.conv2d_1"]
    assert "4.conv2d_1" in str(found)
    bnn.convert(network, x)
    bnn.convert(network[:3].eval(), x, require_bits=True)
    with pytest.raises(bnn.converter.ConversionError, match=r"^4\.conv2d_1: would run in floats, as its inputs take"):
        bnn.convert(network, x, require_bits=True)


@pytest.mark.parametrize(("shift", "planes"), [(0.0, 2), (0.3, 1)])
def test_signs_that_meet_no_zero_take_one_plane(shift, planes):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    norm.bias.data[:] = shift
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), norm, nn.MaxPool2d(2), Written(torch.sign), SignWeights(8, 8, 3)
    )
    packed, _ = check(network.eval(), images(4, 3, 10, 10))
    assert f"W1A{planes}" in repr(packed)
    # A sum of signs is 0 in one place in ten.
    network = nn.Sequential(*list(network)[:-1], SignWeights(8, 8, 1), Written(torch.sign), SignWeights(8, 4, 1))
    network[4].bias = None
    assert "W1A2" in repr(bnn.convert(network.eval(), images(4, 3, 10, 10)))
