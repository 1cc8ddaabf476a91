"""Binary and bit-serial convolution: exact against the reference over shapes around every edge."""

import functools
import threading

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels import reference
from bnn_kernels.bits.level_bytes import bytes_of_codes, new_level_bytes
from bnn_kernels.bits.tensor import unpack_codes
from forced_kernels import FORMS, KERNELS, force
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

INT32 = np.iinfo(np.int32)

# (multipliers, signed, levels): the kinds of operands that methods make.
SIGNS = ((1,), True, (-1, 1))
ZERO_ONE = ((1,), False, (0, 1))
TERNARY = ((1, -1), False, (-1, 0, 1))
UNEVEN = ((3, -6, 1), False, (-6, -5, -3, -2, 0, 1, 3, 4))
TWO_BITS = ((1, 2), False, (0, 1, 2, 3))
THREE_BIT_WEIGHTS = ((1, 2, 4), True, tuple(range(-7, 8, 2)))
KINDS = {"signs": SIGNS, "zero_one": ZERO_ONE, "ternary": TERNARY, "two_bits": TWO_BITS, "weights3": THREE_BIT_WEIGHTS}
KINDS["uneven"] = UNEVEN


@pytest.fixture(autouse=True, params=KERNELS)
def _kernel(request, monkeypatch):
    """Every test runs on every kernel that the CPU can run."""
    force(request.param, monkeypatch)
    return request.param


def draw(rng, kind, *shape):
    return rng.choice(KINDS[kind][2], shape)


@functools.cache
def expected_of(x, w, geometry):
    """The reference's integers of arrays given as (bytes, type, shape)."""
    x, w = (np.frombuffer(content, kind).reshape(shape) for content, kind, shape in (x, w))
    dots = reference.conv2d(x, w, **dict(geometry))
    dots.flags.writeable = False
    return dots


def convolve(x, w, **geometry):
    """reference.conv2d, which is slow: once for all kernels."""
    x, w = ((a.tobytes(), a.dtype.str, a.shape) for a in (x, w))
    return expected_of(x, w, tuple((name, value) for name, value in geometry.items()))


def check(x, w, a_kind="signs", w_kind="signs", **geometry):
    """The convolution of packed levels equals the reference."""
    bits = bk.pack_levels(x, *KINDS[a_kind][:2])
    conv = bk.PackedConv2d.from_levels(w, *KINDS[w_kind][:2], **geometry)
    found = conv(bits)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, convolve(x, w, **geometry))
    return conv, bits


@pytest.mark.parametrize("channels", [1, 2, 7, 31, 32, 33, 63, 64, 65, 127, 129])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5)])
def test_channels_around_word_edges(channels, kernel):
    rng = np.random.default_rng(channels)
    check(draw(rng, "signs", 2, channels, 6, 7), draw(rng, "signs", 5, channels, *kernel), padding=(1, 2))


@pytest.mark.quick_cases(200)
@pytest.mark.parametrize("pad_value", [0, 1, -1])
@pytest.mark.parametrize("padding", [0, 1, 2, (0, 3), (4, 1), (0, 0, 1, 1), (1, 2, 0, 4)])
@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
@pytest.mark.parametrize("dilation", [1, 2, (1, 3)])
def test_every_geometry(pad_value, padding, stride, dilation):
    rng = np.random.default_rng(3)
    x, w = draw(rng, "signs", 2, 20, 8, 9), draw(rng, "signs", 6, 20, 3, 3)
    check(x, w, stride=stride, padding=padding, dilation=dilation, pad_value=pad_value)


