"""The parity report: what it must not let pass, and what it must not cry about."""

import copy
import json
from functools import partial

import bnn_kernels as bk
import numpy as np
import pytest
import torch
from conversion import images, upset
from torch import nn

import bnn
from bnn.converter import ConversionError, registry
from bnn.layers import QuantConv2d, QuantLinear
from bnn.models import DigitsCNN
from bnn.planes import Planes, Term, powers_of_two, ternary_bits
from bnn.quantizers import (
    AbsmaxActivation,
    DoReFaActivation,
    FullPrecision,
    LsqActivation,
    LsqWeight,
    Quantizer,
    SteSign,
    XnorWeight,
)
from bnn.quantizers.straight_through import straight_through

BINARY = {"weight_quantizer": XnorWeight, "input_quantizer": SteSign}


def one(value=1.0):
    return torch.tensor(value)


class OtherScale(Quantizer):
    """Ternary, 0.5 in forward and 0.6 in planes."""

    _bits = 2

    def levels(self, w):
        return torch.sign(w.detach()) * (w.detach().abs() > 0.05)

    def forward(self, w):
        return straight_through(w, self.levels(w) * 0.5)

    def planes(self, w):
        return Planes((Term(ternary_bits(self.levels(w)), False, (1, -1), one(0.6)),))


class OtherOrder(SteSign):
    """Planes of the tensor the other way round."""

    def planes(self, x):
        return Planes((Term((x.flip(-1) < 0)[None], True, (1,), one()),))


class OtherInEvaluation(SteSign):
    """Planes that depend on the mode."""

    def planes(self, x):
        return Planes((Term((x < (0 if self.training else 0.3))[None], True, (1,), one()),))


class OtherShape(SteSign):
    def planes(self, x):
        return Planes((Term((x[:1] < 0)[None], True, (1,), one()),))


class ZeroIsMinusOne(SteSign):
    """sign(0) is +1 in forward and -1 in planes."""

    def planes(self, x):
        return Planes((Term((x <= 0)[None], True, (1,), one()),))


class HalvesUp(Quantizer):
    """Two bits; halves are rounded to even in forward and up in planes."""

    elementwise = True

    def forward(self, x):
        return x.clamp(0, 3).round()

    def planes(self, x):
        level = (x.clamp(0, 3) + 0.5).floor().long()
        bits = torch.stack([(level >> p) & 1 for p in range(2)]).bool()
        return Planes((Term(bits, False, powers_of_two(2), one()),))


class HugeIsZero(SteSign):
    """Planes forget what is very large."""

    def planes(self, x):
        return Planes((Term(((x < 0) | (x > 1e9))[None], True, (1,), one()),))


def linear(weight_quantizer=XnorWeight, input_quantizer=SteSign):
    torch.manual_seed(0)
    layer = QuantLinear(64, 64, weight_quantizer=weight_quantizer, input_quantizer=input_quantizer)
    return nn.Sequential(nn.Linear(16, 64), layer, nn.Linear(64, 4)).eval()


# -- planes and forward -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [OtherScale, OtherOrder, OtherInEvaluation])
def test_planes_of_weights_that_are_not_the_forward_are_refused(kind):
    with pytest.raises(ConversionError, match=rf"1\.weight_quantizer.*{kind.__name__}"):
        bnn.convert(linear(weight_quantizer=kind), images(4, 16))


def test_planes_of_another_shape_are_refused_where_they_are_used():
    with pytest.raises(ConversionError, match=r"at 1: OtherShape\.planes: bits must have shape"):
        bnn.convert(linear(weight_quantizer=OtherShape), images(4, 16))


@pytest.mark.parametrize("kind", [OtherInEvaluation, ZeroIsMinusOne, HalvesUp, HugeIsZero])
def test_planes_of_inputs_that_are_not_the_forward_are_refused(kind):
    """Also where they differ at a single number, which no example need hold."""
    with pytest.raises(ConversionError, match=rf"(?s)1.*{kind.__name__}"):
        bnn.convert(linear(input_quantizer=kind), images(4, 16))


def test_planes_of_absmax_inputs_are_compared_on_the_example():
    class Wrong(AbsmaxActivation):
        def planes(self, x):
            planes = super().planes(x)
            return Planes((Term(planes.terms[0].bits, False, planes.terms[0].multipliers, planes.terms[0].scale * 2),))

    with pytest.raises(ConversionError, match=r"1\.input_quantizer.*Wrong"):
        bnn.convert(linear(XnorWeight, Wrong), images(4, 16))


