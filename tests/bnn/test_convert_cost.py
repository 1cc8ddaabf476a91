"""What a conversion computes once and not again, and that the quick way gives what the plain one does."""

import importlib
from functools import partial

import numpy as np
import pytest
import torch
from bnn_kernels.bits.storage import dense_of_planes, to_dense_bits
from torch import nn

import bnn
from bnn.converter import ConversionError, register_rule, verify
from bnn.converter.capture import record
from bnn.converter.capture.record import capture
from bnn.converter.levels.search import float_thresholds, integer_thresholds
from bnn.converter.levels.table import LARGEST_FLOAT, LevelTable, as_one_term
from bnn.layers import QuantConv2d, QuantLinear
from bnn.planes import Term, powers_of_two, twos_complement
from bnn.quantizers import LsqActivation, LsqWeight, SteSign, XnorWeight

convert_module = importlib.import_module("bnn.converter.convert")


class Counting(LsqWeight):
    """Counts how often planes of its weight are made. change: what each of them adds to the step."""

    made = 0
    change = 0.0

    def planes(self, x):
        type(self).made += 1
        found = super().planes(x)
        self.step.data.add_(self.change)
        return found


def network(**options):
    weight = partial(Counting, bits=4)
    layers = [QuantConv2d(3, 8, 3, weight_quantizer=weight, input_quantizer=partial(LsqActivation, bits=4)), nn.ReLU()]
    made = nn.Sequential(*layers, nn.Flatten(), QuantLinear(32, 4, weight_quantizer=weight, input_quantizer=SteSign))
    made(torch.randn(4, 3, 4, 4))
    for module in made.modules():
        if isinstance(module, Counting):
            for name, value in options.items():
                setattr(module, name, value)
    return made.eval()


def test_planes_of_weights_are_made_once_and_once_more_to_be_held_against_them():
    Counting.made = 0
    model, x = network(), torch.randn(2, 3, 4, 4)
    packed = bnn.convert(model, x)
    assert Counting.made == 2 * 2
    assert bnn.check_parity(model, packed, x).ok
    assert all(layer.kept_planes is None for layer in model if hasattr(layer, "kept_planes"))


def test_a_weight_that_changes_each_time_is_refused():
    with pytest.raises(ConversionError, match=r"computes something else|not what its forward computes"):
        bnn.convert(network(change=0.05), torch.randn(2, 3, 4, 4))


def plain(level, channels, start, stop, table):
    """Return where each level is first reached from `start` to `stop`, asking for every integer."""
    ranks = table.rank(level(torch.arange(start, stop + 1)[:, None].expand(-1, channels)))
    flip = ranks[0] > ranks[-1]
    ranks = torch.where(flip, ranks.flip(0), ranks)
    wanted = torch.arange(1, len(table.levels))[:, None, None]
    return (ranks[None] < wanted).sum(1), flip


@pytest.mark.parametrize("bits", [1, 3, 6])
@pytest.mark.parametrize("function", [torch.relu, nn.functional.hardtanh, torch.sigmoid, lambda y: y])
def test_thresholds_on_sums_are_those_of_asking_for_every_sum(bits, function):
    quantizer = SteSign() if bits == 1 else LsqActivation(bits, signed=True)
    if bits > 1:
        quantizer.step.data.fill_(0.07)
    table = LevelTable.of(quantizer.eval().planes(torch.zeros(1, 1)))
    scale, shift = torch.randn(12, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 12)
    scale[3], scale[7] = 0.0, 1e-6

    def level(sums):
        return as_one_term(quantizer.planes(function(sums * (0.01 * scale) + shift))).levels()

    t, flip = integer_thresholds(level, 12, 500, table)
    reached, flips = plain(level, 12, -500, 500, table)
    assert np.array_equal(flip, flips.numpy())
    sums = torch.arange(-500, 501)
    for i in range(len(t)):
        for c in range(12):
            begins = int(((sums.numpy() >= t[i, c]) ^ flip[c]).sum())
            assert begins == 1001 - int(reached[i, c]), (i, c)


def test_thresholds_on_floats_begin_where_the_number_below_is_a_level_lower():
    quantizer = LsqActivation(4).eval()
    quantizer.step.data.fill_(0.3)
    table = LevelTable.of(quantizer.planes(torch.zeros(1, 1)))

    def level(y):
        return as_one_term(quantizer.planes(y)).levels()

    (t, _) = float_thresholds(level, 1, LARGEST_FLOAT, table)
    at = torch.from_numpy(t)
    assert level(at)[:, 0].tolist() == list(range(1, 16))
    assert level(torch.nextafter(at, torch.tensor(-torch.inf)))[:, 0].tolist() == list(range(15))


