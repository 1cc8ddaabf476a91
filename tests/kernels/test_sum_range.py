"""Sums near the end of int32: exact for every kernel and kind of output just below the limit, refused above it."""

import functools
import os
import subprocess
import sys

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels.bits.planes import level_of_code
from bnn_kernels.bits.storage import to_dense_bits
from bnn_kernels.bits.sum_range import LARGEST_SUM, largest_sum
from bnn_kernels.ops.filters import Filters
from bnn_kernels.ops.geometry import Maps
from forced_kernels import FORM_NAMES, FORMS, KERNELS, force, holds

EIGHT = tuple(1 << p for p in range(8))
KINDS = {"signed": (EIGHT, True), "unsigned": (EIGHT, False)}
# 255 * 255 * 33,025 is the last multiple below 2^31 - 1.
MOST = LARGEST_SUM // (255 * 255)


def levels(rng, kind, *shape):
    """Random levels, and rows at the ends: all largest, all smallest, half and half."""
    x = rng.integers(0, 256, shape)
    x[0], x[1] = 255, 0
    x[2, : shape[1] // 2], x[2, shape[1] // 2 :] = 255, 0
    x[3] = 255 - x[2]
    return 2 * x - 255 if kind == "signed" else x


def check(layer, bits, dot, rng, every_way=True):
    """All ways out of a layer, or integers alone, are right; dot: int64 (N, O) or (N, O, H, W)."""
    assert np.abs(dot).max() <= LARGEST_SUM
    filters = dot.shape[1]
    last = np.moveaxis(dot, 1, -1).reshape(-1, filters)
    np.testing.assert_array_equal(layer(bits), dot)
    if not every_way:
        return
    per_channel = (1, filters, *[1] * (dot.ndim - 2))
    ends = np.iinfo(np.int32)
    for t in (*np.sort(last[rng.integers(0, len(last), 3)]), np.zeros(filters), np.full(filters, ends.max - 1)):
        t = t.astype(np.int64).clip(ends.min, ends.max).astype(np.int32)
        for flip in (np.zeros(filters, bool), np.ones(filters, bool)):
            found = bk.unpack(layer.with_threshold(t, flip)(bits)) < 0
            below = dot < t.reshape(per_channel)
            np.testing.assert_array_equal(found, below ^ flip.reshape(per_channel))
    never, always = (np.full(filters, end, np.int32) for end in (ends.max, ends.min))
    off = np.zeros(filters, bool)
    assert (bk.unpack(layer.with_threshold(never, off)(bits)) == -1).all()
    assert (bk.unpack(layer.with_threshold(always, off)(bits)) == 1).all()
    t = np.sort(last[:3], axis=0).astype(np.int32)
    found = layer.with_thresholds(t, off, np.arange(4, dtype=np.uint8), False, (1, 2))(bits)
    wanted = sum((dot >= row.reshape(per_channel)).astype(int) for row in t)
    np.testing.assert_array_equal(bk.unpack(found), wanted)
    zero = np.zeros(filters, np.float32)
    floats, signs = layer.finish(bits, bk.Epilogue(filters, bounds=zero, flip=off))
    np.testing.assert_array_equal(floats.reshape(-1, filters), last.astype(np.float32))
    np.testing.assert_array_equal(np.moveaxis(bk.unpack(signs), 1, -1).reshape(-1, filters) < 0, last < 0)


# What takes long to draw and to multiply is the same for every kernel.
@functools.cache
def linear_case(a_kind, w_kind, features):
    """Inputs, weights and their int64 products."""
    rng = np.random.default_rng(0)
    x, w = levels(rng, a_kind, 6, features), levels(rng, w_kind, 33, features)
    return bk.pack_levels(x, *KINDS[a_kind]), w, x @ w.T


@functools.cache
def conv_case(a_kind, w_kind, channels):
    """Maps, 3x3 filters and their int64 products, with zeros around the maps."""
    rng = np.random.default_rng(0)
    x, w = levels(rng, a_kind, 4, channels, 3, 3), levels(rng, w_kind, 33, channels, 3, 3)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    dot = np.einsum("nchwij,ocij->nohw", windows, w, optimize=True)
    return bk.pack_levels(x, *KINDS[a_kind]), w, dot


def check_linear(a_kind, w_kind, features):
    bits, w, dot = linear_case(a_kind, w_kind, features)
    check(bk.PackedLinear.from_levels(w, *KINDS[w_kind]), bits, dot, np.random.default_rng(1))


def check_conv(a_kind, w_kind, channels):
    """Corners, edges and the middle of the map have offsets of their own."""
    bits, w, dot = conv_case(a_kind, w_kind, channels)
    check(bk.PackedConv2d.from_levels(w, *KINDS[w_kind], padding=1), bits, dot, np.random.default_rng(1))


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    force(request.param, monkeypatch)
    return request.param


@pytest.mark.quick_cases(16)
@pytest.mark.parametrize("a_kind", KINDS)
@pytest.mark.parametrize("w_kind", KINDS)
@pytest.mark.parametrize("features", [20_000, MOST])
def test_linear_layers(a_kind, w_kind, features, kernel):
    check_linear(a_kind, w_kind, features)


@pytest.mark.quick_cases(16)
@pytest.mark.parametrize("a_kind", KINDS)
@pytest.mark.parametrize("w_kind", KINDS)
def test_convolutions(a_kind, w_kind, kernel):
    check_conv(a_kind, w_kind, MOST // 9)


def codes(bits, last=1):
    """Planes {0,1} of so many bits, of which the last counts `last` times."""
    return (*(1 << p for p in range(bits - 1)), last << (bits - 1)), False


# The widest levels of inputs and weights that a form holds. Two products of pairs and smull must fit 16 bits.
WIDEST = {
    **dict.fromkeys(("vnni16", "vnni8", "usdot", "sdot128"), (codes(8), codes(8, -1))),
    **dict.fromkeys(("pairs", "smull128"), (codes(8), codes(7, -1))),
    **dict.fromkeys(("sdot", "smull"), (codes(7), codes(8, -1))),
    **dict.fromkeys(("shorts", "shorts16"), (((1 << 12, 1 << 11, 3), False), ((1 << 12, 1 << 11, -5), True))),
}


@pytest.mark.parametrize("every_way", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kernel", FORM_NAMES)
@pytest.mark.parametrize("end", [1 << 15, LARGEST_SUM])
def test_products_near_an_end(kernel, end, every_way, monkeypatch):
    """Sums just below and beyond 2^15, and the largest that a layer may have, of levels at their ends and of others.

    Every way out is a kernel to compile; what it does with such sums is asked of other layers above.
    """
    force(kernel, monkeypatch)
    x_planes, w_planes = WIDEST[kernel]
    assert holds(FORMS[kernel][0], Filters((1, 1, 1, 1), *w_planes, 1), Maps((1, 1), (1, 1), *x_planes[::-1]))
    x_levels, w_levels = level_of_code(*x_planes), level_of_code(*w_planes)
    ends = [[levels.min(), levels.max()] for levels in (x_levels, w_levels)]
    most = end // int(np.abs(x_levels).max() * np.abs(w_levels).max())
    rng = np.random.default_rng(0)
    for features in [most] if end == LARGEST_SUM else range(most, most + 4):
        features = max(1, features)
        x, w = rng.choice(x_levels, (6, features)), rng.choice(w_levels, (17, features))
        for rows, levels in zip((x, w), ends, strict=True):
            rows[0], rows[1], rows[2] = *levels, rng.choice(levels, features)
        layer = bk.PackedLinear.from_levels(w, *w_planes)
        dot = x @ w.T
        check(layer, bk.pack_levels(x, *x_planes), dot, rng, every_way)
        for row in range(3):
            np.testing.assert_array_equal(layer(bk.pack_levels(x[row : row + 1], *x_planes)), dot[row : row + 1])
    assert np.abs(dot).max() > 0.98 * end


@pytest.mark.parametrize("isa", bk.cpu_features()["possible"])
def test_on_every_path(isa):
    if isa == bk.cpu_features()["isa"]:
        check_linear("signed", "signed", 20_000)
        check_conv("unsigned", "signed", MOST // 9)
        return
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
    code += "import test_sum_range as t, bnn_kernels as bk\n"
    code += f"assert bk.cpu_features()['isa'] == {isa!r}\n"
    code += "t.check_linear('signed', 'signed', 20_000); t.check_conv('unsigned', 'signed', t.MOST // 9)"
    environment = {**os.environ, "BNN_KERNELS_ISA": isa}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)


@pytest.mark.parametrize("largest", [-(1 << 15), 1 << 15])
def test_large_multipliers(largest, kernel):
    """One product of 2^15 x -2^15: the factor of a count is 2^31."""
    x, w = np.array([[1, -1], [-1, -1]]) * (1 << 15), np.array([[1 << 14, 0]] * 33)
    x, w = x[:, :1], w[:, :1] * 2
    layer = bk.PackedLinear.from_levels(w, (largest,), True)
    check_bits = bk.pack_levels(x, (1 << 15,), True)
    dot = x @ w.T
    np.testing.assert_array_equal(layer(check_bits), dot)
    for t in (0, 1 << 30, -(1 << 30), (1 << 30) + 1, 1 - (1 << 30)):
        threshold = layer.with_threshold(np.full(33, t, np.int32), np.zeros(33, bool))
        np.testing.assert_array_equal(bk.unpack(threshold(check_bits)) < 0, dot < t)


def test_the_limit():
    assert largest_sum(MOST, 255, 255) == MOST * 255 * 255 <= LARGEST_SUM
    assert largest_sum(LARGEST_SUM, 1, 1) == LARGEST_SUM == 2**31 - 2
    for sums in ((MOST + 1, 255, 255), (LARGEST_SUM + 1, 1, 1)):
        with pytest.raises(ValueError, match="can overflow int32"):
            largest_sum(*sums)


@pytest.mark.parametrize(("features", "fits"), [(MOST, True), (MOST + 1, False)])
def test_layers_beyond_the_limit_are_refused(features, fits):
    ones = np.full((1, features), 255)
    calls = [lambda: bk.PackedLinear.from_levels(ones, EIGHT, True)(bk.pack_levels(ones, EIGHT, False))]
    calls.append(lambda: plan(features, "int"))
    calls.append(lambda: plan(features, "float", {"input_offset": True}))
    for call in calls:
        if fits:
            call()
        else:
            with pytest.raises(ValueError, match="can overflow int32"):
                call()


def plan(features, output, more=None):
    """A model of floats to 8 bits to a linear layer of weights -255 and +255."""
    codes = np.arange(256, dtype=np.uint8)
    pack = {"thresholds": np.arange(1, 256, dtype=np.float32)[:, None], "flip": np.zeros(1, bool), "codes": codes}
    unsigned = {"signed": False, "multipliers": list(EIGHT)}
    weight = np.zeros((2, features), np.uint8)  # all planes +1: 255
    weight[1] = 255
    attrs = {"shape": [2, features], "terms": [{"signed": True, "multipliers": list(EIGHT)}], "output": output}
    tensors = {"bits.0": to_dense_bits(weight, 8)}
    if output == "float":
        tensors |= {f"scale.{i}": np.ones(2, np.float32) for i in range(2)}
    steps = [bk.StepSpec("pack", ["x"], ["a"], unsigned, pack)]
    steps.append(bk.StepSpec("binary_linear", ["a"], ["y"], attrs | (more or {}), tensors))
    return bk.PackedModel((features,), steps)


def test_an_input_with_an_offset():
    x = np.full((2, MOST), 255, np.float32)
    x[1, ::2] = 0
    expected = np.float32(1) * (x.sum(1, dtype=np.float64) * 255).astype(np.float32) + np.float32(255 * MOST)
    found = plan(MOST, "float", {"input_offset": True})(x)
    np.testing.assert_array_equal(found, np.stack([expected, -expected], 1))