@pytest.mark.parametrize(
    ("channels", "groups", "filters"), [(12, 3, 6), (70, 2, 10), (130, 2, 4), (9, 9, 9), (8, 8, 24)]
)
@pytest.mark.parametrize("pad_value", [0, -1])
def test_groups_and_depthwise(channels, groups, filters, pad_value):
    rng = np.random.default_rng(4)
    x, w = draw(rng, "signs", 2, channels, 5, 6), draw(rng, "signs", filters, channels // groups, 3, 3)
    check(x, w, padding=1, groups=groups, pad_value=pad_value)
    check(x, w, stride=2, padding=(0, 1, 2, 0), groups=groups, pad_value=pad_value)


@pytest.mark.parametrize("padding", [(0, 0, 1, 1), (2, 0, 1, 3)])
@pytest.mark.parametrize(("a_kind", "pad_value"), [("signs", 1), ("two_bits", 0), ("two_bits", 3), ("ternary", -1)])
def test_more_padding_behind_the_map_than_before_it(padding, a_kind, pad_value):
    """Of whole words and others: what lies around the map is written by kernels of their own for bits and for bytes."""
    rng = np.random.default_rng(11)
    for channels in (5, 64):
        x, w = draw(rng, a_kind, 2, channels, 6, 7), draw(rng, "ternary", 9, channels, 3, 3)
        geometry = {"stride": 2, "padding": padding, "pad_value": pad_value}
        conv, bits = check(x, w, a_kind, "ternary", **geometry)
        made = new_level_bytes(bits.shape, bits.signed, bits.multipliers)
        made.u[...] = bytes_of_codes(bits.multipliers, bits.signed)[unpack_codes(bits)]
        np.testing.assert_array_equal(conv(made), convolve(x, w, **geometry))


@pytest.mark.parametrize(("own", "groups", "filters"), [(64, 1, 5), (64, 2, 34), (128, 1, 17), (192, 2, 48)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), ((2, 3), 1), (1, (2, 1)), (2, (1, 3))])
def test_channels_that_fill_whole_words(own, groups, filters, stride, dilation):
    """Windows lie whole in the rows of the map, and filters in one block, two, or an odd number of them."""
    rng = np.random.default_rng(own + filters)
    geometry = {"stride": stride, "dilation": dilation, "groups": groups, "padding": (1, 2)}
    for a_kind, w_kind in (("signs", "signs"), ("signs", "ternary"), ("two_bits", "ternary"), ("zero_one", "zero_one")):
        x, w = draw(rng, a_kind, 2, own * groups, 7, 8), draw(rng, w_kind, filters, own, 3, 2)
        check(x, w, a_kind, w_kind, **geometry)
    check(draw(rng, "signs", 1, own * groups, 7, 8), w, "signs", "zero_one", **geometry | {"pad_value": -1})


def test_both_planes_of_a_ternary_weight_are_zero():
    rng = np.random.default_rng(6)
    x, codes = draw(rng, "signs", 2, 70, 5, 5), rng.integers(0, 4, (20, 70, 3, 3)).astype(np.uint8)
    conv = bk.PackedConv2d.from_codes(codes, (1, -1), False, padding=1)
    expected = convolve(x, np.array([0, 1, -1, 0])[codes], padding=1)
    np.testing.assert_array_equal(conv(bk.pack_levels(x, *SIGNS[:2])), expected)


@pytest.mark.parametrize("a_kind", KINDS)
@pytest.mark.parametrize("w_kind", KINDS)
def test_every_pair_of_planes(a_kind, w_kind):
    rng = np.random.default_rng(5)
    x, w = draw(rng, a_kind, 2, 35, 6, 5), draw(rng, w_kind, 7, 35, 3, 3)
    check(x, w, a_kind, w_kind, padding=1, stride=(1, 2))
    check(x, w, a_kind, w_kind, padding=2, pad_value=1)


PAIRS = st.tuples(st.sampled_from(sorted(KINDS)), st.sampled_from(sorted(KINDS)))
# Pairs whose outputs of every sort are compiled for the quick tests. Those of population counts of several planes, and
# of products of shorts, are in test_sum_range.py.
QUICK_PAIRS = [("signs", "signs"), ("two_bits", "ternary")]


