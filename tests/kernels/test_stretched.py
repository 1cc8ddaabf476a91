"""Sums, products and quotients with stretched sides, and what is taken over channels, beside NumPy."""

import itertools

import numpy as np
import pytest
from bnn_kernels.ops.over_channels import LONG, absmax, normalize
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


def test_nothing_of_no_rows():
    absmax(np.empty((0, 5), np.float32), np.empty((0, 1), np.float32), np.float32(1), np.float32(7))


@pytest.mark.parametrize("count", [1, 63, LONG, LONG + 1, 2 * LONG - 1, 3 * LONG + 5, 10 * LONG])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_largest_of_long_rows(count, threads, monkeypatch):
    for name, value in (("MIN_WORK_PER_THREAD", 1), ("MIN_WORK_TO_WAKE", 1), ("_threads", threads)):
        monkeypatch.setattr(f"bnn_kernels.runtime.threads.{name}", value)
    rng = np.random.default_rng(count)
    x = rng.standard_normal((3, count)).astype(np.float32)
    x[:, rng.integers(count, size=2)] *= -100
    largest = np.empty((3, 1), np.float32)
    absmax(x, largest, np.float32(1e-3), np.float32(7))
    np.testing.assert_array_equal(largest[:, 0], np.abs(x).max(1) / np.float32(7))
    for place in (0, count // 2, count - 1):
        strange = x.copy()
        strange[1, place], strange[2, place] = np.float32(-np.nan), -np.inf
        absmax(strange, largest, np.float32(1e-3), np.float32(7))
        assert largest[0] == np.abs(x[0]).max() / np.float32(7)
        assert np.isnan(largest[1])
        assert largest[2] == np.inf
