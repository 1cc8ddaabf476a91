"""A quantizer of one's own that breaks the contract ends in a message that names it and says what is right."""

import numpy as np
import pytest
import torch

from bnn.layers import QuantConv2d, QuantLinear
from bnn.planes import (
    Planes,
    PlanesError,
    Term,
    code_bits,
    powers_of_two,
    sign_bits,
    signed_code_bits,
    ternary_bits,
    twos_complement,
)
from bnn.quantizers import Quantizer, SteSign, XnorWeight

ONE = torch.tensor(1.0)


def own(planes=None, forward=None):
    """A class of quantizers named Own."""
    members = {"forward": forward or (lambda self, x: SteSign()(x))}
    if planes is not None:
        members["planes"] = lambda self, x: planes(x)
    return type("Own", (Quantizer,), members)


WRONG = {
    "no planes": (lambda x: Planes((Term(ternary_bits(x)[:0], False, (), ONE),)), "at least one plane"),
    "float multipliers": (lambda x: Planes((Term(ternary_bits(x), False, (0.5, -0.5), ONE),)), "multipliers must be"),
    "a tuple": (lambda x: (sign_bits(x), ONE), r"must return bnn\.planes\.Planes"),
    "a list": (lambda x: [Term(sign_bits(x), True, (1,), ONE)], r"must return bnn\.planes\.Planes"),
    "nothing": (lambda x: None, "must return .* got NoneType"),
    "terms of tuples": (lambda x: Planes(((sign_bits(x), True, (1,), ONE),)), r"terms must be .* got tuple"),
    "no terms": (lambda x: Planes(()), "at least one, got none"),
    "floats as bits": (lambda x: Planes((Term(x[None], True, (1,), ONE),)), r"bits must be a bool tensor .*float32"),
    "bits without planes": (lambda x: Planes((Term(x < 0, True, (1,), ONE),)), "bits must"),
    "a number as scale": (lambda x: Planes((Term(sign_bits(x), True, (1,), 1.0),)), "scale must be a float tensor"),
    "an integer scale": (lambda x: Planes((Term(sign_bits(x), True, (1,), torch.tensor(2)),)), "scale must be a float"),
    "a scale of input channels": (
        lambda x: Planes((Term(sign_bits(x), True, (1,), torch.ones(7)),)),
        r"scale must have shape \(\), \(channels,\)",
    ),
    "a number as offset": (lambda x: Planes((Term(sign_bits(x), True, (1,), ONE),), 0.5), "offset must be a float"),
    "other bits": (lambda x: Planes((Term(sign_bits(x.flatten()), True, (1,), ONE),)), r"bits must have shape \(P"),
    "signed as a number": (lambda x: Planes((Term(sign_bits(x), 2, (1,), ONE),)), "signed must be"),
}


@pytest.mark.parametrize("role", ["weight_quantizer", "input_quantizer"])
@pytest.mark.parametrize(("planes", "words"), WRONG.values(), ids=WRONG)
def test_wrong_planes(planes, words, role):
    quantizers = {"weight_quantizer": XnorWeight, "input_quantizer": SteSign} | {role: own(planes)}
    layer = QuantConv2d(4, 6, 3, **quantizers)
    x = torch.randn(2, 4, 5, 5)
    layer(x)
    with pytest.raises(PlanesError, match=rf"^Own\.planes:? .*{words}|^Own\.planes {words}"):
        layer.eval()(x)


def test_planes_that_are_missing():
    layer = QuantLinear(4, 6, weight_quantizer=own(), input_quantizer=SteSign).eval()
    with pytest.raises(TypeError, match=r"Own has no bit planes: define planes\(x\), or set packable = False"):
        layer(torch.randn(2, 4))


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda self, x: x.flatten(), "must keep the shape"),
        (lambda self, x: (x, 1.0), "must return a tensor, got tuple"),
    ],
)
def test_a_wrong_forward(forward, words):
    layer = QuantLinear(4, 6, weight_quantizer=own(forward=forward), input_quantizer=SteSign)
    with pytest.raises((TypeError, ValueError), match=f"Own.forward {words}"):
        layer(torch.randn(2, 4))


def test_what_can_be_read_is_taken():
    """Lists, integers of NumPy and scales that learn are as good."""
    step = torch.nn.Parameter(torch.tensor(0.5))
    planes = Planes([Term(ternary_bits(torch.randn(3, 4)), False, [np.int64(1), -1], step)], step)
    assert isinstance(planes.terms, tuple)
    assert planes.terms[0].multipliers == (1, -1)
    assert not planes.value().requires_grad
    for scale in (torch.ones(3), torch.ones(3, 1), torch.ones(1, 4), torch.ones(())):
        assert Term(ternary_bits(torch.randn(3, 4)), False, (1, -1), scale).scale.shape == scale.shape


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("multipliers", [(1,), (-1,), (1, -1), (-1, 1), (1, 2, -4)])
@pytest.mark.parametrize("signed", [False, True])
def test_levels_are_the_sum_over_planes(signed, multipliers, dtype):
    bits = torch.rand(len(multipliers), 5, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    planes = 1 - 2 * bits.int() if signed else bits.int()
    levels = Term(bits, signed, multipliers, ONE).levels(dtype)
    assert levels.dtype == dtype
    assert torch.equal(levels.int(), (planes * torch.tensor(multipliers)[:, None, None]).sum(0))
    assert not torch.signbit(levels[levels == 0]).any()  # no -0.0


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
@pytest.mark.parametrize("bits", [1, 4, 7, 8, 9, 20])
def test_levels_of_codes_are_the_codes(bits, dtype):
    """Also of more bits than a byte and than 16 bits hold."""
    codes = torch.arange(1 << bits) if bits < 10 else torch.tensor([0, 1, 70_000, (1 << bits) - 1])
    term = Term(code_bits(codes.to(dtype), bits), False, powers_of_two(bits), ONE)
    assert term.bits.dtype == torch.bool and torch.equal(term.levels(torch.int64), codes)
    signed = codes - (1 << (bits - 1))
    term = Term(signed_code_bits(signed.to(dtype), bits), False, twos_complement(bits), ONE)
    assert torch.equal(term.levels(torch.float32), signed.float())
