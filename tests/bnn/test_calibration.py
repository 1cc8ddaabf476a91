"""bnn.calibrate with an observer: steps and zero points of networks, on integer kernels; errors that name paths."""

import copy
import warnings
from functools import partial

import pytest
import torch
from conversion import check
from torch import nn

import bnn
from bnn.calibration import Distribution, MeanSquaredError, MinMax
from bnn.layers import DroppedInput, QuantConv2d, QuantEmbedding, QuantLinear
from bnn.quantizers import AffineActivation, LsqActivation, LsqWeight, Pact, SteSign, XnorWeight


def affine(bits, per_channel=True):
    return {
        "weight_quantizer": partial(LsqWeight, bits=bits, per_channel=per_channel),
        "input_quantizer": partial(AffineActivation, bits=bits),
    }


def symmetric(bits, per_channel=False):
    return affine(bits, per_channel) | {"input_quantizer": partial(LsqActivation, bits=bits, signed=True)}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.Hardswish(), nn.Flatten(),
        nn.Linear(192, 16), nn.Hardtanh(), nn.Linear(16, 5),
    ).eval()  # fmt: skip


@pytest.fixture
def images():
    return torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 0.3


def inputs_of_layers(model, x):
    """What each layer is given, by its path."""
    found = {}
    handles = [
        module.register_forward_pre_hook(lambda _m, given, path=path: found.setdefault(path, given[0].detach()))
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("quantized", [affine(8), symmetric(4), affine(3, per_channel=False)])
def test_ranges_are_those_of_the_float_network(network, images, quantized):
    model = bnn.quantize(network, **quantized, skip=())
    assert bnn.calibrate(model, images.split(7), "min_max", "min_max") is model
    for path, given in inputs_of_layers(network, images).items():
        layer = model.get_submodule(path)
        own, weight = layer.input_quantizer, layer.weight_quantizer
        step, zero_point = own.grid.fit(given.min().reshape(1), given.max().reshape(1))
        torch.testing.assert_close(own.step.detach().reshape(1), step, rtol=1e-5, atol=0)
        if isinstance(own, AffineActivation):
            assert int(own.zero_point) == int(zero_point)
        rows = layer.weight.detach().reshape(weight.grid.channels or 1, -1)
        step = torch.maximum(rows.amax(1) / weight.grid.high, rows.amin(1) / weight.grid.low)
        torch.testing.assert_close(weight.step.detach().reshape(-1), step, rtol=1e-5, atol=0)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("observer", ["min_max", "percentile", "mse", "entropy"])
def test_eight_bits_answer_like_floats_and_run_on_integers(network, images, observer, tmp_path):
    model = bnn.calibrate(bnn.quantize(network, "int8", skip=()), [images], observer)
    with torch.no_grad():
        exact, found = network(images), model(images)
    assert float((exact - found).norm() / exact.norm()) < 0.05
    packed, report = check(model, images, tmp_path)
    assert bnn.converter.explain(model, images).missed == ()
    assert not any(row.different for row in report.steps if row.kind == "exact")
    assert not any(step.op.startswith("float") for step in packed.steps)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("quantized", [affine, symmetric])
def test_all_widths_run_on_integers(network, images, bits, quantized):
    model = bnn.calibrate(bnn.quantize(network, **quantized(bits), skip=()), [images], "mse")
    check(model, images)


def test_more_bits_answer_more_like_floats(network, images):
    errors = []
    for bits in (2, 4, 6, 8):
        model = bnn.calibrate(bnn.quantize(network, **affine(bits), skip=()), [images], "mse")
        with torch.no_grad():
            errors.append(float((model(images) - network(images)).norm()))
    assert errors == sorted(errors, reverse=True)


def test_training_goes_on_from_the_calibrated_step(network, images):
    model = bnn.calibrate(bnn.quantize(network, **affine(4), skip=()), [images], "mse")
    steps = [q.step.detach().clone() for q in model.modules() if isinstance(q, LsqWeight | LsqActivation)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with torch.no_grad():
        target = network(images)
    losses = []
    model.train()
    for _ in range(8):
        loss = ((model(images) - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    after = [q.step.detach() for q in model.modules() if isinstance(q, LsqWeight | LsqActivation)]
    assert losses[-1] < losses[0]
    assert all(torch.all((new - old).abs() < 0.2 * old) for old, new in zip(steps, after, strict=True))
    assert not all(torch.equal(old, new) for old, new in zip(steps, after, strict=True))


def test_one_sample_after_the_other_is_the_same_as_all_at_once(network, images):
    states = [
        bnn.calibrate(bnn.quantize(network, **affine(8), skip=()), batches, "mse").state_dict()
        for batches in ([images], iter(images.split(1)), [(part, torch.zeros(1)) for part in images.split(5)])
    ]
    for other in states[1:]:
        for name, value in states[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-7)


def test_nothing_else_changes(network, images):
    model = bnn.quantize(network, **affine(8), skip=()).train()
    model[4].eval()
    before, numbers = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    bnn.calibrate(model, images, "mse")
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not any("forward" in vars(module) for module in model.modules())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"step", "zero_point", "initialized"}


def test_what_began_begins_again_and_weights_alone_need_no_observer_of_inputs(network, images):
    model = bnn.calibrate(bnn.quantize(network, **affine(8), skip=()), images, "mse")
    fresh = copy.deepcopy(model.state_dict())
    bnn.calibrate(model, 3 * images, "mse")
    assert model[0].input_quantizer.step > 2.5 * fresh["0.input_quantizer.step"]
    bnn.calibrate(model, images, weight_observer="min_max")
    assert model[0].input_quantizer.step > 2.5 * fresh["0.input_quantizer.step"]
    assert not torch.equal(model[0].weight_quantizer.step, fresh["0.weight_quantizer.step"])


def test_all_kinds_of_uniform_quantizers():
    torch.manual_seed(0)
    dropped = partial(DroppedInput, partial(LsqActivation, bits=4, signed=True), p=0.5)
    model = nn.Sequential(
        QuantEmbedding(7, 6, weight_quantizer=partial(LsqWeight, bits=4)),
        QuantLinear(6, 8, weight_quantizer=partial(LsqWeight, bits=8), input_quantizer=dropped),
        nn.ReLU(),
        QuantLinear(8, 8, weight_quantizer=XnorWeight, input_quantizer=partial(Pact, bits=4)),
        QuantLinear(8, 4, weight_quantizer=XnorWeight, input_quantizer=SteSign),
    )
    tokens = torch.randint(0, 7, (5, 9))
    bnn.calibrate(model, tokens, MinMax())
    table, first, third = model[0], model[1], model[3]
    floats = table.weight[tokens]
    inner = first.input_quantizer.quantizer
    torch.testing.assert_close(inner.step * 7, torch.maximum(floats.max(), -floats.min() * 7 / 8))
    after = torch.relu(floats @ first.weight.T + first.bias)
    torch.testing.assert_close(third.input_quantizer.alpha, after.max())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.eval()(tokens)


def test_others_that_learn_from_data_begin_too(images):
    """LSQ's signs have no range to cover, and begin as in training."""
    binary = QuantConv2d(3, 3, 1, weight_quantizer=partial(LsqWeight, bits=1), input_quantizer=SteSign)
    model = nn.Sequential(QuantConv2d(3, 3, 1, **affine(8)), binary)
    bnn.calibrate(model, images, "mse")
    torch.testing.assert_close(binary.weight_quantizer.step, 2 * binary.weight.abs().mean())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.eval()(images)


def test_an_observer_of_ones_own(network, images):
    class Half:
        def range_of(self, values: Distribution, grid):
            return values.low / 2, values.high / 2

    model = bnn.calibrate(bnn.quantize(network, **affine(8), skip=()), images, Half(), MeanSquaredError())
    expected = (images.max() - images.min()) / 2 / 255
    torch.testing.assert_close(model[0].input_quantizer.step.detach(), expected)


# -- errors --------------------------------------------------------------------------------------------------------


class Dead(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return torch.full_like(x, self.value)


@pytest.mark.parametrize(
    ("value", "quantized", "words"),
    [
        (0.0, affine(8), r"2\.input_quantizer: all its inputs are 0, .*leave this layer float"),
        (-1.5, affine(8), r"2\.input_quantizer: all its inputs are -1\.5, "),
        (float("nan"), affine(8), r"2\.input_quantizer: the values hold NaN or infinity"),
    ],
)
def test_inputs_that_say_nothing_are_refused(value, quantized, words):
    torch.manual_seed(0)
    model = nn.Sequential(QuantLinear(4, 4, **quantized), Dead(value), QuantLinear(4, 4, **quantized))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=words):
        bnn.calibrate(model, torch.randn(6, 4), "mse")
    assert all(torch.equal(found, before[name]) for name, found in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())


def test_levels_from_zero_need_a_positive_input():
    unsigned = affine(8) | {"input_quantizer": partial(LsqActivation, bits=8)}
    with pytest.raises(ValueError, match=r"0\.input_quantizer: none of its inputs is positive"):
        bnn.calibrate(nn.Sequential(QuantLinear(4, 4, **unsigned)), -torch.rand(6, 4) - 0.1, "mse")


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 3, 8, 8)]])
def test_no_data_is_refused(network, batches):
    with pytest.raises(ValueError, match=r"no batches|without samples"):
        bnn.calibrate(bnn.quantize(network, **affine(8)), batches, "mse")


