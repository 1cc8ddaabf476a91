"""Evenly spaced levels of an epilogue: the formula in plain NumPy, halves to even, in every step that makes them."""

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels.bits.level_bytes import as_planes
from bnn_kernels.bits.tensor import unpack_codes
from bnn_kernels.model.packed_model import PackedModel

WIDTHS = [(bits, signed) for bits in range(1, 9) for signed in (False, True) if bits > 1 or not signed]


def levels(bits, signed, factor=0.3, divides=True, zero=0):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return bk.UniformLevels(float(np.float32(factor)), divides, low - zero, high - zero, bits, zero)


def formula(v, made):
    factor = np.float32(made.factor)
    return np.rint(np.clip(v / factor if made.divides else v * factor, made.low, made.high)).astype(int) + made.zero


@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
@pytest.mark.parametrize("channels", [1, 7, 13, 64, 70])
def test_levels_are_those_of_the_formula(bits, signed, channels):
    rng = np.random.default_rng(bits)
    for divides, factor in ((True, 0.37), (False, 2**bits - 1)):
        made = levels(bits, signed, factor, divides)
        y = (rng.standard_normal((2, 3, 5, channels)) * 2**bits).astype(np.float32)
        norm = rng.standard_normal((2, channels)).astype(np.float32)
        epilogue = bk.Epilogue(channels, norm_scale=norm[0], norm_shift=norm[1], levels=made)
        floats, bits_of = epilogue(y)
        np.testing.assert_array_equal(bk.unpack(bits_of), formula(floats, made).transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(epilogue.apply_reference(y, keep=False)[1].words, bits_of.words)
        assert epilogue(y, keep=False)[0] is None


@pytest.mark.parametrize(("bits", "zero"), [(2, 1), (4, 15), (4, 6), (8, 0), (8, 31), (8, 200)])
@pytest.mark.parametrize("channels", [3, 16, 70])
def test_levels_with_a_zero_point(bits, zero, channels, tmp_path):
    rng = np.random.default_rng(zero)
    made = levels(bits, False, 0.37, zero=zero)
    assert bk.UniformLevels.of(made.attribute()) == made
    y = (rng.standard_normal((2, 3, 5, channels)) * 2**bits / 3).astype(np.float32)
    expected = formula(y, made)
    assert expected.min() >= 0 and expected.max() <= 2**bits - 1 and len(np.unique(expected)) > 2
    for as_bytes in (False, True):
        _, found = bk.Epilogue(channels, levels=made, as_bytes=as_bytes)(y, keep=False)
        np.testing.assert_array_equal(bk.unpack(as_planes(found)), expected.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(made.codes(y), expected)


def test_halves_are_rounded_to_even_and_zeros_have_no_sign():
    v = np.array([-8.5, -2.5, -1.5, -0.5, -0.0, 0.0, 0.5, 1.5, 2.5, 3.5, 7.5], np.float32)
    _, made = bk.Epilogue(11, levels=levels(4, True, 1.0))(v.reshape(1, 1, 1, 11), keep=False)
    assert bk.unpack(made).ravel().tolist() == [-8, -2, -2, 0, 0, 0, 0, 2, 2, 4, 7]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("channels", [5, 16, 45])
@pytest.mark.parametrize("own", [("level_scale", "level_shift"), ("level_scale",), ("level_shift",)])
def test_levels_behind_a_norm_of_their_own(channels, own, keep):
    """The floats are handed on without it; the epilogue's own clamp comes before it."""
    rng = np.random.default_rng(channels)
    y, rest = (rng.standard_normal((2, 3, 4, channels)).astype(np.float32) for _ in range(2))
    vectors = {name: rng.standard_normal(channels).astype(np.float32) for name in own}
    for made in (levels(8, True, 0.05), levels(4, False, 15.0, divides=False)):
        for as_bytes in (False, True):
            epilogue = bk.Epilogue(channels, residual="before", low=-0.5, levels=made, as_bytes=as_bytes, **vectors)
            floats, found = epilogue(y, rest, keep)
            plain = np.maximum(y + rest, np.float32(-0.5))
            gain, offset = vectors.get("level_scale", np.float32(1)), vectors.get("level_shift", np.float32(0))
            # The product of two float32 is exact in float64.
            normed = (plain.astype(np.float64) * gain + offset).astype(np.float32)
            np.testing.assert_array_equal(bk.unpack(as_planes(found)), formula(normed, made).transpose(0, 3, 1, 2))
            assert (floats is not None) == keep
            if keep:
                np.testing.assert_array_equal(floats, plain)
            np.testing.assert_array_equal(epilogue.apply_reference(y, rest)[1].words, as_planes(found).words)
            _, again = epilogue.quantizer()(plain, keep=False)
            np.testing.assert_array_equal(again.words, as_planes(found).words)
    with pytest.raises(ValueError, match="need levels"):
        bk.Epilogue(channels, **vectors)


def test_far_numbers_are_the_ends_and_nan_is_refused():
    big = np.float32([np.inf, 3e38, -3e38, -np.inf]).reshape(1, 1, 1, 4)
    for made in (levels(8, True, 1e-38), levels(8, True, 1e38, False)):
        _, found = bk.Epilogue(4, levels=made)(big, keep=False)
        assert bk.unpack(found).ravel().tolist() == [127, 127, -128, -128]
    with pytest.raises(ValueError, match="NaN"):
        bk.Epilogue(4, levels=levels(8, True))(np.full((1, 1, 1, 4), np.nan, np.float32), keep=False)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("filters", [12, 64])
def test_behind_layers(filters, groups):
    rng = np.random.default_rng(0)
    made = levels(5, True)
    scale = rng.random(filters).astype(np.float32) / 30
    epilogue = bk.Epilogue(filters, scale=scale, low=-1.0, levels=made)
    conv = bk.PackedConv2d.from_levels(
        rng.integers(0, 8, (filters, 16 // groups, 3, 3)), (1, 2, 4), False, padding=1, groups=groups
    )
    x = bk.pack_levels(rng.integers(-8, 8, (2, 16, 6, 5)), (1, 2, 4, -8), False)
    dots = conv.channels_last(x)
    expected = formula(np.maximum(dots.astype(np.float32) * scale, np.float32(-1)), made)
    _, found = conv.finish(x, epilogue, keep=False)
    np.testing.assert_array_equal(bk.unpack(found), expected.transpose(0, 3, 1, 2))
    assert unpack_codes(found).max() < 32


ATTRIBUTE = {"factor": 0.5, "divides": True, "low": -8, "high": 7, "bits": 4}


def plan(**attrs):
    pack = bk.StepSpec("pack", ["x"], ["a"], attrs)
    return [pack, bk.StepSpec("unpack", ["a"], ["b"], {"scale": 0.5})]


@pytest.mark.parametrize("shape", [(5,), (3, 2, 4), (70, 3, 3)])
def test_pack_and_the_file(shape, tmp_path):
    model = PackedModel([shape], plan(levels=ATTRIBUTE))
    x = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32) * 3
    expected = formula(x, bk.UniformLevels(**ATTRIBUTE)) * 0.5
    np.testing.assert_array_equal(model(x), expected)
    assert model.nbytes == 0
    model.save(tmp_path / "m.safetensors")
    loaded = bk.load(tmp_path / "m.safetensors")
    for _ in range(3):
        np.testing.assert_array_equal(loaded(x), expected)
    lower, higher = model.nearby(0, 0.01, x if x.ndim == 2 else x.transpose(0, 2, 3, 1).copy())
    assert (bk.unpack(lower) <= bk.unpack(higher)).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"factor": 0}, "factor must be a positive float32"),
        ({"factor": 0.1}, "factor must be a positive float32"),
        ({"factor": 1e300}, "factor must be a float32"),
        ({"factor": "1"}, "factor"),
        ({"divides": 1}, "divides must be True or False"),
        ({"bits": 9}, "up to 8 bits"),
        ({"bits": 0}, "bits"),
        ({"bits": 3}, "do not fit 3 bits"),
        ({"low": 0, "high": 16}, "do not fit 4 bits"),
        ({"low": 2, "high": 1}, "do not fit"),
        ({"low": 0.5}, "low"),
        ({"zero": 1}, "do not fit 4 bits"),
        ({"zero": 0.5}, "zero"),
        ({"more": 1}, "more"),
    ],
)
def test_malformed_levels_are_refused(change, words):
    with pytest.raises(bk.PlanError, match=words):
        PackedModel([(5,)], plan(levels=ATTRIBUTE | change))


def test_levels_go_with_no_thresholds_and_no_signs():
    with pytest.raises(bk.PlanError, match="no planes and no thresholds"):
        PackedModel([(5,)], plan(levels=ATTRIBUTE, signed=False))
    with pytest.raises(bk.PlanError, match="dict"):
        PackedModel([(5,)], plan(levels=[1]))
    with pytest.raises(ValueError, match="not both"):
        bk.Epilogue(5, bounds=np.zeros(5, np.float32), levels=levels(4, True))
    spec = bk.StepSpec("elementwise", ["x"], ["a"], {"channels": 5, "exact": True})
    with pytest.raises(bk.PlanError, match="'exact' needs levels"):
        PackedModel([(5,)], [spec])
