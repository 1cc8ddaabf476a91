"""Rules for functions, whatever name they are called by, and conversion beside other threads."""

import functools
import importlib.metadata
import sys
import threading
from types import ModuleType

import numpy as np
import pytest
import torch
from conversion import check, images
from torch import nn
from torch.autograd import Function

import bnn
from bnn.converter import ConversionError, register_rule, registry
from bnn.quantizers import SteSign


class Binarize(Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class SplitBinarize(Function):
    """The newer form, with a default argument."""

    @staticmethod
    def forward(x, bound=1.0):
        return x.sign()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Marking(Function):
    """Marks what it makes, and asks its context."""

    @staticmethod
    def forward(ctx, x):
        inside = x.abs() <= 1
        ctx.mark_non_differentiable(inside)
        ctx.save_for_backward(x if ctx.needs_input_grad[0] else None)
        return x.sign(), inside

    @staticmethod
    def backward(ctx, gradient, _):
        return gradient


# As most code has them: names that are given before there is a rule.
binarize_by_alias, split_by_alias = Binarize.apply, SplitBinarize.apply


def binarize(x, scale=1.0):
    if x.max() > 1e6:  # cannot be traced
        raise ValueError("exploded")
    return scale * x.sign()


class Functions:
    @staticmethod
    def binarize(x):
        return x.sign()


other_name = binarize
with_scale = functools.partial(binarize, scale=2.0)


class Calling(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.a, self.b = function, nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x):
        return self.b(self.function(self.a(x)))


@pytest.fixture
def rules():
    """Rules for all of these functions, and what they were asked for."""
    asked = []

    def add(target):
        @register_rule(target)
        def rule(build, x, scale=1.0):
            asked.append(target)
            if scale == 1:
                return build.quantize(x, SteSign())
            return build.affine(build.quantize(x, SteSign(), ""), scale=scale)

    targets = (Binarize, SplitBinarize, binarize, Functions.binarize)
    for target in targets:
        add(target)
    yield asked
    for target in targets:
        del registry._FUNCTIONS[target]


@pytest.mark.parametrize(
    ("function", "target"),
    [
        (lambda x: Binarize.apply(x), Binarize),
        (lambda x: binarize_by_alias(x), Binarize),
        (binarize_by_alias, Binarize),
        (functools.partial(Binarize.apply), Binarize),
        (lambda x: split_by_alias(x), SplitBinarize),
        (SplitBinarize.apply, SplitBinarize),
        (lambda x: binarize(x), binarize),
        (lambda x: other_name(x), binarize),
        (binarize, binarize),
        (lambda x: with_scale(x), binarize),
        (with_scale, binarize),
        (lambda x: binarize(x, scale=0.5), binarize),
        (lambda x: Functions.binarize(x), Functions.binarize),
        (Functions.binarize, Functions.binarize),
    ],
)
def test_a_rule_counts_by_whatever_name_its_function_is_called(function, target, rules):
    torch.manual_seed(0)
    model, x = Calling(function).eval(), images(6, 12)
    packed = bnn.convert(model, x)
    np.testing.assert_allclose(packed(x.numpy()), model(x).detach().numpy(), rtol=0, atol=1e-4)
    assert rules == [target]
    assert [step.attrs["multipliers"] for step in packed.steps if step.attrs.get("output") == "bits"] in ([[1]], [])


def test_a_function_of_another_module(rules):
    module = ModuleType("a_module_of_functions")
    module.sign, module.call = binarize, lambda x: module.sign(x)
    sys.modules[module.__name__] = module
    try:
        check(Calling(module.call).eval(), images(6, 12))
    finally:
        del sys.modules[module.__name__]
    assert rules == [binarize]
    assert module.sign is binarize


def test_a_rule_that_cannot_be_taken_is_an_error(rules):
    def by_closure(function):
        return lambda x: function(x)

    def by_default(x, function=Functions.binarize):
        return function(x)

    for function in (by_closure(Functions.binarize), by_default):
        with pytest.raises(ConversionError, match=r"rule of 'binarize' cannot be taken.*closure"):
            bnn.convert(Calling(function).eval(), images(1, 12))


def test_functions_keep_what_they_do(rules):
    x = images(3, 12).requires_grad_()
    for function in (Binarize.apply, binarize_by_alias, SplitBinarize.apply, lambda x: split_by_alias(x, 2.0)):
        y = function(x)
        assert torch.equal(y, x.sign())
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient, torch.ones_like(x))


