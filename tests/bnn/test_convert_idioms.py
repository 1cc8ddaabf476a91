"""Networks that binarize in code of their own, as most published BNN code does: no quantizer of ours, real bits."""

import pytest
import torch
import torch.nn.functional as F
from conversion import check, images, upset
from torch import nn
from torch.autograd import Function

import bnn
from bnn.converter import ConversionError
from bnn.converter.recognize.few_values import few_values
from bnn.quantizers import DoReFaActivation, SteSign


class Sign(Function):
    """A straight-through estimator, whose forward is torch.sign."""

    @staticmethod
    def forward(ctx, x, bound):
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= ctx.bound), None


class SplitSign(Function):
    """The same in the newer form, whose forward takes no context."""

    @staticmethod
    def forward(x):
        return x.sign()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class AppliedSplit(nn.Module):
    def forward(self, x):
        return SplitSign.apply(x)


class Applied(nn.Module):
    def forward(self, x):
        return Sign.apply(x, 1.0)


class Detached(nn.Module):
    """The estimator by `detach`, with a piecewise polynomial whose masks cannot be converted and need not be."""

    def forward(self, x):
        below = (x < 0).type(torch.float32)
        smooth = (x * x + 2 * x) * below + (2 * x - x * x) * (1 - below)
        smooth = smooth * (x.abs() < 1).float()
        return torch.sign(x).detach() - smooth.detach() + smooth


class DetachedLast(nn.Module):
    def forward(self, x):
        inside = F.hardtanh(x)
        return torch.sign(x + 1e-6).detach() + inside - inside.detach()


class Conv(nn.Module):
    """Standardized weights, their signs, and a scale that Python code computes of them."""

    def __init__(self, scale, stride=1):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3))
        self.scale, self.stride = scale, stride

    def forward(self, x):
        w = self.weight
        w = w - w.view(w.size(0), -1).mean(-1).view(w.size(0), 1, 1, 1)
        size = w.abs().mean((1, 2, 3), keepdim=True)
        if self.scale == "power of two":
            size = torch.pow(torch.tensor([2.0] * w.size(0)), size.log2().round().flatten()).view(-1, 1, 1, 1)
        if self.scale == "detached":
            clipped = w.clamp(-1, 1)
            signs = (size * torch.sign(w)).detach() - clipped.detach() + clipped
        else:
            signs = Sign.apply(w, 1.0) * size
        return F.conv2d(x, signs, None, self.stride, 1)


ACTIVATIONS = [Applied, AppliedSplit, Detached, DetachedLast]
SCALES = ["mean", "power of two", "detached"]


def network(activation, scale):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), activation(), Conv(scale), nn.BatchNorm2d(8), activation(),
        Conv(scale, 2), nn.BatchNorm2d(8), activation(), nn.Flatten(), nn.Linear(8 * 25, 5),
    )  # fmt: skip
    return upset(net)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("scale", SCALES)
def test_they_become_bits(activation, scale, tmp_path):
    packed, _ = check(network(activation, scale), images(6, 3, 10, 10), tmp_path)
    layers = [step for step in packed.steps if step.op == "binary_conv"]
    assert [len(step.tensors["bits.0"]) for step in layers] == [1, 1]
    exact = scale == "power of two"
    assert all((step.attrs["output"] == "bits") == exact for step in layers)


def test_a_rule_for_an_autograd_function_or_for_the_module_around_it():
    """torch.sign has three values; who knows that none is 0 says so, and pays for one plane."""
    net, x = network(Applied, "power of two"), images(6, 3, 10, 10)
    net[4].reset_parameters()  # 0 where the convolution before it gives 0
    assert bnn.convert(net, x).steps[1].attrs["multipliers"] == [1, -1]

    @bnn.converter.register_rule(Sign)
    def of_function(build, x, bound):
        return build.quantize(x, SteSign())

    @bnn.converter.register_rule(Detached)
    def of_module(build, module, x):
        return build.lower(SteSign(), x)

    from bnn.converter import registry

    try:
        for activation in (Applied, Detached):
            packed, report = check(network(activation, "power of two"), x)
            assert {step.attrs["multipliers"][0] for step in packed.steps if step.attrs.get("output") == "bits"} == {1}
            assert all(
                len(step.attrs["multipliers"]) == 1 for step in packed.steps if step.attrs.get("output") == "bits"
            )
            assert sum(row.levels for row in report.steps) == 3
    finally:
        del registry._FUNCTIONS[Sign], registry._MODULES[Detached]


