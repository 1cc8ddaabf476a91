"""Depthwise convolutions, whose lanes are channels of all groups, against other kernels and the plain reference."""

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels import reference
from bnn_kernels.bits.level_bytes import SLACK, as_planes, bytes_of_codes, fit_bytes, new_level_bytes
from bnn_kernels.bits.planes import level_of_code
from bnn_kernels.bits.quantize import in_order
from bnn_kernels.bits.storage import to_dense_bits
from bnn_kernels.bits.sum_range import LARGEST_SUM
from bnn_kernels.bits.tensor import unpack_codes
from bnn_kernels.bits.zero_points import ZeroPoints
from bnn_kernels.compile.isa import has
from bnn_kernels.ops import float_conv
from bnn_kernels.ops.depthwise.levels import DepthwisePath, channel_forms, room_for
from bnn_kernels.ops.depthwise.windows import Filter, suits, windows_of
from bnn_kernels.ops.filters import Filters
from bnn_kernels.ops.float_conv import FloatConv2d
from bnn_kernels.ops.geometry import Maps
from bnn_kernels.ops.packed_layers import choice

# (groups, channels and filters of a group): around vector edges, with several filters to a channel and the reverse.
GROUPS = [(1 + c, 1, 1) for c in (1, 6, 7, 8, 15, 16, 23, 24, 31, 63)] + [(5, 1, 3), (8, 1, 2), (6, 2, 2), (11, 3, 7)]
# Kernel, stride, padding and dilation; some filters lie outside the map altogether at some positions.
GEOMETRIES = [
    ((3, 3), (1, 1), (1, 1), (1, 1)),
    ((3, 3), (2, 2), (1, 1), (1, 1)),
    ((5, 2), (1, 3), (0, 1), (1, 2)),
    ((7, 7), (1, 1), (3, 3), (1, 1)),
    ((1, 1), (2, 1), (2, 2), (1, 1)),
    ((2, 3), (1, 1), (4, 5), (3, 2)),
]