@st.composite
def configurations(pick, pairs=PAIRS):
    """Shapes, geometry, kinds of planes and an epilogue, all small and odd."""
    groups = pick(st.sampled_from([1, 1, 2, 3]))
    kernel = pick(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    dilation = pick(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = pick(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    return {
        "size": [max(1, r - 2 * p) + pick(st.integers(0, 5)) for r, p in zip(reach, padding, strict=True)],
        "batch": pick(st.integers(0, 3)),
        "channels": groups * pick(st.integers(1, 70)),
        "filters": groups * pick(st.one_of(st.integers(1, 9), st.integers(30, 70))),
        "kernel": kernel,
        "kinds": pick(pairs),
        "geometry": {
            "stride": pick(st.tuples(st.integers(1, 3), st.integers(1, 3))),
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
        },
        "seed": pick(st.integers(0, 1000)),
    }


def check_configuration(c, pairs=None):
    """Integers, and of these pairs (None: of all) bits behind thresholds and floats behind an epilogue, all exact."""
    rng = np.random.default_rng(c["seed"])
    x = draw(rng, c["kinds"][0], c["batch"], c["channels"], *c["size"])
    w = draw(rng, c["kinds"][1], c["filters"], c["channels"] // c["geometry"]["groups"], *c["kernel"])
    conv, bits = check(x, w, *c["kinds"], **c["geometry"])
    if pairs is not None and c["kinds"] not in pairs:
        return
    dots = convolve(x, w, **c["geometry"])
    t = rng.integers(-20, 20, c["filters"]).astype(np.int32)
    flip = rng.random(c["filters"]) < 0.5
    expected = reference.pack_words(reference.threshold(dots, t, flip))
    np.testing.assert_array_equal(conv.with_threshold(t, flip)(bits).words[0], expected)
    scale = rng.standard_normal(c["filters"]).astype(np.float32)
    epilogue = bk.Epilogue(c["filters"], scale=scale, residual="before", low=0.0, bounds=scale / 2, flip=flip)
    sums = np.ascontiguousarray(dots.transpose(0, 2, 3, 1)).astype(np.int32)
    rest = rng.standard_normal(sums.shape).astype(np.float32)
    floats, signs = conv.finish(bits, epilogue, rest)
    plain, plain_signs = epilogue.apply_reference(sums, rest)
    np.testing.assert_array_equal(floats, plain)
    np.testing.assert_array_equal(signs.words, plain_signs.words)


# The kernel is the same for all examples.
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(c=configurations(st.one_of(PAIRS, st.sampled_from(QUICK_PAIRS))))
def test_random_configurations(_kernel, c):
    # Products read inputs of one plane and of several in the same way.
    pairs = QUICK_PAIRS[1:] if _kernel in FORMS else QUICK_PAIRS
    check_configuration(c, {"popcount": QUICK_PAIRS[:1], "shorts": []}.get(_kernel, pairs))


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, derandomize=True, database=None)
@given(c=configurations())
def test_thousands_of_random_configurations(c):
    check_configuration(c)


def test_float_weights_and_inputs_count_by_sign():
    rng = np.random.default_rng(6)
    x, w = rng.standard_normal((1, 10, 5, 5)).astype(np.float32), rng.standard_normal((4, 10, 3, 3))
    found = bk.PackedConv2d(w, padding=1)(x)
    np.testing.assert_array_equal(found, convolve(reference.sign(x), reference.sign(w), padding=1))


@pytest.mark.parametrize("flip", [False, True, None])
def test_thresholds_to_bits(flip):
    rng = np.random.default_rng(7)
    x, w = draw(rng, "signs", 3, 40, 6, 6), draw(rng, "signs", 70, 40, 3, 3)
    conv, bits = check(x, w, padding=1)
    t = rng.integers(-40, 40, 70).astype(np.int32)
    t[:4] = INT32.min, INT32.max, 0, 1
    flips = rng.random(70) < 0.5 if flip is None else np.full(70, flip)
    found = conv.with_threshold(t, flips)(bits)
    expected = reference.threshold(convolve(x, w, padding=1), t, flips)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.words[0], reference.pack_words(expected))


def test_several_thresholds_to_codes():
    rng = np.random.default_rng(8)
    x, w = draw(rng, "two_bits", 2, 20, 5, 5), draw(rng, "ternary", 66, 20, 3, 3)
    conv, bits = check(x, w, "two_bits", "ternary")
    t = np.sort(rng.integers(-20, 20, (3, 66)), axis=0).astype(np.int32)
    flips = rng.random(66) < 0.5
    codes = np.array([0, 1, 2, 3], np.uint8)
    found = conv.with_thresholds(t, flips, codes, False, (1, 2))(bits)
    np.testing.assert_array_equal(bk.unpack(found), reference.thresholds(convolve(x, w), t, flips))


def test_weights_take_one_bit_each():
    rng = np.random.default_rng(9)
    assert bk.PackedConv2d(rng.standard_normal((5, 3, 3, 3))).nbytes == -(-5 * 27 // 8)
    assert bk.PackedConv2d.from_levels(draw(rng, "ternary", 8, 64, 3, 3), *TERNARY[:2]).nbytes == 2 * 8 * 64 * 9 // 8


def test_thread_counts_and_callers_agree(monkeypatch):
    monkeypatch.setattr("bnn_kernels.runtime.threads.MIN_WORK_PER_THREAD", 1)
    monkeypatch.setattr("bnn_kernels.runtime.threads.MIN_WORK_TO_WAKE", 1)
    rng = np.random.default_rng(10)
    x, w = draw(rng, "signs", 2, 70, 9, 9), draw(rng, "signs", 13, 70, 3, 3)
    expected = convolve(x, w, padding=1)
    conv, bits = bk.PackedConv2d.from_levels(w, padding=1), bk.pack_levels(x)
    before = bk.get_num_threads()
    wrong = []

    def call():
        for _ in range(20):
            if not np.array_equal(conv(bits), expected):
                wrong.append(1)

    try:
        for threads in (1, 2, 5):
            bk.set_num_threads(threads)
            callers = [threading.Thread(target=call) for _ in range(4)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
    finally:
        bk.set_num_threads(before)
    assert not wrong


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2"])
def test_bad_thread_counts_are_refused(n):
    with pytest.raises(ValueError, match="number of threads"):
        bk.set_num_threads(n)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: bk.PackedConv2d(np.ones((4, 3, 3, 3)))(np.ones((1, 5, 6, 6))), ValueError, "5 channels.* 3"),
        (lambda: bk.PackedConv2d(np.ones((4, 3, 3, 3)))(np.ones((1, 3))), ValueError, r"\(1, 3\)"),
        (lambda: bk.PackedConv2d(np.ones((4, 3, 3, 3)))(np.full((1, 3, 4, 4), np.nan)), ValueError, "NaN"),
        (lambda: bk.PackedConv2d(np.ones((4, 3, 3, 3)))(np.ones((1, 3, 2, 2))), ValueError, "does not fit"),
        (lambda: bk.PackedConv2d(np.ones((4, 3, 3))), ValueError, r"\(4, 3, 3\)"),
        (lambda: bk.PackedConv2d(np.ones((4, 3, 3, 3), int)), TypeError, "int64"),
        (lambda: bk.PackedConv2d(np.full((4, 3, 3, 3), np.nan)), ValueError, "NaN"),
        (lambda: bk.PackedConv2d(np.ones((4, 3, 3, 3)), groups=3), ValueError, "groups"),
        (lambda: bk.PackedConv2d(np.ones((4, 3, 3, 3)), stride=0), ValueError, "stride"),
        (lambda: bk.PackedConv2d(np.ones((4, 3, 3, 3)), padding=(1, 2, 3)), ValueError, "padding"),
        (lambda: bk.PackedConv2d(np.ones((4, 3, 3, 3)), pad_value=0.5), ValueError, "pad_value"),
        (
            lambda: bk.PackedConv2d(np.ones((4, 3, 3, 3)), padding=1, pad_value=2)(np.ones((1, 3, 4, 4))),
            ValueError,
            "pad_value 2",
        ),
        (lambda: bk.PackedConv2d.from_levels(np.full((1, 1, 1, 1), 2)), ValueError, "level 2"),
        (lambda: bk.PackedConv2d.from_levels(np.ones((1, 1, 1, 1), int), [1] * 9), ValueError, "1 to 8"),
        (
            lambda: bk.PackedConv2d(np.ones((4, 3, 3, 3))).with_threshold(np.zeros(3, np.int32), np.zeros(3, bool)),
            ValueError,
            "3 thresholds for 4",
        ),
    ],
)
def test_bad_calls_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
