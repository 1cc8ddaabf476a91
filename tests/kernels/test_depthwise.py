"""Depthwise convolutions, whose lanes are channels of all groups, against other kernels and the plain reference."""

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels import reference
from bnn_kernels.ops import float_conv
from bnn_kernels.ops.depthwise.windows import Filter, suits, windows_of
from bnn_kernels.ops.float_conv import FloatConv2d

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