def test_each_position_is_written_once():
    for filter_ in GEOMETRIES:
        filter_ = Filter(*filter_)
        sides = zip((9, 11), filter_.kernel, filter_.stride, filter_.padding, filter_.dilation, strict=True)
        out = tuple((e + 2 * p - d * (k - 1) - 1) // s + 1 for e, k, s, p, d in sides)
        windows = windows_of((9, 11), out, filter_, 8, 1, 8)
        tiles, ends = windows.places.reshape(-1, 6), windows.ends.reshape(-1, 2)
        written = [place for tile, (first, end) in zip(tiles, ends, strict=True) for place in tile[first:end]]
        assert sorted(written) == list(range(out[0] * out[1]))


@pytest.mark.parametrize("sizes", GROUPS)
def test_floats_are_those_of_the_other_kernel(sizes, monkeypatch):
    """The order of the sums is the same, so the numbers are; also of signs, and with a residual."""
    groups, channels, filters = sizes
    assert suits(*sizes)
    rng = np.random.default_rng(groups)
    for filter_ in GEOMETRIES:
        x = rng.standard_normal((2, groups * channels, 9, 11)).astype(np.float32)
        w = rng.standard_normal((groups * filters, channels, *filter_[0])).astype(np.float32)
        for pad in (0.0, -1.5):
            expected = reference.conv2d(x.astype(np.float64), w.astype(np.float64), *filter_[1:], groups, pad)
            out, last = expected.shape[2:], np.ascontiguousarray(x.transpose(0, 2, 3, 1))
            conv = FloatConv2d(w, None, sum(map(tuple, filter_), ()), groups, pad)
            found = conv(last, out)
            np.testing.assert_allclose(found.transpose(0, 3, 1, 2), expected, rtol=0, atol=w[0].size * 4e-6)
            monkeypatch.setattr(float_conv, "suits", lambda *sizes: False)
            other = FloatConv2d(w, None, sum(map(tuple, filter_), ()), groups, pad)
            monkeypatch.undo()
            np.testing.assert_array_equal(found, other(last, out))
        o = groups * filters
        norm = {"norm_scale": rng.random(o, np.float32), "norm_shift": rng.random(o, np.float32)}
        epilogue = bk.Epilogue(o, **norm, residual="before", low=-1.0, bounds=np.zeros(o, np.float32))
        rest = rng.random(found.shape, np.float32)
        (floats, bits), (other_floats, other_bits) = (one.finish(last, out, epilogue, rest) for one in (conv, other))
        np.testing.assert_array_equal(floats, other_floats)
        np.testing.assert_array_equal(bits.words, other_bits.words)


def test_threads_do_not_change_floats(monkeypatch):
    monkeypatch.setattr("bnn_kernels.runtime.threads.MIN_WORK_PER_THREAD", 1)
    monkeypatch.setattr("bnn_kernels.runtime.threads.MIN_WORK_TO_WAKE", 1)
    rng = np.random.default_rng(3)
    x, w = rng.random((3, 9, 11, 32), np.float32), rng.random((32, 1, 3, 3), np.float32)
    conv = FloatConv2d(w, None, (3, 3, 1, 1, 1, 1, 1, 1), 32)
    before = bk.get_num_threads()
    try:
        bk.set_num_threads(1)
        expected = conv(x, (9, 11))
        bk.set_num_threads(3)
        for _ in range(20):
            np.testing.assert_array_equal(conv(x, (9, 11)), expected)
    finally:
        bk.set_num_threads(before)


def test_no_images_give_no_output():
    conv = FloatConv2d(np.ones((8, 1, 3, 3), np.float32), None, (3, 3, 1, 1, 1, 1, 1, 1), 8)
    assert conv(np.zeros((0, 5, 5, 8), np.float32), (5, 5)).shape == (0, 5, 5, 8)


def planes(bits, signed=False):
    """Unsigned codes, or numbers in two's complement."""
    return (*(1 << p for p in range(bits - 1)), -(1 << (bits - 1)) if signed else 1 << (bits - 1)), False


SIGNS, TERNARY, UNEVEN = ((1,), True), ((1, -1), False), ((3, -600, 1), False)
# (input, weight): small sums, bytes by bytes at their ends, odd levels of eight bits, levels beyond a byte.
OPERANDS = [
    (SIGNS, SIGNS),
    (SIGNS, TERNARY),
    (planes(2), planes(2, True)),
    (planes(4, True), planes(4, True)),
    (planes(8), TERNARY),
    (planes(8), planes(4, True)),
    (planes(8, True), planes(8, True)),
    (planes(8), planes(8)),
    (((1, 2, 4, 8, 16, 32, 64, 128), True), ((1, 2, 4, 8, 16, 32, 64, 128), True)),
    (UNEVEN, planes(3)),
    (planes(3), UNEVEN),
]
# (taps at a time, bits of the instruction that multiplies them), of those that this CPU has: the best is last.
WAYS = [(1, 0), (2, 0), (4, 0)] + [
    way for way, feature in (((2, 256), "avx2"), ((2, 512), "avx512bw"), ((4, 512), "avx512vnni")) if has(feature)
]


def draw(rng, operand, shape):
    """Levels of all kinds, and half the time those at the ends alone."""
    values = level_of_code(*operand)
    return rng.choice(values if rng.integers(2) else [values.min(), values.max()], shape)


def holds(operands, taps):
    """Whether the form of so many taps at a time holds such levels."""
    (x, x_signed), (w, w_signed) = operands
    return taps in channel_forms(Filters((32, 1, 3, 3), w, w_signed, 32), Maps((9, 9), (9, 9), x_signed, x))


def forced(monkeypatch, way):
    """Let layers take the form of so many taps, with this instruction."""
    taps, width = way

    def path(weights, geometry, maps):
        form = channel_forms(weights, maps)[taps]
        return DepthwisePath(weights, geometry, maps, form._replace(width=width))

    monkeypatch.setattr(choice, "path_for", path)


def check_levels(rng, operands, sizes, filter_, pad_value, all_outputs):
    """Layers of these (groups, channels, filters) give the reference's integers, or all outputs made of them."""
    (groups, channels, filters), (x_planes, w_planes) = sizes, operands
    o = groups * filters
    x = draw(rng, x_planes, (2, groups * channels, 9, 11))
    w = draw(rng, w_planes, (o, channels, *filter_[0]))
    geometry = dict(zip(("stride", "padding", "dilation"), filter_[1:], strict=True)) | {"groups": groups}
    expected = reference.conv2d(x, w, **geometry, pad_value=pad_value)
    conv = bk.PackedConv2d.from_levels(w, *w_planes, **geometry, pad_value=pad_value)
    bits = bk.pack_levels(x, *x_planes)
    given = [bits]
    if len(x_planes[0]) > 1 and fit_bytes(*x_planes):
        given.append(new_level_bytes(bits.shape, bits.signed, bits.multipliers))
        given[1].u[...] = bytes_of_codes(*x_planes)[unpack_codes(bits)]
        given[1].data[len(given[1].data) - SLACK :] = 255
    last = np.ascontiguousarray(expected.transpose(0, 2, 3, 1)).astype(np.int32)
    t, flip = rng.choice(last.reshape(-1), (3, o)).astype(np.int32), rng.random(o) < 0.5
    scale, rest = rng.standard_normal(o).astype(np.float32), rng.random(last.shape, np.float32)
    signs = bk.Epilogue(o, scale=scale, residual="after", low=0.0, bounds=scale / 2, flip=flip)
    made = bk.UniformLevels(0.5, False, 0, 15, 4)
    for levels in given:
        np.testing.assert_array_equal(conv(levels), expected)
        if not all_outputs:
            continue
        found = conv.with_threshold(t[0], flip)(levels).words[0]
        np.testing.assert_array_equal(found, reference.pack_words(reference.threshold(expected, t[0], flip)))
        ordered = in_order(t, flip)
        several = conv.with_thresholds(ordered, flip, np.arange(4, dtype=np.uint8), False, (1, 2))(levels)
        np.testing.assert_array_equal(bk.unpack(several), reference.thresholds(expected, ordered, flip))
        (floats, bits), (plain, plain_bits) = conv.finish(levels, signs, rest), signs.apply_reference(last, rest)
        np.testing.assert_array_equal(floats, plain)
        np.testing.assert_array_equal(bits.words, plain_bits.words)
        _, wanted = bk.Epilogue(o, scale=scale, levels=made).apply_reference(last)
        for as_bytes in (False, True):
            _, found = conv.finish(levels, bk.Epilogue(o, scale=scale, levels=made, as_bytes=as_bytes), keep=False)
            np.testing.assert_array_equal(bk.unpack(as_planes(found)), bk.unpack(wanted))


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("operands", OPERANDS)
def test_integers_are_exact(operands, way, monkeypatch):
    check_all_sizes(operands, way, False, monkeypatch)


# Each kind of output is a kernel to compile: not of a portable instruction where there is another.
@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("way", [way for way in WAYS if way == max(w for w in WAYS if w[0] == way[0])])
@pytest.mark.parametrize("operands", OPERANDS)
def test_all_outputs_are_exact(operands, way, monkeypatch):
    check_all_sizes(operands, way, True, monkeypatch)


def check_all_sizes(operands, way, all_outputs, monkeypatch):
    if not holds(operands, way[0]):
        pytest.skip("levels that do not fit")
    forced(monkeypatch, way)
    rng = np.random.default_rng(0)
    pad_values = [0, *(int(level_of_code(*operands[0])[code]) for code in (0, -1))]
    for i, sizes in enumerate(GROUPS[1::2] if way[1] else GROUPS):
        check_levels(rng, operands, sizes, GEOMETRIES[i % len(GEOMETRIES)], pad_values[i % 3], all_outputs)
    for filter_ in GEOMETRIES:
        check_levels(rng, operands, (24, 1, 1), filter_, pad_values[1], all_outputs)


@pytest.mark.parametrize("way", [way for way in WAYS if way[0] == 2])
@pytest.mark.parametrize("most", [1 << 14, (1 << 15) - 1])
def test_sums_near_the_end_of_int32(most, way, monkeypatch):
    """Two products of the largest levels are just below 2^31, or eight of levels half as large."""
    forced(monkeypatch, way)
    taps = (1, 2) if most > 1 << 14 else (2, 4)
    for sign_x, sign_w in ((1, 1), (1, -1), (-1, -1)):
        x, w = np.full((1, 8, 4, 5), sign_x * most), np.full((8, 1, *taps), sign_w * most)
        w[1::2, :, 0, 0] *= -1
        if most * most * w[0].size > LARGEST_SUM:
            w = w // 2
        conv = bk.PackedConv2d.from_levels(w, (int(np.abs(w).max()),), True, groups=8)
        levels = bk.pack_levels(x, (most,), True)
        expected = reference.conv2d(x, w, groups=8)
        assert np.abs(expected).max() > 0.98 * LARGEST_SUM / (1 if taps == (1, 2) else 2)
        np.testing.assert_array_equal(conv(levels), expected)
        if way == max(w for w in WAYS if w[0] == 2):
            found = conv.with_threshold(np.zeros(8, np.int32), np.zeros(8, bool))(levels)
            np.testing.assert_array_equal(bk.unpack(found) < 0, expected < 0)


@pytest.mark.parametrize("w_bits", [2, 4, 5, 6])
def test_sums_of_16_bits_are_emptied_before_they_overflow(w_bits, monkeypatch):
    """Every product has the largest magnitude, so that one more of them would not fit."""
    forced(monkeypatch, (1, 0))
    largest = 1 << (w_bits - 1)
    assert 255 * largest * room_for(255, largest) <= 32_767 < 255 * largest * (room_for(255, largest) + 1)
    x, w = np.full((1, 20, 9, 11), 255), np.full((20, 1, 7, 7), -largest)
    conv = bk.PackedConv2d.from_levels(w, *planes(w_bits, True), groups=20, padding=3)
    np.testing.assert_array_equal(conv(bk.pack_levels(x, *planes(8))), reference.conv2d(x, w, groups=20, padding=3))


def test_which_layers_take_them():
    """Few channels and filters to a group, whatever the number of planes; not where 16 bits do not hold a level."""
    maps = Maps((9, 9), (9, 9), *planes(8)[::-1])
    for sizes, taken in (
        ((32, 1, 1), True),
        ((8, 3, 7), True),
        ((8, 4, 4), False),
        ((8, 1, 8), False),
        ((1, 1, 1), False),
    ):
        groups, channels, filters = sizes
        chosen = choice.choose(Filters((groups * filters, channels, 3, 3), *planes(4, True), groups), maps)
        assert chosen.name.startswith("depthwise") == taken
        assert "groups of" in chosen.why or not taken
    large = Filters((32, 1, 3, 3), (1 << 15,), True, 32)
    assert choice.choose(large, maps).name == "population counts"
    with pytest.raises(ValueError, match="pad_value 7"):
        conv = bk.PackedConv2d(np.ones((8, 1, 3, 3)), groups=8, padding=1, pad_value=7)
        conv(np.ones((1, 8, 5, 5)))


def test_zero_points_of_channels(monkeypatch):
    forced(monkeypatch, WAYS[-1])
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (2, 20, 9, 11)), rng.integers(-64, 64, (20, 1, 3, 3))
    zero = ZeroPoints(64, tuple(int(z) for z in rng.integers(-100, 64 * 255, 20)))
    codes = (w & 127).astype(np.uint8)
    conv = bk.PackedConv2d.from_codes(codes, *planes(7, True), padding=1, groups=20, zero=zero)
    real = 64 * x - np.array(zero.points)[:, None, None]
    np.testing.assert_array_equal(conv(bk.pack_levels(x, *planes(8))), reference.conv2d(real, w, padding=1, groups=20))
    with choice.force("counts"):
        assert choice.choose(conv.weights, Maps((9, 11), (9, 11), *planes(8)[::-1])).name == "population counts"