def test_the_report_compares_planes_with_forward_on_its_inputs():
    """A model whose quantizer changed after the conversion: a row of its own says so."""
    model, x = linear(), images(8, 16)
    packed = bnn.convert(model, x)
    assert bnn.check_parity(model, packed, x).ok
    model[1].weight_quantizer.__class__ = type("Bent", (XnorWeight,), {"forward": lambda self, w: w.sign() * 0.5})
    report = bnn.check_parity(model, packed, x)
    assert not report.ok
    assert report.first_difference.step == "planes"
    assert report.first_difference.source == "1.weight_quantizer (Bent)"
    assert report.first_difference.different == 64 * 64
    assert all(row.ok for row in report.steps)
    assert "1.weight_quantizer (Bent)" in str(report)
    assert str(report).endswith("PARITY FAILS")
    # Nothing is left on the user's model.
    assert not any("planes" in vars(module) or module._forward_hooks for module in model.modules())


# -- levels within rounding -------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


@pytest.fixture(scope="module")
def eight_bits():
    torch.manual_seed(0)
    floats = nn.Sequential(nn.Linear(28, 32), Block(32), Block(32), nn.LayerNorm(32), nn.Linear(32, 10))
    model = bnn.quantize(
        floats,
        weight_quantizer=partial(LsqWeight, 8, per_channel=True),
        input_quantizer=partial(LsqActivation, 8, signed=True),
    )
    model.train()(images(64, 28, 28))
    return model.eval(), bnn.convert(model, images(2, 28, 28))


def changed(packed, index, change):
    """The same packed network with one step changed."""
    steps = copy.deepcopy(packed.steps)
    change(steps[index])
    return bk.PackedModel(packed.input_shapes, steps, outputs=packed.outputs)


def first_levels(packed):
    return next(i for i, step in enumerate(packed.steps) if "levels" in step.attrs and step.source == "1.up input")


def stretch_levels(by):
    """A change of a step whose levels are evenly spaced: they are farther apart by this factor."""

    def change(step):
        levels = step.attrs["levels"]
        step.attrs["levels"] = {**levels, "factor": float(np.float32(levels["factor"] * by))}

    return change


def shift_thresholds(by):
    """A change of a step with thresholds on floats: they are higher."""

    def change(step):
        step.tensors["thresholds"] = step.tensors["thresholds"] + np.float32(by)

    return change


def shift_levels(steps):
    """A change of a step whose levels are evenly spaced: what it reads is higher by a number of levels."""

    def change(step):
        step.tensors["shift"] = step.tensors["shift"] + np.float32(steps * step.attrs["levels"]["factor"])

    return change


def test_levels_of_several_bits_within_rounding_are_counted_apart(eight_bits):
    """Levels behind a LayerNorm, whose floats are not PyTorch's own to the last bit."""
    model, packed = eight_bits
    x = images(32, 28, 28, seed=5)
    rows = {row.source: row for row in bnn.check_parity(model, packed, x).steps}
    assert rows["1.up input"].kind == "levels"
    # Levels moved by less than rounding over many floats: some fall on the other side.
    moved = changed(packed, first_levels(packed), stretch_levels(1 + 4e-6))
    report = bnn.check_parity(model, moved, x)
    row = next(row for row in report.steps if row.source == "1.up input")
    assert 0 < row.different == row.explained
    assert row.ok
    assert row.max_difference == 1
    # What lies behind is fed PyTorch's levels.
    assert all(row.different == 0 or row.kind == "float" for row in report.steps if row.source.startswith("1.down"))
    assert report.first_difference is None, str(report)


@pytest.mark.parametrize("steps", [0.05, 1.0, 2.0])
def test_levels_farther_than_rounding_fail(eight_bits, steps):
    """Levels that begin off by a share of a level, or by levels."""
    model, packed = eight_bits
    x = images(8, 28, 28, seed=5)
    wrong = changed(packed, first_levels(packed), shift_levels(steps))
    report = bnn.check_parity(model, wrong, x)
    assert report.first_difference.source == "1.up input"
    assert report.first_difference.explained < report.first_difference.different


def test_levels_much_too_far_apart_fail():
    """Levels much too far apart: most are wrong that are within rounding of none."""
    model, x = linear(input_quantizer=partial(LsqActivation, 4, signed=True)), images(8, 16)
    bnn.calibrate(model, x)
    packed = bnn.convert(model, x)
    index = next(i for i, step in enumerate(packed.steps) if "levels" in step.attrs)
    wrong = changed(packed, index, stretch_levels(1.5))
    assert bnn.check_parity(model, wrong, x).first_difference.source == "1 input"