def test_functions_without_a_rule_are_followed_in_any_form():
    torch.manual_seed(0)
    marked = Marking.apply
    forward = vars(Marking)["forward"]
    for function in (lambda x: Marking.apply(x)[0], lambda x: marked(x)[0], lambda x: split_by_alias(x, 2.0)):
        check(Calling(function).eval(), images(6, 12))
    assert vars(Marking)["forward"] is forward


@pytest.mark.parametrize("rounds", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_several_threads_convert_while_others_train(rounds, rules):
    """Nobody meets what tracing exchanges, and PyTorch is as it was at every moment."""
    torch.manual_seed(0)
    apply = vars(Function)["apply"]
    shared, x = Calling(binarize).eval(), images(6, 12)
    expected = bnn.convert(shared, x)(x.numpy())
    errors, done = [], threading.Event()

    def train():
        model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        while not done.is_set():
            Binarize.apply(model(x)).sum().backward()
            optimizer.step()
            assert vars(Function)["apply"] is apply

    def convert():
        for _ in range(rounds):
            np.testing.assert_array_equal(bnn.convert(shared, x)(x.numpy()), expected)
            bnn.convert(nn.Sequential(nn.Linear(12, 5), nn.ReLU()).eval(), x)

    def guarded(work):
        try:
            work()
        except BaseException as error:
            errors.append(error)

    trainers = [threading.Thread(target=guarded, args=(train,)) for _ in range(2)]
    converters = [threading.Thread(target=guarded, args=(convert,)) for _ in range(3)]
    for thread in trainers + converters:
        thread.start()
    for thread in converters:
        thread.join()
    done.set()
    for thread in trainers:
        thread.join()
    assert not errors


def test_other_threads_meet_no_trace():
    """While a network is traced, another thread calls modules of its own and asks whether anybody traces."""
    found = []

    class Meeting(nn.Module):
        def forward(self, x):
            def other():
                from torch.fx._symbolic_trace import is_fx_symbolic_tracing

                layer = nn.Linear(3, 2)
                found.append((layer(torch.ones(1, 3)).shape, bool(is_fx_symbolic_tracing())))

            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            return x + 1

    bnn.convert(nn.Sequential(nn.Linear(12, 5), Meeting()).eval(), images(1, 12))
    assert found
    assert all(meeting == ((1, 2), False) for meeting in found)


@pytest.mark.parametrize("other", ["zero", "numbers", "value"])
def test_a_choice_by_a_constant_mask(other):
    """Zeros, constants or another value in some channels and places."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.mask = torch.tensor([True, False, True, True]).reshape(4, 1, 1)
            self.places = torch.rand(4, 6, 6) < 0.5

        def forward(self, x):
            y = self.conv(x)
            given = {"zero": torch.tensor(0.0), "numbers": torch.arange(4.0).reshape(4, 1, 1), "value": y * y}[other]
            return torch.where(self.places, given, torch.where(self.mask, y, given))

    check(Masked().eval(), images(5, 3, 8, 8))


def test_conversion_needs_no_metadata(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(sys.modules["bnn.converter.convert"], "version", missing)
    packed = bnn.convert(nn.Sequential(nn.Linear(12, 5)).eval(), images(1, 12))
    assert packed.versions["bitplanes"] == bnn.__version__
    assert packed.versions["torch"] == torch.__version__
    assert packed.versions["numpy"] == np.__version__