def test_a_plan_runs_them_and_says_so():
    """Ternary weights behind floats are the float32 weights that they stand for, to the last bit."""
    rng = np.random.default_rng(0)
    codes, scale = rng.integers(0, 3, (16, 1, 3, 3)).astype(np.uint8), rng.random(16, np.float32)
    sides = {"shape": [16, 1, 3, 3], "stride": [2, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 16}
    weight = level_of_code(*TERNARY)[codes].astype(np.float32) * scale[:, None, None, None]
    terms = [{"signed": False, "multipliers": [1, -1]}]
    of_bits = {"bits.0": to_dense_bits(codes, 2), "scale.0": scale}
    convs = (sides, {"weight": weight}), (sides | {"terms": terms}, of_bits)
    x = rng.standard_normal((2, 16, 9, 11)).astype(np.float32)
    found = []
    for attrs, tensors in convs:
        model = bk.PackedModel(
            (16, 9, 11), [bk.StepSpec("float_conv", ["x"], ["y"], attrs | {"pad_value": 0.0}, tensors)]
        )
        assert "float32, depthwise" in model.summary()
        found.append(model(x))
    np.testing.assert_array_equal(*found)
    np.testing.assert_allclose(found[0], reference.conv2d(x, weight, (2, 1), 1, 1, 16), rtol=0, atol=1e-5)
    signs = {
        "thresholds": np.zeros((1, 16), np.float32),
        "flip": np.zeros(16, bool),
        "codes": np.array([1, 0], np.uint8),
    }
    pack = bk.StepSpec("pack", ["x"], ["a"], {"signed": True, "multipliers": [1]}, signs)
    attrs = sides | {"terms": terms, "pad_level": 0, "output": "int"}
    conv = bk.StepSpec("binary_conv", ["a"], ["y"], attrs, {"bits.0": of_bits["bits.0"]})
    model = bk.PackedModel((16, 9, 11), [pack, conv])
    bits = 32 if (4, 512) in WAYS else 16
    assert f"depthwise products, sums of {bits} bits: 16 groups of 1 to 1 channels" in model.summary()
    levels = level_of_code(*TERNARY)[codes]
    for _ in range(3):  # step by step, recorded, and played back
        np.testing.assert_array_equal(model(x), reference.conv2d(reference.sign(x), levels, (2, 1), 1, 1, 16))