def test_levels_of_integers_stay_exact():
    """Integers that are off by one fail, whatever levels lie near."""
    torch.manual_seed(0)
    given = partial(DoReFaActivation, 3)
    conv = partial(QuantConv2d, 8, 8, 3, weight_quantizer=XnorWeight, input_quantizer=given)
    model = upset(nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU(), conv(), nn.Flatten(), nn.Linear(128, 3)))
    x = images(16, 8, 8, 8)
    packed = bnn.convert(model, x)
    report = bnn.check_parity(model, packed, x)
    assert report.ok
    assert [row.kind for row in report.steps if row.levels] == ["exact", "exact"]
    steps = copy.deepcopy(packed.steps)
    step = next(s for s in steps if s.source == "3 input")
    assert step.attrs["exact"]
    step.tensors["shift"] = step.tensors["shift"] + step.tensors["scale.0"]
    wrong = bnn.check_parity(model, bk.PackedModel(packed.input_shapes, steps, outputs=packed.outputs), x)
    assert wrong.first_difference.source == "3 input"
    assert wrong.first_difference.kind == "exact"


def test_levels_of_pytorchs_own_floats_are_exact():
    model, x = linear(), images(16, 16)
    report = bnn.check_parity(model, bnn.convert(model, x), x)
    assert {row.source: row.kind for row in report.steps}["1 input"] in ("exact", "signs")


def test_absmax_inputs_have_the_allowance():
    model = linear(XnorWeight, AbsmaxActivation)
    x = images(64, 16)
    report = bnn.check_parity(model, bnn.convert(model, x), x)
    assert report.ok, str(report)
    assert {row.source: row.kind for row in report.steps}["1 input"] == "levels"


class Residual(Quantizer):
    """Signs of x and of what they leave: two terms of two scales, four values."""

    elementwise = True

    def forward(self, x):
        return self.planes(x).value()

    def planes(self, x):
        sign = torch.where(x < 0, -1.0, 1.0)
        return Planes((Term((x < 0)[None], True, (1,), one()), Term((x - sign < 0)[None], True, (1,), one(0.375))))


class Quantized(nn.Module):
    """Values that a rule of the user's knows as levels, after a LayerNorm, before binary weights."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return Residual()(x) if self.factor == 1 else torch.where(x < 0, -1.0, 1.0) * self.factor


@pytest.fixture
def quantized_rule():
    @bnn.converter.register_rule(Quantized)
    def rule(build, module, x):
        if module.factor == 1:
            return build.quantize(x, Residual())
        return build.affine(build.quantize(x, SteSign()), module.factor)

    yield
    del registry._MODULES[Quantized]


def after_a_norm(factor):
    torch.manual_seed(0)
    layer = QuantLinear(64, 32, weight_quantizer=XnorWeight, input_quantizer=FullPrecision)
    return nn.Sequential(nn.Linear(16, 64), nn.LayerNorm(64), Quantized(factor), layer).eval()


@pytest.mark.usefixtures("quantized_rule")
def test_a_rule_may_scale_what_it_quantizes():
    """The place then computes other numbers than the levels' values, so no levels are read there."""
    model, x = after_a_norm(2.0), images(32, 16)
    report = bnn.check_parity(model, bnn.convert(model, x), x)
    assert report.ok, str(report)
    assert not any(row.levels for row in report.steps)


@pytest.mark.usefixtures("quantized_rule")
def test_levels_of_several_terms_made_by_a_function_have_a_row():
    model, x = after_a_norm(1), images(4096, 16)
    packed = bnn.convert(model, x)
    report = bnn.check_parity(model, packed, x)
    assert report.ok, str(report)
    row = next(row for row in report.steps if row.levels)
    assert row.source == "2 in values 3:-1.375 1:-0.625 2:0.625 0:1.375"
    assert row.elements == 4096 * 64
    index = next(i for i, step in enumerate(packed.steps) if step.source == row.source)
    moved = changed(packed, index, shift_thresholds(2.5e-5))
    rows = {row.source: row for row in bnn.check_parity(model, moved, x).steps}
    assert 0 < rows[row.source].different == rows[row.source].explained
    assert all(other.ok for other in rows.values())
    wrong = changed(packed, index, shift_thresholds(1e-2))
    assert bnn.check_parity(model, wrong, x).first_difference.source == row.source


# -- what would lie ---------------------------------------------------------------------------------------------------


def test_a_nan_of_one_network_is_infinitely_far():
    model, x = nn.Sequential(nn.Linear(4, 3)).eval(), images(6, 4)
    packed = bnn.convert(model, x)
    with torch.no_grad():
        model[0].weight[1, 2] = float("nan")
    report = bnn.check_parity(model, packed, x)
    assert not report.ok
    assert report.first_difference.max_difference == float("inf")
    assert report.max_difference == float("inf")
    assert "hold NaN" in str(report)
    assert "NaN" not in report.to_json()  # which JSON has not
    assert "Infinity" not in report.to_json()


def test_one_infinite_number_hides_no_other():
    """Relative to an infinity everything is near."""
    model, x = nn.Sequential(nn.Linear(4, 3)).eval(), images(6, 4)
    packed = bnn.convert(model, x)
    with torch.no_grad():
        model[0].bias[0] = float("inf")
        model[0].bias[1] += 1
    report = bnn.check_parity(model, packed, x)
    assert not report.steps[0].ok