def test_layers_that_no_batch_reaches_are_named(images):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.other = QuantConv2d(3, 3, 1, **affine(8)), QuantConv2d(3, 3, 1, **affine(8))

        def forward(self, x):
            return self.used(x)

    with pytest.warns(UserWarning, match="no batch reached these quantizers, .*: other.input_quantizer$"):
        bnn.calibrate(Unused(), images, "mse")


def test_an_operation_without_an_integer_form_is_named_with_its_path(network, images):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    model = bnn.calibrate(bnn.quantize(nn.Sequential(network, Odd()), **affine(8), skip=()), images, "mse")
    with pytest.raises(bnn.ConversionError, match=r"^1\.special_bessel_j0: "):
        bnn.convert(model.eval(), images)


# -- dynamic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Linear(12, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 5)], (7, 12)),
        ([nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)], (3, 6, 6)),
    ],
)
def test_dynamic_scales_follow_each_token_or_sample(layers, shape):
    torch.manual_seed(0)
    original = nn.Sequential(*copy.deepcopy(layers)).eval()
    x = torch.randn(6, *shape)
    x[1] *= 300  # a range that was calibrated for one of them would not fit the others
    model = bnn.calibrate(bnn.quantize(original, "int8_dynamic", skip=()), x, weight_observer="mse").eval()
    with torch.no_grad():
        exact, found = original(x), model(x)
    for one, other in zip(exact, found, strict=True):
        assert float((one - other).norm() / one.norm()) < 0.05
    with torch.no_grad():
        assert torch.equal(model(x[2:3]), found[2:3])
        if len(shape) == 2:
            assert torch.equal(model(x[:, 3:4]), found[:, 3:4])
    packed, _ = check(model, x)
    assert any(step.op == "absmax" for step in packed.steps)
    assert not any(step.op.startswith("float") for step in packed.steps)
