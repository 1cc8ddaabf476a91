"""All state that a forward uses lies in parameters and buffers: copies, averages, and forwards that run twice."""

import copy
import io
import pickle
from functools import partial

import pytest
import quantizer_configs as configs
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint

from bnn.layers import QuantConv2d, QuantConvTranspose2d, QuantLinear
from bnn.memory import pack_activations
from bnn.quantizers import LqWeight, LsqActivation, LsqWeight, RotatedWeight, SteSign, XnorWeight

NAMES = configs.NAMES
# Those whose quantizers hold parameters or buffers, one of a kind.
WITH_STATE = [
    *("abcnet33", "adabin", "bit", "int8", "lqnet2", "lsq1", "lsq2", "n2uq2", "pact2", "paretoq2", "rbnn", "recu"),
    *("stableqat2", "tbn", "ttq", "xnorpp"),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def network(name):
    weight, given = configs.factories()[name]
    torch.manual_seed(1)
    layer = QuantConv2d(4, 6, 3, padding=1, weight_quantizer=weight, input_quantizer=given)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), layer, nn.BatchNorm2d(6))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items() if "quantizer" in name}


def assert_same_state(model, expected):
    for name, value in state(model).items():
        assert torch.equal(value, expected[name]), name


def test_no_state_is_forgotten_here():
    held = {name for name in NAMES if state(network(name))}
    kinds = {configs.factories()[name][role].func for name in held for role in (0, 1)}
    here = {configs.factories()[name][role].func for name in WITH_STATE for role in (0, 1)}
    assert {kind.__name__ for kind in kinds - here} <= {
        "AbsmaxActivation",
        "FullPrecision",
        "NoiseAdaptedSign",
        "MagnitudeAwareSign",
        "RSign",
        "RelaxedWeight",
        "TernaryWeight",
    }


def trained(name):
    """A network whose quantizers have begun with data and gone on from there."""
    model = network(name).train()
    model(torch.randn(8, 1, 8, 8))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "quantizer" in parameter_name:
                parameter.mul_(3)
    return model


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def into_fresh(model, assign=False):
    """Into a model that has read its own flag before."""
    fresh = network_like(model)
    fresh.eval()
    with torch.no_grad():
        fresh[2].input_quantizer.eval()(torch.randn(1, 4, 8, 8))
    fresh.load_state_dict(copy.deepcopy(model.state_dict()), assign=assign)
    return fresh.train()


def network_like(model):
    return network(model.name)


def by_hand(model):
    """What exponential averages of weights do: every tensor is copied into that of an earlier copy."""
    fresh = network_like(model).train()
    with torch.no_grad():
        for ours, theirs in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True):
            ours.copy_(theirs)
    return fresh


COPIES = [copy.deepcopy, through_pickle, through_file, into_fresh, partial(into_fresh, assign=True), by_hand]


@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle", "save", "load", "assign", "copy_"])
@pytest.mark.parametrize("name", WITH_STATE)
def test_a_copy_in_training_goes_on_where_the_original_was(name, copied):
    model = trained(name)
    model.name = name
    x = torch.randn(8, 1, 8, 8)
    again = copied(model)
    assert_same_state(again, state(model))
    torch.manual_seed(2)
    expected = model.train()(x)
    torch.manual_seed(2)
    assert torch.equal(again(x), expected)
    assert_same_state(again, state(model))


@pytest.mark.parametrize("name", [name for name in WITH_STATE if name not in ("lqnet2", "tbn")])
def test_an_average_that_was_made_before_training_stays(name):
    model = network(name)
    average = AveragedModel(model)
    model.train()(torch.randn(8, 1, 8, 8))
    average.update_parameters(model)
    before = state(average)
    update_bn([torch.randn(8, 1, 8, 8)], average)
    assert_same_state(average, before)
    assert_same_state(average.module, state(model)) if name != "rbnn" else None  # its rotations are not averaged