def test_a_rule_may_use_any_quantizer():
    class Steps(nn.Module):
        def forward(self, x):
            return torch.round(x.clamp(0, 1) * 3) / 3 if x.max() < 1e6 else x

    net = nn.Sequential(nn.Conv2d(3, 8, 3), Steps(), Conv("mean")).eval()
    with pytest.raises(ConversionError, match=r"^1 cannot be recorded"):
        bnn.convert(net, images(1, 3, 8, 8))

    @bnn.converter.register_rule(Steps)
    def steps(build, module, x):
        return build.quantize(x, DoReFaActivation(2))

    from bnn.converter import registry

    try:
        packed, report = check(net, images(6, 3, 8, 8))
        assert packed.steps[-1].op == "binary_conv"
        assert any(row.source.startswith("1 in steps of 0.333") and row.elements for row in report.steps)
    finally:
        del registry._MODULES[Steps]


class Written(nn.Module):
    def __init__(self, sign):
        super().__init__()
        self.sign = sign

    def forward(self, x):
        return self.sign(x)


COMPARED = {
    "where": lambda x: torch.where(x >= 0, 1.0, -1.0),
    "where of tensors": lambda x: torch.where(x < 0, -torch.ones_like(x), torch.ones_like(x)),
    "twice less one": lambda x: (x > 0).float() * 2 - 1,
    "one less twice": lambda x: 1 - 2 * (x < 0).to(x.dtype),
    "halves": lambda x: 0.5 * torch.where(x >= 0.25, 3.0, -3.0),
    "bits": lambda x: (x.ge(0.1)).type(torch.float32),
    "unlike": lambda x: torch.where(torch.gt(x, 0.1), 0.75, -0.25),
}


@pytest.mark.parametrize("name", COMPARED)
def test_comparisons_are_bits(name):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), Written(COMPARED[name]), Conv("power of two"),
        nn.BatchNorm2d(8), nn.MaxPool2d(2), Written(COMPARED[name]), Conv("mean"),
    )  # fmt: skip
    x = images(6, 3, 10, 10)
    x[0] = 0
    packed, report = check(upset(net), x)
    layers = [step for step in packed.steps if step.op == "binary_conv"]
    assert len(layers) == 2
    assert all(step.attrs["multipliers"] == [1] for step in packed.steps if step.op == "pack")
    assert ("input_offset" in layers[1].attrs) == (name == "unlike")
    if name != "unlike":
        assert sum(row.levels for row in report.steps) >= 1


def test_signs_that_fall_are_floats():
    net = nn.Sequential(Written(lambda x: torch.where(x > 0, -1.0, 1.0)), nn.MaxPool2d(2), Conv("mean")).eval()
    check(net, images(4, 8, 8, 8))
    for sign in (lambda x: torch.where(x > 0, x, -x), lambda x: (x > x.flip(1)).float()):
        check(nn.Sequential(Written(sign), Conv("mean")).eval(), images(4, 8, 8, 8))


def test_what_is_needed_and_cannot_be_converted_is_named_where_it_arises():
    class Needed(nn.Module):
        def forward(self, x):
            return F.relu(torch.sin(x) + 1).flatten(1)

    with pytest.raises(ConversionError, match=r"^0\.sin: function 'sin'"):
        bnn.convert(nn.Sequential(Needed(), nn.Linear(48, 2)).eval(), images(1, 3, 4, 4))


def test_the_model_is_left_as_it_was():
    net, x = network(Applied, "mean"), images(4, 3, 10, 10)
    before = [{**vars(module)} for module in net.modules()]
    packed = bnn.convert(net, x)
    bnn.check_parity(net, packed, x)
    assert [{**vars(module)} for module in net.modules()] == before
    assert "apply" not in vars(torch.autograd.function._SingleLevelFunction)


def test_few_values():
    signs = torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]])
    scale = torch.tensor([[0.3], [0.7]])
    found = few_values(signs * scale)
    assert found.same
    assert torch.equal(found.term.levels() * found.term.scale[:, None], signs * scale)
    nearly = signs * scale * (1 + torch.tensor([0, 1e-6, -1e-6]))
    assert not few_values(nearly).same
    assert torch.allclose(few_values(nearly).term.scale, scale[:, 0], rtol=1e-5, atol=0)
    ternary = signs.clone()
    ternary[0, 0] = 0
    assert few_values(ternary).term.levels().tolist() == [[0, -1, 1], [-1, -1, 1]]
    assert few_values(torch.randn(4, 5)) is None
    assert few_values(torch.zeros(4, 5)) is None
    assert few_values(torch.tensor([[1.0, -1.0], [0.5, 1.0]])) is None


def test_weights_that_happen_to_be_signs_are_stored_as_bits():
    layer = nn.Linear(64, 10)
    layer.weight.data = torch.where(layer.weight < 0, -0.25, 0.25)
    packed, _ = check(nn.Sequential(layer).eval(), images(5, 64))
    assert packed.nbytes == 64 * 10 / 8 + 2 * 4 * 10
