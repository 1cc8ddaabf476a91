"""Quantizers against the formulas of their papers, in NumPy float64 and by hand."""

from functools import partial

import numpy as np
import pytest
import torch

from bnn.quantizers import (
    BWN,
    TTQ,
    TWN,
    AbcWeight,
    AbsmaxActivation,
    AdaBinActivation,
    ApproxSign,
    DoReFaActivation,
    DoReFaWeight,
    FullPrecision,
    LqActivation,
    LsqActivation,
    LsqWeight,
    Pact,
    RSign,
    SteSign,
    TernaryActivation,
    TernaryWeight,
    TrainedTernary,
    XnorWeight,
)

EDGE = [-2.0, -1.0 - 1e-6, -1.0, -0.5, -1e-30, -0.0, 0.0, 1e-30, 0.5, 1.0, 1.0 + 1e-6, 2.0]

# Forms and widths beyond those of the configs, which test_quantizers_contract.py walks.
PACKED = [
    SteSign,
    partial(SteSign, clip=None),
    partial(SteSign, boundary="open"),
    ApproxSign,
    partial(RSign, channels=1),
    *[partial(XnorWeight, gradient=form) for form in ("exact", "printed", "released")],
    TernaryWeight,
    partial(TernaryWeight, per_channel=True),
    partial(TernaryWeight, factor=0.0),
    partial(XnorWeight, center=True),
    partial(AdaBinActivation, form="released"),
    partial(TernaryActivation, threshold=0.5),
    *[partial(AbsmaxActivation, bits=k) for k in range(2, 9)],
    *[partial(LsqWeight, bits=k) for k in range(1, 9)],
    *[partial(LsqActivation, bits=k, signed=signed) for k in range(1, 9) for signed in (False, True)],
    *[partial(Pact, bits=k, alpha=1.5) for k in range(1, 9)],
    *[partial(LqActivation, bits=k) for k in range(1, 9)],
    *[partial(AbcWeight, bases=m) for m in range(1, 9)],
    *[partial(DoReFaWeight, bits=k) for k in range(1, 9)],
    *[partial(DoReFaActivation, bits=k) for k in range(1, 9)],
]


def name(factory):
    return repr(factory())


def gradient(quantizer, x, g):
    x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    quantizer(x).backward(torch.tensor(g, dtype=torch.float64))
    return x.grad.numpy()


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_other_names():
    assert (TernaryWeight, TrainedTernary, XnorWeight) == (TWN, TTQ, BWN)


@pytest.mark.parametrize("factory", PACKED, ids=name)
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (torch.float32, (4, 3, 3, 3)),
        (torch.float64, (5, 7)),
        (torch.bfloat16, (4, 3, 3, 3)),
        pytest.param(torch.float32, (5, 7), marks=pytest.mark.slow),
        pytest.param(torch.float64, (4, 3, 3, 3), marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, (5, 7), marks=pytest.mark.slow),
    ],
)
def test_planes_give_the_forward_value_bit_for_bit(factory, dtype, shape):
    quantizer = factory()
    edge = torch.tensor(EDGE * 16, dtype=dtype)[: int(np.prod(shape))].reshape(shape)
    inputs = [random(*shape, dtype=dtype), random(*shape, seed=1, dtype=dtype) * 3, torch.zeros_like(edge), edge]
    for x in inputs:
        value = quantizer(x)
        planes = quantizer.planes(x)
        assert value.dtype == dtype
        assert torch.equal(value, planes.value())
        # torch.equal calls 0 and -0 equal; the sum of planes knows no -0.
        assert not (value[value == 0].signbit()).any()
        assert planes.bits == quantizer.bits
        for term in planes.terms:
            assert term.levels().abs().max() <= term.max_level


