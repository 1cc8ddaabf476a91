"""Levels as bytes: every writer and every reader, exact against the same levels as bit planes and plain NumPy."""

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels import reference
from bnn_kernels.bits.level_bytes import SLACK, LevelBytes, as_planes, bytes_of_codes, level_code, new_level_bytes
from bnn_kernels.bits.level_quantize import quantize_to_bytes
from bnn_kernels.bits.quantize import in_order
from bnn_kernels.bits.tensor import pack_codes, quantize_channels_last, unpack_codes
from bnn_kernels.ops.filters import Filters
from bnn_kernels.ops.geometry import Maps
from bnn_kernels.ops.integer_conv.form import form_for
from bnn_kernels.ops.packed_layers import choice, costs
from bnn_kernels.steps import pack
from bnn_kernels.steps.base import STEPS
from forced_kernels import FORM_NAMES, force

PLANES = [
    ((1,), True),
    ((1, 2), False),
    ((1, 2, 4, 8), False),
    ((1, 2, 4, -8), False),
    ((1, 2, 4), True),
    ((1, -1), False),
]


def as_bytes(bits):
    """The same levels as bytes, by a table; what is behind them is not 0."""
    made = new_level_bytes(bits.shape, bits.signed, bits.multipliers)
    made.u[...] = bytes_of_codes(bits.multipliers, bits.signed)[unpack_codes(bits)]
    made.data[len(made.data) - SLACK :] = 255
    return made


def random_levels(rng, shape, multipliers, signed):
    side = {2: (1, 1), 3: (1, *shape[2:]), 4: shape[2:]}[len(shape)]
    codes = rng.integers(0, 1 << len(multipliers), (shape[0], *side, shape[1])).astype(np.uint8)
    return bk.BitTensor(pack_codes(codes, len(multipliers)), shape, signed, multipliers)


def same(found, expected):
    """Whether bytes hold the levels of bit planes."""
    assert isinstance(found, LevelBytes)
    assert (found.shape, found.signed, found.multipliers) == (expected.shape, expected.signed, expected.multipliers)
    np.testing.assert_array_equal(bk.unpack(as_planes(found)), bk.unpack(expected))


@pytest.mark.parametrize(("multipliers", "signed"), PLANES)
@pytest.mark.parametrize("shape", [(2, 5), (3, 70, 4), (2, 64, 3, 5), (1, 130, 2, 2)])
def test_bytes_and_planes_are_the_same_levels(shape, multipliers, signed):
    bits = random_levels(np.random.default_rng(0), shape, multipliers, signed)
    made = as_bytes(bits)
    same(made, bits)
    code = level_code(multipliers, signed)
    found = code.factor * made.u.astype(int) + code.shift
    np.testing.assert_array_equal(found.transpose(0, 3, 1, 2).reshape(shape), bk.unpack(bits))
    again = bk.BitTensor(pack_codes(made.codes(), len(multipliers)), shape, signed, multipliers)
    np.testing.assert_array_equal(bk.unpack(again), bk.unpack(bits))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="do not fit a byte"):
        LevelBytes(np.zeros(SLACK + 6, np.uint8), (2, 3), False, (1, 255))
    with pytest.raises(ValueError, match="uint8"):
        LevelBytes(np.zeros(6, np.uint8), (2, 3), False, (1, 2))
    with pytest.raises(ValueError, match="need levels"):
        bk.Epilogue(4, as_bytes=True)


@pytest.mark.parametrize("count", [3, 40])
@pytest.mark.parametrize("channels", [1, 13, 64, 70])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_thresholds(dtype, channels, count):
    """Compared one by one, and searched; rising and falling; codes in any order."""
    rng = np.random.default_rng(count)
    multipliers = (1, 2, 4, 8, 16, 32)
    x = rng.integers(-9, 10, (2, 3, 5, channels)).astype(dtype)
    flip = rng.random(channels) < 0.5
    t = in_order(rng.integers(-9, 10, (count, channels)).astype(dtype), flip)
    codes = rng.permutation(64)[: count + 1].astype(np.uint8)
    given = ((2, channels, 3, 5), t, flip.astype(np.uint8), codes, False, multipliers)
    same(quantize_to_bytes(x, *given), quantize_channels_last(x, *given))
    if dtype is np.float32:
        x[1, 2, 4, -1] = np.nan
        with pytest.raises(ValueError, match="NaN"):
            quantize_to_bytes(x, *given)


