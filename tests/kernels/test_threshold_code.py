"""Thresholds as residuals: the same integers back, and smaller."""

import numpy as np
import pytest
from bnn_kernels import PlanError
from bnn_kernels.bits.threshold_storage import compress, expand

INT32 = np.iinfo(np.int32)


@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("levels", [2, 3, 8, 9, 16, 255])
def test_the_same_integers_come_back(levels, falling):
    rng = np.random.default_rng(levels)
    first = rng.integers(-(10**6), 10**6, 40)
    step = rng.uniform(0.1, 9000, 40) * (-1 if falling else 1)
    t = np.rint(first + np.arange(levels)[:, None] * step + rng.normal(0, 2, (levels, 40))).astype(np.int32)
    t[:, 3] = INT32.min
    t[:, 4] = INT32.max
    stored = compress(t)
    if "thresholds" in stored:
        np.testing.assert_array_equal(stored["thresholds"], t)
    else:
        np.testing.assert_array_equal(expand(stored["threshold_ends"], stored["threshold_residuals"]), t)
    if levels == 255:
        assert sum(tensor.nbytes for tensor in stored.values()) < t.nbytes / 3.5


def test_uneven_thresholds_are_stored_as_they_are():
    t = np.sort(np.random.default_rng(0).integers(-(10**5), 10**5, (20, 3)), axis=0).astype(np.int32)
    assert list(compress(t)) == ["thresholds"]


def test_forged_residuals_are_refused():
    ends = np.full((2, 3), INT32.max, np.int32)
    with pytest.raises(PlanError, match="32 bits"):
        expand(ends, np.ones((9, 3), np.int8))
    with pytest.raises(PlanError, match="no thresholds"):
        expand(ends, np.ones((1, 3), np.int8))