def test_ste_sign_values_and_gradients():
    expected = [-1] * 5 + [1] * 7
    assert SteSign()(torch.tensor(EDGE)).tolist() == expected
    inside = [0, 0] + [1] * 8 + [0, 0]
    g = np.arange(1, 13.0)
    np.testing.assert_array_equal(gradient(SteSign(), EDGE, g), g * inside)
    np.testing.assert_array_equal(gradient(SteSign(clip=None), EDGE, g), g)
    np.testing.assert_array_equal(gradient(SteSign(boundary="open"), EDGE, g), g * [0, 0, 0, *[1] * 6, 0, 0, 0])
    half = [0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    np.testing.assert_array_equal(gradient(SteSign(clip=0.5), EDGE, g), g * half)


def test_xnor_weight_minimizes_the_error():
    """alpha sign(W) is the best scaled sign of each filter (XNOR-Net, equation 4 to 6)."""
    w = random(3, 4, 3, 3)
    best = ((w - XnorWeight()(w)) ** 2).sum((1, 2, 3))
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert (((w - factor * XnorWeight()(w)) ** 2).sum((1, 2, 3)) > best).all()
    alpha = w.double().abs().mean((1, 2, 3))
    np.testing.assert_allclose(XnorWeight()(w).abs().amax((1, 2, 3)), alpha, rtol=1e-6)


def xnor_gradient(w, g, form):
    """The three forms, weight by weight."""
    flat, g_flat = w.reshape(len(w), -1), g.reshape(len(w), -1)
    n, c = flat.shape[1], w.shape[1]
    result = np.zeros_like(flat)
    for o in range(len(flat)):
        alpha = np.abs(flat[o]).mean()
        signs = [1.0 if v >= 0 else -1.0 for v in flat[o]]
        for i in range(n):
            if form == "exact":
                coupled = sum(g_flat[o, j] * signs[j] for j in range(n))
                result[o, i] = signs[i] * coupled / n + g_flat[o, i] * alpha * (abs(flat[o, i]) <= 1)
            elif form == "printed":
                result[o, i] = g_flat[o, i] * (1 / n + alpha * (abs(flat[o, i]) <= 1))
            else:
                result[o, i] = g_flat[o, i] * (1 / n + alpha * (abs(flat[o, i]) < 1)) * (1 - 1 / c)
    return result.reshape(w.shape)


@pytest.mark.parametrize("form", ["exact", "printed", "released"])
def test_xnor_weight_gradients(form):
    rng = np.random.default_rng(0)
    w, g = rng.standard_normal((2, 3, 2, 2)) * 1.2, rng.standard_normal((2, 3, 2, 2))
    w[0, 0, 0] = 1.0, -1.0
    w[1, 0, 0] = 0.0, -0.0
    np.testing.assert_allclose(gradient(XnorWeight(form), w, g), xnor_gradient(w, g, form), rtol=1e-12, atol=1e-14)


def test_xnor_exact_gradient_of_the_scale_is_the_derivative():
    """Beyond the estimator's bound only alpha depends on a weight, so finite differences hold."""
    w, g = np.array([[1.5, -2.0, 3.0]]), np.array([[0.3, -0.7, 1.1]])
    found = gradient(XnorWeight(), w, g)
    for i in range(3):
        step = np.zeros_like(w)
        step[0, i] = 1e-6
        up, down = (XnorWeight()(torch.tensor(w + s * step)).numpy() for s in (1, -1))
        np.testing.assert_allclose(found[0, i], (g * (up - down)).sum() / 2e-6, rtol=1e-6)


@pytest.mark.parametrize("per_channel", [False, True])
def test_ternary_weight(per_channel):
    w = random(4, 3, 3, 3, dtype=torch.float64)
    w[0, 0, 0, 0] = 0
    rows = w.numpy().reshape(4, -1) if per_channel else w.numpy().reshape(1, -1)
    expected = np.zeros_like(rows)
    for row, out in zip(rows, expected, strict=True):
        delta = 0.7 * np.abs(row).mean()
        alpha = np.mean([abs(v) for v in row if abs(v) > delta])
        out[:] = [0 if abs(v) <= delta else alpha * np.sign(v) for v in row]
    found = TernaryWeight(per_channel=per_channel)(w).numpy()
    np.testing.assert_allclose(found, expected.reshape(w.shape), rtol=1e-12)
    g = np.random.default_rng(1).standard_normal(w.shape)
    np.testing.assert_array_equal(gradient(TernaryWeight(per_channel=per_channel), w.numpy(), g), g)


def test_ternary_boundary_is_zero():
    # mean|W| = 1, so delta = 0.5 exactly
    assert TernaryWeight(factor=0.5)(torch.tensor([[0.5, -0.5, 1.0, -2.0]])).tolist() == [[0, 0, 1.5, -1.5]]
    assert TernaryWeight()(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


def quantize_k(r, k):
    n = 2**k - 1
    return np.round(n * r) / n  # NumPy rounds halves to even, as torch does


@pytest.mark.parametrize("k", range(2, 9))
def test_dorefa_weights(k):
    w = random(3, 5, dtype=torch.float64)
    squashed = np.tanh(w.numpy())
    r = squashed / (2 * np.abs(squashed).max()) + 0.5
    np.testing.assert_allclose(DoReFaWeight(k)(w).numpy(), 2 * quantize_k(r, k) - 1, rtol=0, atol=1e-12)
    # Equation 9: the gradient of tanh(W) / max|tanh W|, whose own derivative finite differences give.
    g = np.random.default_rng(k).standard_normal((3, 5))
    found = gradient(DoReFaWeight(k), w.numpy(), g)

    def smooth(v):
        return np.tanh(v) / np.abs(np.tanh(v)).max()

    for i in range(3):
        for j in range(5):
            step = np.zeros((3, 5))
            step[i, j] = 1e-6
            slope = (g * (smooth(w.numpy() + step) - smooth(w.numpy() - step))).sum() / 2e-6
            np.testing.assert_allclose(found[i, j], slope, rtol=1e-5, atol=1e-8)


def test_dorefa_one_bit_weights_share_a_scale():
    w = random(3, 5, dtype=torch.float64)
    expected = np.where(w >= 0, 1, -1) * np.abs(w.numpy()).mean()
    np.testing.assert_allclose(DoReFaWeight(1)(w).numpy(), expected, rtol=1e-12)
    np.testing.assert_array_equal(gradient(DoReFaWeight(1), w.numpy(), np.ones((3, 5))), np.ones((3, 5)))


@pytest.mark.parametrize("k", range(1, 9))
def test_dorefa_activations(k):
    x = np.concatenate([EDGE, np.linspace(-0.2, 1.2, 101)])
    expected = quantize_k(np.clip(x, 0, 1), k)
    np.testing.assert_allclose(DoReFaActivation(k)(torch.tensor(x)).numpy(), expected, rtol=0, atol=1e-12)
    found = gradient(DoReFaActivation(k), x, np.full(len(x), 2.0))
    np.testing.assert_array_equal(found, 2.0 * ((x >= 0) & (x <= 1)))


def test_full_precision_is_the_identity():
    x = random(2, 3).requires_grad_()
    y = FullPrecision()(x)
    y.sum().backward()
    assert torch.equal(y, x)
    assert torch.equal(x.grad, torch.ones(2, 3))
    with pytest.raises(TypeError, match="FullPrecision has no bit planes"):
        FullPrecision().planes(x)


@pytest.mark.parametrize("factory", [partial(SteSign), partial(XnorWeight), partial(DoReFaActivation, 2)], ids=name)
def test_a_nan_is_not_hidden(factory):
    value = factory()(torch.tensor([[float("nan"), 1.0]]))
    assert value.isnan().any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SteSign(clip=0), "clip must be positive"),
        (lambda: SteSign(clip=float("nan")), "clip must be positive"),
        (lambda: SteSign(boundary="half"), "'closed' or 'open'"),
        (lambda: XnorWeight("exakt"), "'exact', 'printed' or 'released'"),
        (lambda: TernaryWeight(factor=1.0), "factor"),
        (lambda: DoReFaWeight(0), "bits must be one of"),
        (lambda: DoReFaWeight(9), "bits must be one of"),
        (lambda: DoReFaActivation(2.5), "bits must be one of"),
        (lambda: DoReFaActivation(True), "bits must be one of"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
