"""Products of levels: what is theirs alone beside the tests that run on all kernels."""

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels import reference
from bnn_kernels.runtime import threads
from forced_kernels import FORMS, force

FOUR_BITS = ((1, 2, 4, 8), False)


@pytest.mark.parametrize("kernel", FORMS)
def test_threads_write_their_own_rows(kernel, monkeypatch):
    """A pixel of few channels is written as 64 numbers: none of them may be another thread's."""
    force(kernel, monkeypatch)
    monkeypatch.setattr(threads, "MIN_WORK_PER_THREAD", 1)
    monkeypatch.setattr(threads, "MIN_WORK_TO_WAKE", 1)
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 16, (8, 5, 30, 6)), rng.integers(0, 16, (8, 5, 3, 3))
    bits, conv = bk.pack_levels(x, *FOUR_BITS), bk.PackedConv2d.from_levels(w, *FOUR_BITS, padding=1)
    expected = reference.conv2d(x, w, padding=1)
    before = bk.get_num_threads()
    bk.set_num_threads(2)
    try:
        for _ in range(60):
            np.testing.assert_array_equal(conv(bits), expected)
    finally:
        bk.set_num_threads(before)
