"""Tiles of population counts beside NumPy: every number of words, windows, vectors and joins."""

import itertools

import numba
import numpy as np
import pytest
from bnn_kernels.compile.isa import isa
from bnn_kernels.compile.simd.count_tiles import count_tile

SAVES = [False, pytest.param(True, marks=pytest.mark.skipif(isa() != "avx512", reason="needs AVX-512"))]


@pytest.mark.parametrize("saves", SAVES)
@pytest.mark.parametrize("join", ["xor", "and", "masked"])
@pytest.mark.parametrize(("windows", "vectors", "adds"), [(1, 2, False), (4, 1, True), (8, 2, False), (8, 2, True)])
def test_a_tile_counts_what_numpy_counts(windows, vectors, adds, join, saves):
    if saves and join == "masked":
        with pytest.raises(ValueError, match="word by word"):
            count_tile(windows, vectors, join, adds, saves)
        return
    tile = count_tile(windows, vectors, join, adds, saves)

    @numba.njit
    def run(rows, offsets, begin, first, plane, w, j, apart, mask, factor, sums):
        tile(rows, offsets, begin, first, plane, w, j, apart, mask, factor, sums)

    rng = np.random.default_rng(windows + adds)
    for words, density in itertools.product([*range(1, 10), 18, 36, 73], [0.5, 1.0]):
        rows = rng.integers(0, 2**64, 500, np.uint64)
        w = rng.integers(0, 2**64, 2 * vectors * words * 8 + 8, np.uint64)
        if density == 1.0:  # every place has a carry
            rows[:], w[:] = 2**64 - 1, 0 if join == "xor" else 2**64 - 1
        offsets = np.sort(rng.choice(200, words, replace=False)).astype(np.uint64)
        begin = rng.integers(0, 200, windows + 3).astype(np.uint64)
        before = rng.integers(-(2**20), 2**20, (windows, vectors, 8)).astype(np.int32)
        plane, j, apart, mask = 77, 3, words * 8, vectors * words * 8
        sums = before.copy()
        given = [np.uint64(value) for value in (plane, j, apart, mask)]
        run(rows, offsets, begin, np.uint64(2), given[0], w, *given[1:], np.int32(-5), sums.reshape(-1))
        x = rows[begin[2 : 2 + windows, None].astype(int) + plane + offsets.astype(int)]
        filters, kept = (w[start:][: vectors * words * 8].reshape(vectors, words, 8) for start in (j, j + mask))
        x, filters, kept = x[:, None, :, None], filters[None], kept[None]
        joined = {"xor": x ^ filters, "and": x & filters, "masked": (x ^ filters) & kept}[join]
        counts = np.bitwise_count(joined).sum(2, dtype=np.int64)
        np.testing.assert_array_equal(sums, before - 5 * counts if adds else counts)
