"""Direct FP32 convolution against the plain reference in float64."""

import numpy as np
import pytest
from bnn_kernels import reference
from bnn_kernels.ops.float_conv import FloatConv2d


def convolve(x, w, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, pad=0.0):
    expected = reference.conv2d(x.astype(np.float64), w.astype(np.float64), stride, padding, dilation, groups, pad)
    if bias is not None:
        expected = expected + bias[:, None, None]
    geometry = (*w.shape[2:], *stride, *padding[:2], *dilation, *padding[2:])
    conv = FloatConv2d(w, bias, geometry, groups, pad)
    found = conv(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), expected.shape[2:]).transpose(0, 3, 1, 2)
    assert found.dtype == np.float32
    # Float32 sums of K products of magnitude about 1 are off by at most about K * 2^-24.
    np.testing.assert_allclose(found, expected, rtol=0, atol=w[0].size * 4e-6)


@pytest.mark.parametrize("filters", [1, 7, 8, 9, 15, 16, 17, 20, 24, 33])
@pytest.mark.parametrize("channels", [1, 3, 8])
def test_filters_around_vector_edges(filters, channels):
    rng = np.random.default_rng(filters)
    x = rng.standard_normal((2, channels, 6, 7)).astype(np.float32)
    w, bias = (rng.standard_normal(s).astype(np.float32) for s in ((filters, channels, 3, 3), filters))
    convolve(x, w, bias)


@pytest.mark.parametrize("width", range(1, 10))
def test_maps_narrower_and_wider_than_a_tile(width):
    rng = np.random.default_rng(width)
    x = rng.standard_normal((3, 4, 5, width)).astype(np.float32)
    convolve(x, rng.standard_normal((18, 4, 3, 1)).astype(np.float32))


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2), (3, 0), (0, 0, 1, 1), (2, 1, 0, 3)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize(("channels", "groups", "filters"), [(6, 1, 10), (6, 2, 20), (6, 6, 6), (6, 3, 27)])
@pytest.mark.parametrize("pad", [0.0, -1.0])
def test_every_geometry(stride, padding, dilation, channels, groups, filters, pad):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, channels, 9, 11)).astype(np.float32)
    w = rng.standard_normal((filters, channels // groups, 3, 3)).astype(np.float32)
    convolve(x, w, None, stride, padding, dilation, groups, pad)


def test_pointwise_is_a_matrix_product():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 5, 4, 3)).astype(np.float32)
    w, bias = rng.standard_normal((9, 5, 1, 1)).astype(np.float32), rng.standard_normal(9).astype(np.float32)
    convolve(x, w, bias)
    convolve(x, w, bias, stride=(2, 2))


def test_empty_batch():
    convolve(np.zeros((0, 3, 5, 5), np.float32), np.ones((4, 3, 3, 3), np.float32))


def test_threads_do_not_change_the_result(monkeypatch):
    import bnn_kernels as bk

    monkeypatch.setattr("bnn_kernels.runtime.threads.MIN_WORK_PER_THREAD", 1)
    monkeypatch.setattr("bnn_kernels.runtime.threads.MIN_WORK_TO_WAKE", 1)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 12, 13, 3)).astype(np.float32)
    conv = FloatConv2d(rng.standard_normal((20, 3, 5, 5)).astype(np.float32), None, (5, 5, 1, 1, 0, 0, 1, 1))
    before = bk.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            bk.set_num_threads(threads)
            results.append(conv(x, (8, 9)))
    finally:
        bk.set_num_threads(before)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
