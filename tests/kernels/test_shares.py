"""The order of blocks and chunks: all of them once, a thread's range a part of the map."""

import itertools

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels import reference
from bnn_kernels.ops import shares
from bnn_kernels.ops.float_conv import FloatConv2d
from bnn_kernels.ops.shares import LEAST_CHUNKS, parts_of, share_at
from bnn_kernels.runtime import threads as running


@pytest.fixture
def threads():
    before = bk.get_num_threads()
    yield bk.set_num_threads
    bk.set_num_threads(before)


@pytest.mark.parametrize("chunks", [1, 2, 5, 8, 17, 66])
@pytest.mark.parametrize("blocks", [1, 3, 8])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_every_block_meets_every_chunk_once(chunks, blocks, parts):
    parts = min(parts, chunks)
    order = [share_at.py_func(share, chunks, blocks, parts) for share in range(chunks * blocks)]
    assert sorted(order) == list(itertools.product(range(blocks), range(chunks)))
    firsts = [chunk for block, chunk in order if block == 0]
    assert firsts == list(range(chunks)), "chunks follow each other"
    changes = sum(a[0] != b[0] for a, b in itertools.pairwise(order))
    assert changes == blocks * parts - 1 or blocks == 1, "a block's weights are read for a whole part at a time"


def test_a_share_of_two_threads_is_half_of_the_map(threads):
    threads(2)
    chunks, blocks = 66, 4
    order = [share_at.py_func(share, chunks, blocks, parts_of(chunks)) for share in range(chunks * blocks)]
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    assert [{chunk for _, chunk in half} for half in halves] == [set(range(33)), set(range(33, 66))]


def test_there_are_no_more_parts_than_threads_and_none_is_small(threads):
    threads(3)
    assert [parts_of(chunks) for chunks in (0, 1, 2 * LEAST_CHUNKS, 3 * LEAST_CHUNKS, 100)] == [1, 1, 2, 3, 3]
    threads(1)
    assert parts_of(100) == 1


@pytest.mark.parametrize("count", [2, 3, 5])
def test_layers_answer_the_same_however_their_work_is_ordered(monkeypatch, threads, count):
    """A convolution of levels and one of floats, with groups, whose chunks come in parts of one chunk."""
    rng = np.random.default_rng(0)
    multipliers = (1, 2, 4, 8, 16, 32, 64, -128)
    x, w = rng.integers(-128, 128, (2, 16, 15, 17)), rng.integers(-128, 128, (72, 8, 3, 3))
    bits = bk.pack_levels(x, multipliers, False)
    conv = bk.PackedConv2d.from_levels(w, multipliers, False, padding=1, groups=2)
    floats = FloatConv2d(w.astype(np.float32), None, (3, 3, 1, 1, 1, 1, 1, 1, 1, 1), groups=2)
    maps = np.ascontiguousarray(x.astype(np.float32).transpose(0, 2, 3, 1))
    expected = reference.conv2d(x, w, padding=1, groups=2)
    monkeypatch.setattr(shares, "LEAST_CHUNKS", 1)
    monkeypatch.setattr(running, "MIN_WORK_PER_THREAD", 1)
    threads(count)
    np.testing.assert_array_equal(conv(bits), expected)
    # All numbers are whole and small enough that float32 holds every sum.
    np.testing.assert_array_equal(floats(maps, (15, 17)).transpose(0, 3, 1, 2), expected)
