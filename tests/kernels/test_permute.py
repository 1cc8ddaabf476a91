"""Permutations and reshapes of channels-last maps, in every order of their axes, against NumPy."""

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels.runtime.threads import sharing_everything

SIDES = (1, 2, 3, 5, 7, 8, 16, 17, 31, 32, 48, 49)


def permuted(x, split, order, shape):
    attributes = {"split": list(split), "order": list(order), "shape": list(shape)}
    return bk.PackedModel(x.shape[1:], [bk.StepSpec("permute", ["x"], ["y"], attributes)])(x)


def expected(x, split, order, shape):
    return x.reshape(len(x), *split).transpose(0, *(1 + axis for axis in order)).reshape(len(x), *shape)


def check(x, split, order, shape):
    np.testing.assert_array_equal(permuted(x, split, order, shape), expected(x, split, order, shape))


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def parts(rng, side):
    """Two sides whose product is `side`."""
    first = int(rng.choice([n for n in range(1, side + 1) if side % n == 0]))
    return first, side // first


@pytest.mark.parametrize("seed", range(6))
def test_any_split_order_and_shape(seed):
    rng = np.random.default_rng(seed)
    for _ in range(25):
        shape = [int(rng.choice(SIDES)) for _ in range(3)]
        split = [part for side in shape for part in (parts(rng, side) if rng.random() < 0.6 else (side,))]
        if rng.random() < 0.2:  # sides that cross the map's
            split = [*parts(rng, int(np.prod(shape)))]
        order = [int(axis) for axis in rng.permutation(len(split))]
        ordered = [split[axis] for axis in order]
        a, b = sorted(rng.integers(0, len(split) + 1, 2))
        to = [int(np.prod(ordered[:a])), int(np.prod(ordered[a:b])), int(np.prod(ordered[b:]))]
        x = numbers(int(rng.integers(1, 3)), *shape)
        check(x, split, order, to)
        check(x, split, order, [int(np.prod(to))])
        check(x.reshape(len(x), -1), split, order, to)


@pytest.mark.parametrize("side", [1, 3, 15, 16, 17, 33, 64])
@pytest.mark.parametrize("channels", [1, 3, 15, 16, 17, 33])
def test_matrices_around_the_sides_of_squares(channels, side):
    check(numbers(2, channels, 2, side), (channels, 2 * side), (1, 0), (2 * side, channels, 1))
    check(numbers(2, channels, 2, side), (channels, 2, side), (2, 0, 1), (side, channels, 2))


def test_neighbours_along_several_axes():
    # 3 neighbours by themselves are no vector: they go together with those of the axes behind.
    check(numbers(1, 3 * 32, 14, 14), (3, 32, 2, 7, 2, 7), (2, 4, 3, 5, 0, 1), (4 * 49, 3, 32))
    check(numbers(1, 64 * 3, 7, 7), (64, 3, 49), (2, 0, 1), (49, 64, 3))


@pytest.mark.parametrize("shape", [(4, 6, 10), (240,), (24, 1, 10), (5, 48, 1), (7 * 5, 8, 6)])
def test_reshapes(shape):
    x = numbers(2, *((35, 6, 8) if shape[0] == 35 else (12, 4, 5)))
    found = bk.PackedModel(x.shape[1:], [bk.StepSpec("reshape", ["x"], ["y"], {"shape": list(shape)})])(x)
    np.testing.assert_array_equal(found, x.reshape(2, *shape))


def test_threads_share_what_is_copied():
    x = numbers(2, 33, 17, 19)
    alone = permuted(x, (33, 17, 19), (2, 0, 1), (19, 33, 17))
    with sharing_everything():
        np.testing.assert_array_equal(permuted(x, (33, 17, 19), (2, 0, 1), (19, 33, 17)), alone)
        runs = permuted(x, (33, 17, 19), (0, 2, 1), (33, 19, 17))
    np.testing.assert_array_equal(runs, x.transpose(0, 1, 3, 2))


def test_no_images():
    assert permuted(numbers(0, 2, 3, 4), (2, 3, 4), (1, 0, 2), (3, 2, 4)).shape == (0, 3, 2, 4)
