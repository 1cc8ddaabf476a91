"""The epilogue: the same numbers as plain NumPy, for every combination of its parts."""

import itertools

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels.bits.level_bytes import as_planes


def make(rng, channels, residual, activation, clamp, bits, norm=False):
    def vector():
        return rng.standard_normal(channels).astype(np.float32)

    parts = {"scale": vector(), "shift": vector(), "residual": residual}
    if norm:
        parts |= {"norm_scale": vector(), "norm_shift": vector()}
    if activation:
        parts |= {"pre": vector(), "slope": vector(), "post": vector()}
    if clamp:
        parts |= {"low": -0.5, "high": 1.25}
    if bits:
        parts |= {"bounds": vector() / 4, "flip": rng.random(channels) < 0.5}
    return bk.Epilogue(channels, **parts)


def same(found, expected):
    for mine, plain in zip(found, expected, strict=True):
        assert (mine is None) == (plain is None)
        if mine is not None and isinstance(mine, np.ndarray):
            np.testing.assert_array_equal(mine, plain)
        elif mine is not None:
            assert mine.shape == plain.shape
            np.testing.assert_array_equal(mine.words, plain.words)


CASES = list(itertools.product([None, "before", "after"], [False, True], [False, True], [False, True]))


@pytest.mark.parametrize(("residual", "activation", "clamp", "bits"), CASES)
@pytest.mark.parametrize("channels", [1, 7, 8, 13, 64, 70])
def test_alone_and_behind_layers(residual, activation, clamp, bits, channels):
    rng = np.random.default_rng(channels)
    epilogue = make(rng, channels, residual, activation, clamp, bits)
    shape = (2, 5, 3, channels)
    rest = rng.standard_normal(shape).astype(np.float32) if residual else None
    for y in (rng.standard_normal(shape).astype(np.float32), rng.integers(-50, 50, shape).astype(np.int32)):
        for keep in (True, False) if bits else (True,):
            same(epilogue(y, rest, keep), epilogue.apply_reference(y, rest, keep))
    conv = bk.PackedConv2d(rng.standard_normal((channels, 20, 3, 3)), padding=1)
    x = bk.pack(rng.standard_normal((2, 20, 5, 3)))
    same(conv.finish(x, epilogue, rest), epilogue.apply_reference(conv.channels_last(x), rest))
    linear = bk.PackedLinear(rng.standard_normal((channels, 130)))
    x = bk.pack(rng.standard_normal((3, 130)))
    rest = rng.standard_normal((3, 1, 1, channels)).astype(np.float32) if residual else None
    same(linear.finish(x, epilogue, rest), epilogue.apply_reference(linear.channels_last(x), rest))


@pytest.mark.parametrize("residual", [None, "before", "after"])
@pytest.mark.parametrize("channels", [1, 3, 6, 12, 20, 31, 40, 63, 64, 70])
def test_bytes_of_few_channels(residual, channels):
    """Positions that are finished side by side: floats and bytes are those of planes, which are finished one by one."""
    rng = np.random.default_rng(channels)
    vectors = {
        name: rng.standard_normal(channels).astype(np.float32)
        for name in ("scale", "shift", "norm_scale", "norm_shift", "pre", "slope", "post", "level_scale", "level_shift")
    }
    made = bk.UniformLevels(float(np.float32(0.11)), True, 0, 15, 4)
    in_bytes, in_planes = (
        bk.Epilogue(channels, **vectors, residual=residual, low=-1.0, levels=made, as_bytes=form)
        for form in (True, False)
    )
    for positions in (1, 15, 16, 37):
        y = rng.integers(-9, 9, (1, 1, positions, channels)).astype(np.int32)
        rest = rng.standard_normal(y.shape).astype(np.float32) if residual else None
        for keep in (True, False):
            floats, levels = in_bytes(y, rest, keep)
            same((floats, as_planes(levels)), in_planes(y, rest, keep))
        last = np.full(y.shape, 1.0, np.float32)
        last[..., -1] = np.nan
        with pytest.raises(ValueError, match="NaN"):
            in_bytes(last, rest)


@pytest.mark.parametrize("parts", [("norm_scale",), ("norm_shift",), ("norm_scale", "norm_shift")])
@pytest.mark.parametrize("channels", [1, 8, 13, 70])
def test_batch_norm(parts, channels):
    """v * norm_scale + norm_shift, rounded once; the formula in float64, and behind layers."""
    rng = np.random.default_rng(channels)
    given = {name: rng.standard_normal(channels).astype(np.float32) for name in parts}
    epilogue = bk.Epilogue(channels, **given)
    y = rng.standard_normal((2, 5, 3, channels)).astype(np.float32)
    gain, offset = given.get("norm_scale", np.float32(1)), given.get("norm_shift", np.float32(0))
    expected = (y.astype(np.float64) * gain + offset).astype(np.float32)
    np.testing.assert_array_equal(epilogue(y)[0], expected)
    np.testing.assert_array_equal(epilogue.apply_reference(y)[0], expected)


