"""Quantizers against those of other libraries, where they are installed: pip install bitplanes[oracles].

Where another library differs by its own choice, the test says so and compares the rest.
"""

import warnings

import pytest
import torch

from bnn.quantizers import (
    AbsmaxActivation,
    AbsmeanTernary,
    ApproxSign,
    DoReFaActivation,
    DoReFaWeight,
    LsqWeight,
    Pact,
    ProgressiveSign,
    SteSign,
    SwishSign,
    TernaryActivation,
)

EDGE = [-2.5, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.5]


def module(name):
    """A module of another library, whose warnings at import are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


def inputs():
    torch.manual_seed(0)
    return torch.cat([torch.tensor(EDGE), 1.5 * torch.randn(200)])


def value_and_gradient(quantizer, x, g=None):
    x = x.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = quantizer(x)
    y = y[0] if isinstance(y, tuple) else y
    y.backward(torch.linspace(-1, 1, x.numel()).reshape(x.shape) if g is None else g)
    return y.detach(), x.grad


def assert_same(ours, theirs, x, **tolerance):
    for a, b in zip(value_and_gradient(ours, x), value_and_gradient(theirs, x), strict=True):
        torch.testing.assert_close(a, b, **(tolerance or {"rtol": 0, "atol": 0}))


# -- Brevitas ---------------------------------------------------------------------------------------------------------


def test_brevitas_signs():
    quant, scaling = module("brevitas.core.quant"), module("brevitas.core.scaling")
    assert_same(SteSign(clip=None), quant.BinaryQuant(scaling.ConstScaling(1.0)), inputs())
    assert_same(SteSign(), quant.ClampedBinaryQuant(scaling.ConstScaling(1.0)), inputs())


def test_brevitas_ternary_values():
    """Values only: its gradient passes where the value is not 0, ours where |x| <= 1."""
    quant, scaling = module("brevitas.core.quant"), module("brevitas.core.scaling")
    theirs = quant.TernaryQuant(scaling.ConstScaling(1.0), 0.5)
    assert torch.equal(TernaryActivation(threshold=0.5)(inputs()), theirs(inputs())[0])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_brevitas_integers_of_a_given_step(bits):
    """Brevitas rounds and clips like LSQ, but it clips after rounding: within a half of a bound its gradient is 1."""
    quant = module("brevitas.core.quant")
    ste = module("brevitas.core.function_wrapper")
    width = module("brevitas.core.bit_width").BitWidthConst(bits)
    integers = quant.IntQuant(narrow_range=False, signed=True, input_view_impl=torch.nn.Identity(),
                              float_to_int_impl=ste.RoundSte(), tensor_clamp_impl=ste.TensorClamp())  # fmt: skip
    step = torch.tensor(0.3)
    ours = LsqWeight(bits).eval()
    with torch.no_grad():
        ours.step.copy_(step)

    def theirs(x):
        return integers(step, torch.tensor(0.0), width(), x)

    x = inputs()
    low, high = ours.bounds
    x = x[((x / step) - low).abs().gt(1) & ((x / step) - high).abs().gt(1)]
    assert_same(ours, theirs, x, rtol=1e-6, atol=1e-7)


# -- torchao ----------------------------------------------------------------------------------------------------------


def test_torchao_bitnet():
    bitnet = module("torchao.prototype.quantized_training.bitnet")
    w = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    scale = bitnet.get_bitnet_scale(w)
    theirs = bitnet.quantize_bitnet_weight(w, scale) * scale
    torch.testing.assert_close(AbsmeanTernary()(w), theirs, rtol=1e-6, atol=0)
    levels, scale = bitnet.quantize_int8_rowwise(w, eps=1e-5)
    theirs = levels * scale[:, None]
    ours = AbsmaxActivation()(w)
    # It multiplies by the inverse of the step, so a number next to a half may round to the other side.
    different = (ours - theirs).abs() > 1e-6
    assert different.float().mean() < 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=float(scale.max()) * 1.01)


# -- bitorch ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"), [(ApproxSign, "ApproxSign"), (SwishSign, "SwishSign"), (ProgressiveSign, "ProgressiveSign")]
)
def test_bitorch_signs(ours, theirs):
    quantizations = module("bitorch.quantizations")
    assert_same(ours(), getattr(quantizations, theirs)(), inputs(), rtol=1e-5, atol=1e-6)


def test_bitorch_progress():
    theirs = module("bitorch.quantizations").ProgressiveSign(use_global_scaling=False, initial_scale=0.3)
    assert_same(ProgressiveSign(progress=0.3), theirs, inputs(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bitorch_dorefa_values(bits):
    """Values only: bitorch passes every gradient unchanged where the paper clips or goes through tanh."""
    quantizations = module("bitorch.quantizations")
    x = inputs()
    theirs = value_and_gradient(quantizations.InputDoReFa(bits=bits), x)[0]
    torch.testing.assert_close(DoReFaActivation(bits)(x), theirs, rtol=1e-6, atol=1e-7)
    w = x[x != 0][None]
    theirs = value_and_gradient(quantizations.WeightDoReFa(bits=bits), w)[0]
    torch.testing.assert_close(DoReFaWeight(bits)(w), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4])
def test_bitorch_pact(bits):
    """But for the bounds 0 and alpha themselves, where bitorch passes the gradient and the paper does not."""
    theirs = module("bitorch.layers.pact").Pact(bits=bits)
    ours = Pact(bits, alpha=1.3)
    with torch.no_grad():
        theirs.alpha.fill_(1.3)
    x = inputs()
    assert_same(ours, theirs, x[x != 0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.alpha.grad, theirs.alpha.grad.reshape(()))
