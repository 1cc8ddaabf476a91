"""Levels by a corrected product with 1 / step are those of a division, for all steps and floats near an edge."""

from fractions import Fraction

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels.bits.level_bytes import as_planes
from bnn_kernels.bits.quotient import LEAST_STEP, MOST_STEP, fused, product_of, quotient_of
from bnn_kernels.ops.finishing import BytesOutput, StraightOutput

RANGES = [(bits, signed) for bits in (1, 2, 4, 8) for signed in (False, True) if bits > 1 or not signed]


def levels(factor, bits=8, signed=False, divides=True, zero=0):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return bk.UniformLevels(float(np.float32(factor)), divides, low - zero, high - zero, bits, zero)


def rounded(exact):
    """The float32 nearest to a fraction, halves to even."""
    near = np.float32(float(exact))
    ways = [near, *(np.nextafter(near, np.float32(end)) for end in (-np.inf, np.inf))]
    return min(ways, key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(np.int32)) & 1))


def test_fused_is_rounded_once():
    rng = np.random.default_rng(0)
    a, b = (np.exp2(rng.uniform(-9, 9, 3000)).astype(np.float32) for _ in range(2))
    c = np.where(rng.random(3000) < 0.7, -(a * b), rng.standard_normal(3000)).astype(np.float32)
    # Sums that float64 rounds to the middle of two float32, though they are not.
    a[:2], b[:2], c[:2] = np.float32(1 + 2.0**-23), np.float32(2.0**-24), [1, -1]
    a[2:4], b[2:4], c[2:4] = np.float32(2.0**-24 * (1 + 2.0**-23)), np.float32(1), [1, 1 + 2.0**-23]
    expected = [
        rounded(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))) for x, y, z in zip(a, b, c, strict=True)
    ]
    np.testing.assert_array_equal(fused(a, b, c), expected)


@pytest.mark.parametrize(("bits", "signed"), RANGES)
@pytest.mark.parametrize("seed", range(3))
def test_levels_near_every_edge(bits, signed, seed):
    """Steps of all mantissas, among them those next to powers of two, and floats around each half."""
    rng = np.random.default_rng(seed)
    steps = np.exp2(rng.uniform(-30, 30, 12)).astype(np.float32)
    steps = np.concatenate([steps, np.nextafter(np.float32([1, 1, 0.125]), np.float32([2, 0, 0]))])
    for step in steps:
        made = levels(step, bits, signed)
        assert quotient_of(made) is not None
        halves = (np.arange(made.low, made.high + 1) + rng.choice([-0.5, 0.5])) * np.float64(step)
        near = halves.astype(np.float32).view(np.int32)[:, None] + np.arange(-40, 41, dtype=np.int32)
        x = np.concatenate([near.view(np.float32).reshape(-1), rng.standard_normal(99).astype(np.float32) * step * 99])
        x = x[np.isfinite(x)].reshape(1, 1, 1, -1)
        expected = np.rint(np.clip(x / step, np.float32(made.low), np.float32(made.high)))
        _, found = bk.Epilogue(x.size, levels=made)(x, keep=False)
        np.testing.assert_array_equal(bk.unpack(found).reshape(-1), expected.reshape(-1))


def test_steps_that_lose_bits_are_divided_by():
    for step in (LEAST_STEP / 2, MOST_STEP * 2, 1e-40):
        assert quotient_of(levels(step)) is None
        x = (np.arange(-3, 300, dtype=np.float64) * 0.5 * step).astype(np.float32).reshape(1, 1, 1, -1)
        _, found = bk.Epilogue(x.size, levels=levels(step))(x, keep=False)
        expected = np.rint(np.clip(x / np.float32(step), np.float32(0), np.float32(255)))
        np.testing.assert_array_equal(bk.unpack(found).reshape(-1), expected.reshape(-1))
    assert quotient_of(levels(15.0, divides=False)) is None
    assert product_of(levels(15.0)) is None


PARTS = {
    "levels alone": {},
    "scale": {"scale": 1 / 64},
    "scale and shift": {"scale": -1 / 64, "shift": 0.25},
    "norm": {"norm_scale": 3 / 256, "norm_shift": -0.125},
    "both": {"scale": 1 / 32, "norm_scale": 0.5, "norm_shift": 0.125},
    "shift alone": {"shift": 0.5},
}


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("ends", [(-np.inf, np.inf), (0.0, 6.0), (0.3, 0.3), (-9e9, -9e8)])
@pytest.mark.parametrize("groups", [1, 24])
def test_levels_of_integers_straight_away(parts, ends, groups):
    """Sums that meet halves exactly, and a clamp inside the levels' own, around it, and beyond its ends."""
    rng = np.random.default_rng(2)
    conv = bk.PackedConv2d.from_levels(
        rng.integers(-8, 8, (24, 24 // groups, 3, 3)), (1, 2, 4, -8), False, padding=1, groups=groups
    )
    x = bk.pack_levels(rng.integers(0, 16, (2, 24, 6, 5)), (1, 2, 4, 8), False)
    dots = conv.channels_last(x)
    vectors = {name: np.full(24, value, np.float32) for name, value in PARTS[parts].items()}
    for made in (
        levels(0.25, 8, True),
        levels(0.1, 4, zero=3),
        levels(4.0, 8, True, divides=False),
        levels(3.3, 2, divides=False),
    ):
        epilogue = bk.Epilogue(24, **vectors, low=ends[0], high=ends[1], levels=made, as_bytes=True)
        output, _ = epilogue.output(dots.shape, None, False, True)
        assert type(output) is StraightOutput
        _, expected = epilogue.apply_reference(dots)
        for keep in (False, True):
            floats, found = conv.finish(x, epilogue, keep=keep)
            np.testing.assert_array_equal(as_planes(found).words, expected.words)
            assert keep == (floats is not None)


def test_what_is_not_straight():
    """A residual, an activation, kept floats, numbers that can overflow into a NaN, and steps that are divided by."""
    shape, made = (1, 2, 2, 8), levels(0.1)
    ones = np.ones(8, np.float32)

    def kind(keep=False, straight=True, of=made, **parts):
        rest = np.zeros(shape, np.float32) if "residual" in parts else None
        return type(bk.Epilogue(8, **parts, levels=of, as_bytes=True).output(shape, rest, keep, straight)[0])

    assert kind(scale=ones) is StraightOutput
    assert kind(straight=False) is BytesOutput
    assert kind(keep=True) is BytesOutput
    assert kind(residual="before") is BytesOutput
    assert kind(slope=ones) is BytesOutput
    assert kind(scale=ones * np.float32(1e30)) is BytesOutput
    assert kind(scale=ones * np.float32(1e20), norm_scale=ones * np.float32(1e20)) is BytesOutput
    assert kind(of=levels(1e-30)) is BytesOutput