def test_packed_networks_of_other_models_are_refused():
    model = upset(DigitsCNN(**BINARY))
    x = images(4, 1, 8, 8)
    for other in (nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))):
        with pytest.raises(ValueError, match="made of another model"):
            bnn.check_parity(model, bnn.convert(other.eval(), x), x)
    with pytest.raises(ValueError, match="takes inputs of shape"):
        bnn.check_parity(model, bnn.convert(nn.Linear(3, 10).eval(), images(1, 3)), x)
    wider = nn.Sequential(nn.Linear(16, 65), nn.Linear(65, 4)).eval()
    narrow = nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 4)).eval()
    with pytest.raises(ValueError, match="made of another model"):
        bnn.check_parity(wider, bnn.convert(narrow, images(1, 16)), images(4, 16))


def test_a_packed_network_of_other_weights_fails():
    model, x = upset(DigitsCNN(**BINARY)), images(16, 1, 8, 8)
    torch.manual_seed(99)
    report = bnn.check_parity(model, bnn.convert(upset(DigitsCNN(**BINARY)), x), x)
    assert not report.ok


class Drifting(nn.Linear):
    """Its weights change by a factor with every forward, as those of a network do that centres them each time."""

    factor = 1 + 2.0**-23

    def forward(self, x):
        self.weight.data.mul_(self.factor)
        return super().forward(x)


@pytest.mark.parametrize(("factor", "holds"), [(1 + 2.0**-23, True), (1.01, False)])
def test_weights_that_change_in_forward_may_do_so_within_rounding(factor, holds):
    torch.manual_seed(0)
    network, x = Drifting(16, 4).eval(), images(30, 16)
    packed = bnn.convert(network, x)
    network.factor = factor
    report = bnn.check_parity(network, packed, x)
    assert report.ok == holds, report
    if not holds:
        assert report.first_difference.step == "graph"


def test_a_part_in_train_mode_is_named():
    model = upset(DigitsCNN(**BINARY))
    packed = bnn.convert(model, images(1, 1, 8, 8))
    name, norm = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d))
    norm.train()
    with pytest.raises(ValueError, match=f"{name} is in train mode"):
        bnn.check_parity(model, packed, images(1, 1, 8, 8))


def test_inputs_of_other_dtypes_and_bad_ones():
    model, x = linear(), images(8, 16)
    packed = bnn.convert(model, x)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert bnn.check_parity(model, packed, x.to(dtype)).ok
    assert bnn.check_parity(copy.deepcopy(model).double(), packed, x.double()).ok
    for bad in ([], torch.zeros(0, 16)):
        with pytest.raises(ValueError, match="at least one input"):
            bnn.check_parity(model, packed, bad)
    with pytest.raises(ValueError, match="batch_size"):
        bnn.check_parity(model, packed, x, batch_size=0)


def test_outputs_without_classes_predict_nothing():
    model, x = nn.Sequential(nn.Linear(8, 1)).eval(), images(8, 8)
    report = bnn.check_parity(model, bnn.convert(model, x), x)
    assert report.ok
    assert report.agreement is None
    assert "no classes to predict" in str(report)


def test_ties_are_undecided():
    """Two classes of the same weights up to rounding: which one is larger is not the packed network's fault."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(512, 2)).eval(), images(256, 512)
    with torch.no_grad():
        model[0].weight[1] = model[0].weight[0]
        model[0].bias.fill_(0)
    packed = bnn.convert(model, x)
    packed.steps[0].tensors["weight"][1] *= np.float32(1 + 1e-6)
    report = bnn.check_parity(model, bk.PackedModel(packed.input_shapes, packed.steps), x)
    assert 0 < report.undecided < 1
    assert report.agreement + report.undecided == pytest.approx(1)
    assert report.ok, str(report)


def test_one_class_for_all_is_said():
    model, x = nn.Sequential(nn.Linear(8, 3)).eval(), images(8, 8)
    nn.init.zeros_(model[0].weight)
    report = bnn.check_parity(model, bnn.convert(model, x), x)
    assert report.classes == 1
    assert "one class for all" in str(report)


def test_the_report_says_what_runs_in_floats_and_why():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 8), QuantLinear(8, 8, **BINARY), nn.Linear(8, 3)).eval()
    report = bnn.check_parity(network, bnn.convert(network, torch.randn(1, 8)), torch.randn(5, 8))
    assert [(layer.place, layer.on_bits) for layer in report.explanation.layers] == [
        ("0", False),
        ("1", True),
        ("2", False),
    ]
    assert "\n2 runs in floats: its weights take many values\n" in str(report)
    layers = json.loads(report.to_json())["layers"]
    assert [(layer["place"], layer["weight_bits"], layer["on_bits"]) for layer in layers][1] == ("1", 1, True)
