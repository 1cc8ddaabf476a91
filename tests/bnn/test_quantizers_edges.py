"""Every quantizer at the edges of what it may be given: no NaN where there was none, none hidden, any layout."""

import copy
import itertools
import math

import pytest
import quantizer_configs as configs
import torch

ALL = configs.quantizers()
each = pytest.mark.parametrize(("role", "factory"), [case[1:] for case in ALL], ids=[case[0] for case in ALL])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def edges():
    """{name: tensor}, each a weight or an input that training can meet."""
    normal = torch.randn(4, 3, 3, 3)
    return {
        "one number": torch.tensor([[-0.3]]),
        "filters of one number": torch.randn(3, 1),
        "zeros": torch.zeros(4, 3, 3, 3),
        "equal": torch.full((4, 3, 3, 3), -0.37),
        "one filter of zeros": torch.cat([torch.zeros(1, 3, 3, 3), normal[:3]]),
        "huge": 1e30 * normal,
        "large": 1000 * normal,
        "small": 1e-10 * normal,
        "tiny": 1e-30 * normal,
        "of all sizes": torch.tensor([[1e30, -1e-30, 0.0, -0.0, 1.0, -1.0, 2.0, 3.0]]),
        "one sample of many axes": torch.randn(1, 2, 2, 2, 2),
    }


def stepped(quantizer, x, g):
    """Value and gradients of a copy of the quantizer, with the same random numbers every time."""
    quantizer = copy.deepcopy(quantizer)
    torch.manual_seed(1)
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = quantizer(x)
    y.backward(g)
    return y.detach(), x.grad, [p.grad for p in quantizer.parameters()], quantizer


# Where another type of numbers rounds, or ends, elsewhere.
ENDS = ("huge", "tiny", "of all sizes", "one filter of zeros")


@each
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("types", ["some", pytest.param("all", marks=pytest.mark.slow)])
def test_finite_numbers_give_finite_numbers(role, factory, training, types):
    for (name, x), dtype in itertools.product(edges().items(), (torch.float32, torch.bfloat16, torch.float64)):
        if types == "some" and dtype != torch.float32 and name not in ENDS:
            continue
        x = x.to(dtype)
        g = torch.linspace(-1, 1, x.numel(), dtype=dtype).reshape(x.shape)
        y, gradient, learned, after = stepped(configs.make(role, factory, x).train(training), x, g)
        learned = [p for p in learned if p is not None or training]  # what a method uses in training alone
        found = [y, gradient, *learned, *after.parameters(), *after.buffers()]
        assert all(t.isfinite().all() for t in found), name
        assert y.shape == gradient.shape == x.shape


@each
def test_equal_weights_get_no_exploding_gradient(role, factory):
    """Of a standardization by a deviation of 0 a limit would be left: gradients of 1e19."""
    for name in ("zeros", "equal", "one filter of zeros"):
        x = edges()[name]
        _, gradient, _, _ = stepped(configs.make(role, factory, x), x, torch.randn(x.shape))
        assert gradient.abs().max() < 1e4, name


@each
@pytest.mark.parametrize("training", [True, False])
def test_a_nan_shows(role, factory, training):
    x = torch.tensor([[1.0, math.nan, -1.0, 0.0, 0.5, -2.0]])
    quantizer = configs.make(role, factory, x).train(training)
    assert quantizer(x).isnan().any()


@each
@pytest.mark.parametrize("training", [True, False])
def test_infinities_are_the_largest_numbers(role, factory, training):
    """Where each value depends on its own input; a mean over infinities is none."""
    x = torch.tensor([[math.inf, -math.inf, 1.0, -1.0, 0.0, 0.5]])
    finite = torch.tensor([[1e30, -1e30, 1.0, -1.0, 0.0, 0.5]])
    quantizer = configs.make(role, factory, x)
    quantizer(torch.randn(x.shape))  # what begins with the first data has begun
    others = ("TernaryActivation", "RecuSign", "LqActivation", "NoiseAdaptedSign")
    averages = training and type(quantizer).__name__ in others
    if not quantizer.elementwise or averages or not quantizer.train(training).packable:
        return
    g = torch.randn(x.shape)
    for ours, theirs in zip(stepped(quantizer, x, g)[:2],
                            stepped(quantizer, finite, g)[:2], strict=True):  # fmt: skip
        assert torch.equal(ours.isfinite(), theirs.isfinite())
        assert torch.equal(ours[theirs.isfinite()], theirs[theirs.isfinite()])