@pytest.mark.parametrize(("residual", "activation", "clamp", "bits"), CASES)
@pytest.mark.parametrize("channels", [13, 64])
def test_batch_norm_with_all_other_parts(residual, activation, clamp, bits, channels):
    rng = np.random.default_rng(channels)
    epilogue = make(rng, channels, residual, activation, clamp, bits, norm=True)
    conv = bk.PackedConv2d(rng.standard_normal((channels, 20, 3, 3)), padding=1)
    x = bk.pack(rng.standard_normal((2, 20, 5, 3)))
    sums = conv.channels_last(x)
    rest = rng.standard_normal(sums.shape).astype(np.float32) if residual else None
    same(conv.finish(x, epilogue, rest), epilogue.apply_reference(sums, rest))
    same(epilogue(sums.astype(np.float32), rest), epilogue.apply_reference(sums, rest))


@pytest.mark.parametrize("weights", [{}, {"multipliers": (1, -1), "signed": False}])
def test_behind_several_planes_and_groups(weights):
    rng = np.random.default_rng(1)
    epilogue = make(rng, 32, "before", True, True, True)
    levels = rng.choice([-1, 1], (32, 12, 3, 3))
    conv = bk.PackedConv2d.from_levels(levels, **weights, groups=2, stride=2)
    for codes, planes in (
        (rng.integers(0, 4, (2, 24, 9, 8)), ((1, 2), False)),
        (levels[:2].repeat(2, 1), ((1,), True)),
    ):
        x = bk.pack_levels(codes, *planes)
        sums = conv.channels_last(x)
        rest = rng.standard_normal(sums.shape).astype(np.float32)
        same(conv.finish(x, epilogue, rest), epilogue.apply_reference(sums, rest))


def test_empty_batch():
    epilogue = bk.Epilogue(8, bounds=np.zeros(8, np.float32))
    floats, bits = epilogue(np.empty((0, 4, 4, 8), np.float32))
    assert floats.shape == (0, 4, 4, 8) and bits.shape == (0, 8, 4, 4)


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("residual", ["before", "after"])
@pytest.mark.parametrize("filters", [16, 24, 40])
def test_a_layer_with_a_norm_hands_on_what_is_not_finite(filters, residual, clamp):
    rng = np.random.default_rng(filters)
    conv = bk.PackedConv2d(rng.standard_normal((filters, 64, 3, 3)), padding=1)
    epilogue = make(rng, filters, residual, False, clamp, False, norm=True)
    bits = bk.pack(rng.standard_normal((2, 64, 7, 6)))
    rest = rng.standard_normal((2, 7, 6, filters)).astype(np.float32)
    for value in (np.nan, np.inf, -np.inf, 3e38, -0.0):
        rest[rng.random(rest.shape) < 0.1] = value
    sums = conv.channels_last(bits)
    same(conv.finish(bits, epilogue, rest), epilogue.apply_reference(sums, rest))


def test_a_nan_stays_a_nan_and_never_becomes_a_bit():
    y = np.ones((1, 1, 1, 9), np.float32)
    y[..., 8] = np.nan
    floats, _ = bk.Epilogue(9, low=0.0)(y)
    assert np.isnan(floats[..., 8]).all()
    with pytest.raises(ValueError, match="NaN"):
        bk.Epilogue(9, bounds=np.zeros(9, np.float32))(y)


ONES = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: bk.Epilogue(4, scale=np.ones(3, np.float32)), ValueError, "scale must be float32"),
        (lambda: bk.Epilogue(4, shift=np.ones(4)), ValueError, "float64"),
        (lambda: bk.Epilogue(4, shift=ONES * np.nan), ValueError, "shift holds a NaN"),
        (lambda: bk.Epilogue(4, residual="behind"), ValueError, "behind"),
        (lambda: bk.Epilogue(4, low=1, high=0), ValueError, "above high"),
        (lambda: bk.Epilogue(4, flip=np.zeros(4, bool)), ValueError, "flip needs bounds"),
        (lambda: bk.Epilogue(4)(np.ones((1, 1, 1, 5), np.float32)), ValueError, r"\(1, 1, 1, 5\)"),
        (lambda: bk.Epilogue(4)(np.ones((1, 1, 1, 4))), TypeError, "float64"),
        (lambda: bk.Epilogue(4, residual="after")(np.ones((1, 1, 1, 4), np.float32)), ValueError, "no residual"),
        (lambda: bk.Epilogue(4)(np.ones((1, 1, 1, 4), np.float32), np.ones(4)), ValueError, "adds no residual"),
        (lambda: bk.Epilogue(4)(np.ones((1, 1, 1, 4), np.float32), keep=False), ValueError, "nothing to compute"),
    ],
)
def test_bad_calls_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