@pytest.mark.parametrize("multipliers", [twos_complement(8), powers_of_two(7), powers_of_two(8), (1, -1), (100, -128)])
def test_levels_in_few_bytes_are_the_sums_of_the_planes(multipliers):
    bits = torch.rand(len(multipliers), 40, generator=torch.Generator().manual_seed(1)) < 0.5
    for signed in (False, True):
        values = torch.where(bits, -1, 1) if signed else bits.long()
        expected = (torch.tensor(multipliers)[:, None] * values).sum(0)
        term = Term(bits, signed, multipliers, torch.tensor(1.0))
        for dtype in (torch.float32, torch.int32, torch.int16):
            found = term.levels(dtype)
            assert torch.equal(found.long(), expected)
            found.zero_()  # one's own
            assert torch.equal(term.levels(dtype).long(), expected)


def test_planes_lie_in_a_file_as_codes_do():
    codes = np.random.default_rng(0).integers(0, 16, (3, 5, 7), dtype=np.uint8)
    planes = (codes[None] >> np.arange(4)[:, None, None, None]) & 1 == 1
    assert np.array_equal(dense_of_planes(planes), to_dense_bits(codes, 4))


def test_layers_of_one_bit_take_their_planes_from_the_same_place():
    layer = QuantLinear(8, 4, weight_quantizer=XnorWeight, input_quantizer=SteSign).eval()
    calls = []
    layer.kept_planes = lambda make: calls.append(layer) or make(layer)
    layer(torch.randn(2, 8))
    assert calls == [layer]


class Staircase(nn.Module):
    """Levels that are added up one by one, beside a write in place and a constant made of the input's shape."""

    def forward(self, x):
        y = torch.zeros_like(x)
        for i in range(1, 4):
            y = y + torch.where(x > 0.3 * i, torch.ones(1), torch.zeros(1)) / 3
        y[:, :1] = 0
        return y


def test_results_that_are_many_bytes_are_not_kept_and_conversion_is_the_same(monkeypatch):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Staircase(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 5)
    )
    model[3].weight.data.sign_()
    model, x = model.eval(), torch.randn(6, 3, 6, 6)
    expected = bnn.convert(model, x[:1])
    kept = []

    def watched(network, inputs, keep=None):
        kept.append(capture(network, inputs, keep))
        return kept[-1]

    monkeypatch.setattr(record, "MOST_BYTES", 100)
    for module in (convert_module, verify):
        monkeypatch.setattr(module, "capture", watched)
    packed = bnn.convert(model, x[:1])
    # The trial, what of it is read, and a batch of one and one of five, of which no numbers are.
    assert [len(run.inputs[0].results[0]) for run in kept] == [2, 2, 1, 5]
    assert not any(run.whole for run in kept)
    for run in kept[2:]:
        assert all(part.is_meta for node in run.nodes if node.target is not None for part in node.results)
    assert [spec.op for spec in packed.steps] == [spec.op for spec in expected.steps]
    assert np.array_equal(packed(x.numpy()), expected(x.numpy()))
    report = bnn.check_parity(model, packed, x)
    assert report.ok


def test_a_wrong_rule_is_seen_where_results_are_not_kept(monkeypatch):
    monkeypatch.setattr(record, "MOST_BYTES", 100)

    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    register_rule(Twice)(lambda build, module, x: build.affine(x, 3.0))
    with pytest.raises(ConversionError, match="its rule gives other numbers"):
        bnn.convert(nn.Sequential(nn.Linear(4, 4), Twice()).eval(), torch.randn(2, 4))


class LearnedShift(nn.Module):
    """A shift of each channel, or of each row, repeated to the map's shape, as published networks write it."""

    def __init__(self, shape, repeat):
        super().__init__()
        self.shift = nn.Parameter(torch.randn(1, *shape))
        self.repeat = repeat

    def forward(self, x):
        return x + self.repeat(self.shift, x)


@pytest.mark.parametrize(("shape", "kept"), [((6, 1, 1), 6), ((1, 1, 1), 1), ((1, 8, 1), 8), ((6, 1, 9), 54)], ids=str)
@pytest.mark.parametrize(
    "repeat",
    [
        lambda c, x: c.expand_as(x),
        lambda c, x: c.repeat(1, *(b // a for a, b in zip(c.shape[1:], x.shape[1:], strict=True))),
    ],
    ids=["expand", "repeat"],
)
def test_a_constant_repeated_to_the_shape_of_a_map_is_kept_once(shape, kept, repeat):
    layers = [nn.ReLU(), LearnedShift(shape, repeat), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers).eval()
    x = torch.randn(2, 6, 8, 9)
    packed = bnn.convert(model, x)
    assert bnn.check_parity(model, packed, x).ok
    assert packed.nbytes <= 4 * max(kept, 6)  # a step of channels has one number of each