@each
def test_an_empty_batch_changes_nothing(role, factory):
    if role == "weight":
        return
    for shape in ((0, 6), (0, 6, 5, 5)):
        quantizer = configs.make(role, factory, torch.zeros(1, *shape[1:]))
        before = copy.deepcopy(quantizer.state_dict())
        y, gradient, learned, after = stepped(quantizer, torch.zeros(shape), torch.zeros(shape))
        assert y.shape == gradient.shape == torch.Size(shape)
        assert all(g.isfinite().all() for g in learned)
        for key, value in after.state_dict().items():
            torch.testing.assert_close(value, before[key])
    x = torch.randn(4, 6)
    torch.manual_seed(1)
    expected = copy.deepcopy(quantizer)(x)
    torch.manual_seed(1)
    assert torch.equal(after(x), expected)  # and it begins with the first data that there is


@each
@pytest.mark.parametrize("training", [True, False])
def test_memory_layouts_and_modes(role, factory, training):
    base, g = 1.5 * torch.randn(4, 6, 5, 5), torch.randn(4, 6, 5, 5)
    quantizer = configs.make(role, factory, base).train(training)
    y, gradient, learned, _ = stepped(quantizer, base, g)
    drawn = training and not configs.few_valued_in_training(quantizer)
    layouts = [
        torch.stack([base, base], -1)[..., 0],  # not dense
        *([] if drawn else [base.to(memory_format=torch.channels_last)]),  # draws follow the order in memory
    ]
    for x in layouts:
        again = stepped(quantizer, x, g)
        torch.testing.assert_close(again[0], y)
        torch.testing.assert_close(again[1], gradient)
        torch.testing.assert_close(again[2], learned, rtol=1e-4, atol=1e-5)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.manual_seed(1)
            value = copy.deepcopy(quantizer)(base)
        assert torch.equal(value, y)
        assert not value.requires_grad


@each
def test_only_what_asks_for_a_gradient_gets_one(role, factory):
    x, g = torch.randn(4, 6, 5, 5), torch.randn(4, 6, 5, 5)
    quantizer = configs.make(role, factory, x)
    _, gradient, learned, _ = stepped(quantizer, x, g)
    frozen = copy.deepcopy(quantizer).requires_grad_(False)
    assert torch.equal(stepped(frozen, x, g)[1], gradient)
    assert all(p is None for p in stepped(frozen, x, g)[2])
    if learned:
        torch.manual_seed(1)
        quantizer(x).backward(g)
        for parameter, expected in zip(quantizer.parameters(), learned, strict=True):
            torch.testing.assert_close(parameter.grad, expected)


@each
def test_whatever_an_optimizer_makes_of_what_is_learned(role, factory):
    x = torch.cat([2 * torch.randn(4, 3, 3, 2), torch.zeros(4, 3, 3, 1), torch.full((4, 3, 3, 1), -0.5)], 3)
    start = configs.make(role, factory, x)
    start(x)  # what begins with the first data has begun
    for (name, _), value in itertools.product(start.named_parameters(), (0.0, -0.5, 1e-30)):
        quantizer = copy.deepcopy(start).eval()
        with torch.no_grad():
            quantizer.get_parameter(name).fill_(value)
        y, gradient, learned, _ = stepped(quantizer, x, torch.randn(x.shape))
        assert all(t.isfinite().all() for t in (y, gradient, *learned) if t is not None), name
        assert torch.equal(y, quantizer.planes(x).value()), name