@pytest.mark.parametrize(("multipliers", "codes"), [((1,), [1, 0]), ((1, 2), [0, 1, 2, 3]), ((1, 2, -4), [4, 7, 0, 2])])
@pytest.mark.parametrize(("channels", "width"), [(1, 1), (1, 28), (3, 7), (3, 12), (15, 4), (16, 5), (70, 2)])
def test_few_channels_are_packed_as_bytes_side_by_side(channels, width, multipliers, codes, monkeypatch):
    monkeypatch.setattr(pack, "MOST_REPEATED", 40)
    rng = np.random.default_rng(channels)
    signed = multipliers == (1,)
    flip = rng.random(channels) < 0.5
    thresholds = np.sort(rng.integers(-3, 4, (len(codes) - 1, channels)).astype(np.float32), 0)
    attrs = {"signed": signed, "multipliers": list(multipliers)}
    tensors = {"thresholds": thresholds, "flip": flip, "codes": np.array(codes, np.uint8)}
    steps = [STEPS["pack"](attrs, tensors) for _ in range(2)]
    steps[1].as_bytes = True
    x = rng.integers(-4, 5, (2, 3, width, channels)).astype(np.float32)
    same(steps[1].run(x), steps[0].run(x))
    x[1, 2, -1, -1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        steps[1].run(x)


@pytest.mark.parametrize("pad_value", [0, 1, -1])
@pytest.mark.parametrize("weights", [((1,), True), ((1, -1), False)], ids=["binary", "ternary"])
def test_single_planes_of_few_channels_are_multiplied(weights, pad_value, monkeypatch):
    """Where a CPU multiplies them: the same sums as by counting, of bytes and of planes."""
    monkeypatch.setattr(costs, "_FEWEST", dict.fromkeys(costs._FEWEST, (1,) * len(costs.KINDS)))
    monkeypatch.setattr(costs, "_FEWEST_ON", {})
    rng = np.random.default_rng(0)
    multipliers, signed = weights
    for channels, filters, k, options in [
        (1, 20, 5, {}),
        (3, 33, 7, dict(stride=2, padding=3)),
        (8, 5, 3, dict(padding=1)),
    ]:
        values = [-1, 1] if signed else [-1, 0, 1]
        w = rng.choice(values, (filters, channels, k, k))
        x = random_levels(rng, (2, channels, 11, 9), (1,), True)
        expected = reference.conv2d(bk.unpack(x).astype(int), w, **options, pad_value=pad_value)
        conv = bk.PackedConv2d.from_levels(w, multipliers, signed, **options, pad_value=pad_value)
        np.testing.assert_array_equal(conv(as_bytes(x)), expected)
        np.testing.assert_array_equal(conv(x), expected)
        extent, out = (11, 9), expected.shape[2:]
        filters_of = Filters(w.shape, multipliers, signed, 1)
        maps = Maps(extent, out, True, (1,))
        assert choice.choose(filters_of, maps).multiplies == (form_for(filters_of, maps) is not None)
        with choice.force("counts"):
            assert not choice.choose(filters_of, maps).multiplies
            counted = bk.PackedConv2d.from_levels(w, multipliers, signed, **options, pad_value=pad_value)
            np.testing.assert_array_equal(counted(x), expected)


@pytest.mark.parametrize(("bits", "low"), [(2, 0), (4, -8), (8, 0), (8, -128)])
@pytest.mark.parametrize("channels", [1, 13, 64, 70])
def test_epilogue(channels, bits, low):
    rng = np.random.default_rng(bits)
    made = bk.UniformLevels(float(np.float32(0.37)), True, low, low + 2**bits - 1, bits)
    y = (rng.standard_normal((2, 3, 5, channels)) * 2**bits / 3).astype(np.float32)
    floats, planes = bk.Epilogue(channels, low=-20.0, levels=made)(y)
    epilogue = bk.Epilogue(channels, low=-20.0, levels=made, as_bytes=True)
    found = epilogue(y)
    same(found[1], planes)
    np.testing.assert_array_equal(found[0], floats)
    same(epilogue(y, keep=False)[1], planes)
    y[0, 1, 2, -1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        epilogue(y, keep=False)


CONVS = [
    (dict(padding=1), 8, 12, 3),
    (dict(), 5, 30, 3),
    (dict(padding=(0, 2), stride=(2, 1), dilation=(1, 2)), 70, 9, 3),
    (dict(padding=1, groups=3), 12, 15, 3),
    (dict(stride=2), 16, 24, 1),
]


# Sums of shorts lie in registers as those of pairs do; that shorts read bytes, test_sequences_and_flattened_maps shows.
QUICK_FORMS = [pytest.param("shorts", marks=pytest.mark.slow) if name == "shorts" else name for name in FORM_NAMES]


@pytest.mark.parametrize("kernel", ["popcount", "levels", *QUICK_FORMS])
@pytest.mark.parametrize(("multipliers", "signed"), PLANES)
def test_layers_read_and_write_them(kernel, multipliers, signed, monkeypatch):
    force(kernel, monkeypatch)
    rng = np.random.default_rng(0)
    for options, channels, filters, k in CONVS:
        pad_value = int(bk.unpack(random_levels(rng, (1, 1), multipliers, signed))[0, 0]) if channels == 8 else 0
        x = random_levels(rng, (2, channels, 7, 6), multipliers, signed)
        w = rng.integers(-4, 4, (filters, channels // options.get("groups", 1), k, k))
        conv = bk.PackedConv2d.from_levels(w, (1, 2, -4), False, **options, pad_value=pad_value)
        expected = reference.conv2d(bk.unpack(x).astype(int), w, **options, pad_value=pad_value)
        np.testing.assert_array_equal(conv(as_bytes(x)), expected)
        t, flip = np.sort(rng.integers(-30, 30, (3, filters)), 0).astype(np.int32), np.zeros(filters, bool)
        thresholds = bk.Thresholds(t, flip, np.arange(4, dtype=np.uint8), False, (1, 2))
        thresholds.as_bytes = True
        levels = reference.thresholds(expected, t, flip)
        same(conv.to_levels(as_bytes(x), thresholds), bk.pack_levels(levels.astype(int), (1, 2), False))
        made = bk.UniformLevels(0.5, False, 0, 15, 4)
        sums = np.ascontiguousarray(expected.transpose(0, 2, 3, 1)).astype(np.int32)
        floats, planes = bk.Epilogue(filters, levels=made).apply_reference(sums)
        found = conv.finish(as_bytes(x), bk.Epilogue(filters, levels=made, as_bytes=True))
        np.testing.assert_array_equal(found[0], floats)
        same(found[1], planes)


@pytest.mark.parametrize("kernel", ["popcount", "pairs", "shorts"])
def test_sequences_and_flattened_maps(kernel, monkeypatch):
    force(kernel, monkeypatch)
    rng = np.random.default_rng(0)
    x = random_levels(rng, (3, 6, 5), (1, 2, -4), False)
    w = rng.integers(-4, 4, (9, 6, 3))
    conv = bk.PackedConv1d.from_levels(w, (1, 2, -4), False, padding=1)
    np.testing.assert_array_equal(conv(as_bytes(x)), conv(x))
    x = random_levels(rng, (3, 6, 2, 5), (1, 2, -4), False)
    w = rng.integers(-4, 4, (9, 60))
    linear = bk.PackedLinear.from_levels(w, (1, 2, -4), False)
    np.testing.assert_array_equal(linear(as_bytes(x)), bk.unpack(x).reshape(3, 60).astype(int) @ w.T)


def test_a_map_without_a_border_is_not_copied():
    from bnn_kernels.ops.geometry import Frame
    from bnn_kernels.ops.integer_conv.levels import elements_of_bytes

    x = as_bytes(random_levels(np.random.default_rng(0), (1, 8, 4, 4), (1, 2, 4, 8), False))
    assert np.shares_memory(elements_of_bytes(x, Frame(0, 0, 0, 0), np.int8, 0), x.data)
    assert not np.shares_memory(elements_of_bytes(x, Frame(0, 1, 0, 0), np.int8, 0), x.data)
