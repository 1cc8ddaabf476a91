"""Quantizers published since 2022 against the formulas of their papers and authors' code, written plainly."""

import math

import numpy as np
import pytest
import torch
from gradients import differences, gradient, signs

from bnn.quantizers import (
    ElasticBinaryActivation,
    LsqWeight,
    N2uqActivation,
    N2uqWeight,
    RelaxedWeight,
    ResteSign,
    ResteWeight,
    StableLsqWeight,
    StretchedElasticWeight,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def fixed(quantizer, **learned):
    """The quantizer in float64 and evaluation, in which it does not begin with data, with these learned values."""
    quantizer = quantizer.double().eval()
    with torch.no_grad():
        for name, value in learned.items():
            getattr(quantizer, name).copy_(torch.tensor(value, dtype=torch.float64))
    return quantizer


# -- ReSTE ------------------------------------------------------------------------------------------------------------


def root(x, o):
    """sign(x) |x|^(1/o), but a straight line up to |x| = 0.1 and constant from 1.5 on."""
    size = min(abs(x), 1.5)
    return math.copysign(size ** (1 / o) if size > 0.1 else size * 0.1 ** (1 / o) / 0.1, x)


@pytest.mark.parametrize("o", [1.0, 1.7, 3.0])
def test_reste_is_the_derivative_of_a_root(o):
    x = np.array([-2.0, -1.49, -0.7, -0.11, -0.05, 0.0, 0.02, 0.3, 1.2, 1.6])
    expected = [(root(v + 1e-7, o) - root(v - 1e-7, o)) / 2e-7 for v in x]
    np.testing.assert_allclose(gradient(ResteSign(o), x, 3.0), 3 * np.array(expected), rtol=1e-6)
    w, g = 0.8 * rng().standard_normal((3, 7)), rng(1).standard_normal((3, 7))
    alpha, smooth = np.abs(w).mean(), np.vectorize(root)
    np.testing.assert_allclose(ResteWeight(o)(torch.tensor(w)), alpha * signs(w), rtol=1e-12)
    expected = differences(lambda u: (g * (np.abs(u).mean() * signs(w) + alpha * smooth(u, o))).sum(), w)
    np.testing.assert_allclose(gradient(ResteWeight(o), w, g), expected, rtol=1e-6, atol=1e-8)


# -- StableQAT --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amplitude", [0.05, 0.1, 0.2])
def test_the_slope_of_stableqat_is_that_of_a_wave_along_the_diagonal(amplitude):
    """Rounding's graph, turned, is (y - x) / sqrt 2 = -A sin(pi (x + y)); dy/dx is that of the implicit function."""
    x = np.array([[0.1, 0.4, -0.3, 1.2, -1.4]])
    found = gradient(fixed(StableLsqWeight(3, amplitude), step=1.0), x, 1.0)[0]
    for v, slope in zip(x[0], found, strict=True):
        y = round(v)

        def distance(u, w):
            return (w - u) / math.sqrt(2) + amplitude * math.sin(math.pi * (u + w))

        by_x = (distance(v + 1e-6, y) - distance(v - 1e-6, y)) / 2e-6
        by_y = (distance(v, y + 1e-6) - distance(v, y - 1e-6)) / 2e-6
        assert slope == pytest.approx(-by_x / by_y, rel=1e-6)


@pytest.mark.parametrize("per_channel", [False, True])
def test_stableqat_is_lsq_but_for_the_slope(per_channel):
    w, g = rng().standard_normal((4, 9)), rng(1).standard_normal((4, 9))
    steps = [0.2, 0.3, 0.5, 1.0] if per_channel else 0.4
    options = {"bits": 3, "per_channel": per_channel, "channels": 4}
    ours, lsq = fixed(StableLsqWeight(amplitude=0.21, **options), step=steps), fixed(LsqWeight(**options), step=steps)
    assert torch.equal(ours(torch.tensor(w)), lsq(torch.tensor(w)))
    plain = gradient(lsq, w, g)
    ratio = w / np.reshape(steps, (-1, 1))
    wave = math.sqrt(2) * math.pi * 0.21 * np.cos(math.pi * (ratio + np.round(ratio)))
    np.testing.assert_allclose(gradient(ours, w, g), plain * (1 - wave) / (1 + wave), rtol=1e-10)
    assert torch.equal(ours.step.grad, lsq.step.grad)
    none = fixed(StableLsqWeight(amplitude=0.0, **options), step=steps)
    np.testing.assert_array_equal(gradient(none, w, g), plain)


# -- ParetoQ ----------------------------------------------------------------------------------------------------------


def stretched(ratio, levels):
    """The middle of the one of `levels` equal parts of [-1, 1] in which each ratio lies; of two levels the sign."""
    if levels == 2:
        return signs(ratio)
    middles = (2 * np.arange(levels) + 1) / levels - 1
    return middles[np.abs(ratio[..., None] - middles).argmin(-1)]


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_stretched_elastic_weight(levels):
    w, g = rng().standard_normal((3, 2, 4)), rng(1).standard_normal((3, 2, 4))
    alpha = np.array([0.5, 1.0, 2.0])
    quantizer = fixed(StretchedElasticWeight(levels, channels=3), alpha=alpha)
    ratio = w / alpha[:, None, None]
    level = stretched(ratio, levels)
    np.testing.assert_allclose(quantizer(torch.tensor(w)).detach(), level * alpha[:, None, None], rtol=1e-12)
    inside = np.abs(ratio) <= 0.99
    np.testing.assert_array_equal(gradient(quantizer, w, g), g * inside)
    change = {2: level, 3: np.where(inside, level - ratio, signs(w)), 4: level - ratio * inside}[levels]
    expected = (g * change).sum((1, 2)) / np.sqrt(w.size)
    np.testing.assert_allclose(quantizer.alpha.grad, expected, rtol=1e-12)
    planes = quantizer.planes(torch.tensor(w))
    assert len(planes.terms) == 1
    assert planes.bits == (1 if levels == 2 else 2)
    assert planes.terms[0].signed == (levels != 3)


def test_stretched_elastic_weight_begins_with_the_weights():
    w = torch.tensor([[0.5, -1.5], [0.0, 0.0], [-3.0, 1.0]])
    for levels, expected in ((2, [1, 1, 2]), (3, [1.5, 1, 3]), (4, [1.5, 1, 3])):
        quantizer = StretchedElasticWeight(levels, channels=3)
        quantizer(w)
        assert quantizer.alpha.tolist() == expected


# -- BiT --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [True, False])
def test_elastic_binary_activation(signed):
    x, g = rng().standard_normal((5, 2, 3)), rng(1).standard_normal((5, 2, 3))
    a, b = 0.8, -0.25
    x[0, 0] = [b, b + a / 2, b + a]
    quantizer = fixed(ElasticBinaryActivation(signed), alpha=a, beta=b)
    if signed:
        value, inside = a * signs(x - b), np.abs((x - b) / a) <= 1
        to_alpha = signs(x - b)
    else:
        value, inside = np.where((x - b) / a > 0.5, a, 0.0), ((x - b) / a >= 0) & ((x - b) / a < 1)
        to_alpha = np.where(x < b, 0, np.where(x < b + a / 2, (b - x) / a, np.where(x < b + a, 1 - (x - b) / a, 1)))
        to_alpha[0, 0, 1] = -0.5  # halfway: rounded to even, which is 0
    np.testing.assert_allclose(quantizer(torch.tensor(x)).detach(), value, rtol=1e-12)
    np.testing.assert_array_equal(gradient(quantizer, x, g), g * inside)
    np.testing.assert_allclose(quantizer.alpha.grad, (g * to_alpha).sum() / np.sqrt(6), rtol=1e-10)
    np.testing.assert_allclose(quantizer.beta.grad, -(g * inside).sum() / np.sqrt(6), rtol=1e-10)


def test_elastic_binary_activation_begins_with_the_first_batch():
    x = torch.tensor([[1.0, -3.0], [2.0, 0.0]])
    for signed, expected in ((True, 1.5), (False, 3.0)):
        quantizer = ElasticBinaryActivation(signed)
        quantizer(x)
        assert (quantizer.alpha.item(), quantizer.beta.item()) == (expected, 0)


# -- N2UQ -------------------------------------------------------------------------------------------------------------


def rising_line(x, start, widths):
    """Straight lines from (start, 0) to (start + a_1, 1), from there to (start + a_1 + a_2, 2), and so on."""
    ends = start + np.concatenate([[0], np.cumsum(widths)])
    return np.interp(x, ends, np.arange(len(ends)))


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_n2uq_activation(bits):
    x, g = rng().uniform(-1, 3, (6, 4, 3)), rng(1).standard_normal((6, 4, 3))
    n = 2**bits - 1
    start, widths, into, out = -0.2, rng(2).uniform(0.1, 3 / n, n), 1.3, 0.7
    learned = {"start": start, "widths": widths, "input_scale": into, "output_scale": out}
    quantizer = fixed(N2uqActivation(bits), **learned)
    thresholds = start + np.cumsum(widths) - widths / 2
    level = (into * x[..., None] > thresholds).sum(-1)
    np.testing.assert_allclose(quantizer(torch.tensor(x)).detach(), out * 2 / n * level, rtol=1e-12)

    def cost(x, start, widths, into, out):
        # The line stands for the levels in every derivative but that of the factor before it.
        line = rising_line(into * x, start, widths)
        return (g * 2 / n * (learned["output_scale"] * line + (out - learned["output_scale"]) * level)).sum()

    at = (x, start, widths, into, out)

    def slopes(place):
        return differences(lambda v: cost(*at[:place], v, *at[place + 1 :]), at[place])

    np.testing.assert_allclose(gradient(quantizer, x, g), slopes(0), rtol=1e-5, atol=1e-8)
    names = ("start", "widths", "input_scale", "output_scale")
    for place, name in enumerate(names, start=1):
        np.testing.assert_allclose(getattr(quantizer, name).grad, slopes(place), rtol=1e-5, atol=1e-7, err_msg=name)


def test_n2uq_activation_begins_as_a_uniform_quantizer():
    x = torch.linspace(-1, 3, 100)  # no number halfway between levels
    expected = (x * 1.5).clamp(0, 3).round() / 1.5
    torch.testing.assert_close(N2uqActivation(2)(x), expected)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_n2uq_weight(bits):
    w, g = rng().standard_normal((4, 3, 5)), rng(1).standard_normal((4, 3, 5))
    n = 2**bits - 1
    s = n / 2 ** (bits - 1) * np.abs(w).mean((1, 2), keepdims=True)
    expected = s * (2 / n * np.round((np.clip(w / s, -1, 1) + 1) * n / 2) - 1)
    np.testing.assert_allclose(N2uqWeight(bits)(torch.tensor(w)), expected, rtol=1e-10)
    np.testing.assert_allclose(gradient(N2uqWeight(bits), w, g), g / s, rtol=1e-12)


def test_n2uq_weights_use_all_levels():
    """Of normal weights each of the four levels gets about a quarter."""
    w = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(N2uqWeight(2).planes(w).terms[0].levels()[0] + 3)[::2] / w.numel()
    assert ((shares > 0.2) & (shares < 0.3)).all()


# -- weights that become few-valued -----------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 3, 4, 8, 256])
def test_relaxed_weight_rounds_in_evaluation(levels):
    w, g = rng().standard_normal((3, 8)), rng(1).standard_normal((3, 8))
    quantizer = RelaxedWeight(levels)
    assert np.array_equal(quantizer(torch.tensor(w)), w)
    assert np.array_equal(gradient(quantizer, w, g), g)
    quantizer.eval()
    grid = np.linspace(-1, 1, levels) * np.abs(w).max()
    expected = grid[np.abs(w[..., None] - grid).argmin(-1)]
    found = quantizer(torch.tensor(w))
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    np.testing.assert_allclose(quantizer(found), found, rtol=1e-12)
    assert np.array_equal(gradient(quantizer, w, g), g)
    assert quantizer.bits == math.ceil(math.log2(levels))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ResteSign(0.5), "o must be at least 1"),
        (lambda: ResteWeight(0), "o must be at least 1"),
        (lambda: StableLsqWeight(1), "bits must be one of"),
        (lambda: StableLsqWeight(2, amplitude=0.3), "amplitude must lie"),
        (lambda: N2uqActivation(0), "bits must be one of"),
        (lambda: N2uqWeight(1), "bits must be one of"),
        (lambda: RelaxedWeight(5), "levels must be 2, 3, 4"),
        (lambda: StretchedElasticWeight(8, channels=2), "levels must be 2, 3 or 4"),
        (lambda: StretchedElasticWeight(4, channels=0), "channels must be"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
