"""Sums, products and quotients with stretched sides, and what is taken over channels, beside NumPy."""

import itertools

import numpy as np
import pytest
from bnn_kernels.ops.over_channels import absmax, normalize
from bnn_kernels.ops.stretched import combine

FUNCTIONS = {"add": np.add, "multiply": np.multiply, "divide": np.divide}


@pytest.mark.parametrize("shape", [(1, 5), (3, 7), (1, 1, 1, 19), (2, 3, 4, 5), (1, 4, 8, 1), (3, 1, 6, 2)])
def test_every_way_to_stretch(shape):
    rng, done = np.random.default_rng(0), 0
    kept = list(itertools.product((False, True), repeat=len(shape)))
    for first, second in itertools.product(kept, kept):
        if not first[0] or not all(map(any, zip(first, second, strict=True))):
            continue
        sides = [[side if keep else 1 for side, keep in zip(shape, keeps, strict=True)] for keeps in (first, second)]
        a, b = (rng.standard_normal(side).astype(np.float32) for side in sides)
        for kind, function in FUNCTIONS.items():
            out = np.full(shape, 7, np.float32)
            if combine(kind, a, b, out):
                np.testing.assert_array_equal(out, function(a, b))
                done += 1
            else:
                assert (out == 7).all()
    assert done >= 18


@pytest.mark.parametrize("shape", [(2, 1), (3, 7), (1, 2, 3, 8), (2, 3, 4, 37)])
def test_what_is_taken_over_channels(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 3 + 1
    wide, y = x.astype(np.float64), np.empty_like(x)
    for center in (True, False):
        normalize(x, y, np.float32(1e-5), center)
        centered = wide - wide.mean(-1, keepdims=True) if center else wide
        expected = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    largest = np.empty((*shape[:-1], 1), np.float32)
    absmax(x, largest, np.float32(2), np.float32(127))
    np.testing.assert_array_equal(largest[..., 0], np.maximum(np.abs(x).max(-1), 2) / np.float32(127))
    x.flat[0] = np.nan
    absmax(x, largest, np.float32(2), np.float32(127))
    assert np.isnan(largest).sum() == np.isnan(largest.flat[0]) == 1