def test_a_state_from_before_training_begins_again():
    layer = QuantLinear(8, 4, weight_quantizer=partial(LsqWeight, bits=2), input_quantizer=SteSign)
    untrained = copy.deepcopy(layer.state_dict())
    layer(torch.randn(3, 8))
    step = layer.weight_quantizer.step.clone()
    for load in (
        lambda: layer.load_state_dict(untrained),
        lambda: [t.copy_(untrained[name]) for name, t in layer.state_dict().items()],
    ):
        with torch.no_grad():
            load()
        assert layer.weight_quantizer.step == 1
        layer(torch.randn(3, 8))
        assert torch.equal(layer.weight_quantizer.step, step)
    other = torch.func.functional_call(layer, {**untrained, "weight": 2 * untrained["weight"]}, (torch.randn(3, 8),))
    assert other.shape == (3, 4)
    assert torch.equal(untrained["weight_quantizer.step"], 2 * step)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing does so
def test_a_compiled_copy_does_not_begin_again():
    layer = QuantLinear(
        8, 4, weight_quantizer=partial(LsqWeight, bits=2), input_quantizer=partial(LsqActivation, bits=2)
    )
    fresh = copy.deepcopy(layer)
    compiled = torch.compile(fresh, fullgraph=True, backend="eager")
    layer(torch.randn(3, 8))
    with torch.no_grad():
        for ours, theirs in zip(fresh.state_dict().values(), layer.state_dict().values(), strict=True):
            ours.copy_(2 * theirs if theirs.is_floating_point() else theirs)
    before = copy.deepcopy(fresh.state_dict())
    x = 5 * torch.randn(3, 8)
    first = compiled(x)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())
    assert torch.equal(compiled(x), first)
    torch._dynamo.reset()


# -- forwards that run twice ------------------------------------------------------------------------------------------


def step(layer, x, run):
    layer.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(3)
    y = run(layer, x)
    (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


def plainly(layer, x):
    return layer(x)


def by_checkpoint(layer, x, reentrant):
    return checkpoint(layer, x, use_reentrant=reentrant)


@pytest.mark.parametrize(
    ("name", "reentrant", "packs"),
    [(name, reentrant, False) for name in NAMES for reentrant in (False, True)]
    + [(name, reentrant, True) for name in ("bnn", "dorefa2", "lqnet2", "lsq2") for reentrant in (False, True)],
)
def test_gradient_checkpointing_changes_nothing(name, reentrant, packs):
    """The first forward, in which quantizers begin, and the next."""
    weight, given = configs.factories()[name]
    quantized = {"weight_quantizer": weight, "input_quantizer": given}
    for layer, shape in (
        (QuantConv2d(4, 6, 3, padding=1, **quantized), (3, 4, 5, 5)),
        (QuantLinear(8, 5, **quantized), (7, 8)),
    ):
        if packs and not layer.input_quantizer.packable:
            continue
        twin = copy.deepcopy(layer)
        packing = pack_activations(twin) if packs else None
        for _ in range(2):
            x = torch.randn(shape)
            expected = step(layer, x, plainly)
            found = step(twin, x, partial(by_checkpoint, reentrant=reentrant))
            for a, b in zip(found, expected, strict=True):
                assert torch.equal(a, b) if a is not None else b is None
            assert all(torch.equal(v, layer.state_dict()[k]) for k, v in twin.state_dict().items())
        if packing is not None:
            packing.remove()


def test_a_basis_moves_once_a_step_also_in_other_layers():
    layer = QuantConvTranspose2d(2, 4, 3, weight_quantizer=partial(LqWeight, bits=2), input_quantizer=SteSign)
    twin = copy.deepcopy(layer)
    x = torch.randn(2, 2, 5, 5)
    step(layer, x, plainly)
    step(twin, x, partial(by_checkpoint, reentrant=False))
    assert torch.equal(layer.weight_quantizer.basis, twin.weight_quantizer.basis)


# -- mixed precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantizer", [partial(LqWeight, bits=3), RotatedWeight, partial(LsqWeight, bits=2)])
def test_what_begins_under_autocast_begins_alike(quantizer):
    layer = QuantLinear(300, 4, weight_quantizer=quantizer, input_quantizer=SteSign)
    twin = copy.deepcopy(layer)
    x = torch.randn(5, 300)
    layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        twin(x)
    assert_same_state(twin, state(layer))


def test_scales_that_nothing_learns_have_no_flag():
    layer = QuantLinear(3, 4, weight_quantizer=XnorWeight, input_quantizer=SteSign)
    assert not layer.weight_quantizer.needs_data
    assert not [name for name, _ in layer.named_buffers()]
