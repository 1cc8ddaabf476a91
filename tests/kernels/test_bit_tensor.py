"""Packing: exact bits, zero tails, every kind of input, and refusals."""

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels import reference
from bnn_kernels.bits.storage import codes_of_rows, from_dense_bits, to_dense_bits

EDGES = (1, 3, 16, 31, 32, 33, 63, 64, 65, 127, 128, 129)


@pytest.mark.parametrize("channels", EDGES)
def test_words_equal_the_reference(channels):
    x = np.random.default_rng(channels).standard_normal((2, channels, 3, 2)).astype(np.float32)
    bits = bk.pack(x)
    assert bits.shape == x.shape
    np.testing.assert_array_equal(bits.words[0], reference.pack_words(reference.pack_bits(x)))
    np.testing.assert_array_equal(bk.unpack(bits), reference.sign(x))


@pytest.mark.parametrize("features", EDGES)
def test_tail_bits_are_zero(features):
    words = bk.pack(np.full((2, features), -1.0)).words
    assert words.shape == (1, 2, 1, 1, -(-features // 64))
    tail = features % 64
    if tail:
        assert (words[..., -1] == np.uint64(2**tail - 1)).all()
    assert (words[..., : features // 64] == ~np.uint64(0)).all()


def test_both_zeros_are_plus_one():
    assert bk.unpack(bk.pack(np.array([[0.0, -0.0, -1e-45]], np.float32))).tolist() == [[1, 1, -1]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_float_dtype_layout_and_flag(dtype):
    base = np.random.default_rng(0).standard_normal((3, 4, 6, 70)).astype(dtype)
    views = [base, base.transpose(0, 3, 1, 2), base[::-1, :, ::2], np.asfortranarray(base)]
    frozen = base.copy()
    frozen.flags.writeable = False
    for x in [*views, frozen]:
        np.testing.assert_array_equal(bk.unpack(bk.pack(x)), reference.sign(x))


def test_empty_batch():
    bits = bk.pack(np.zeros((0, 5, 2, 2)))
    assert bits.shape == (0, 5, 2, 2)
    assert bk.unpack(bits).shape == (0, 5, 2, 2)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (np.array([[1.0, np.nan]]), ValueError, "NaN"),
        (np.ones((2, 3), np.int64), TypeError, "int64"),
        (np.ones((2, 3, 4, 5, 6)), ValueError, r"\(2, 3, 4, 5, 6\)"),
        ([[1.0]], TypeError, "list"),
    ],
)
def test_bad_input_is_refused(x, error, words):
    with pytest.raises(error, match=words):
        bk.pack(x)


@pytest.mark.parametrize(
    ("multipliers", "signed", "values"),
    [
        ((1,), True, [-1, 1]),
        ((1, -1), False, [-1, 0, 1]),
        ((1, 2, 4), False, list(range(8))),
        ((1, 2), True, [-3, -1, 1, 3]),
        (tuple(1 << p for p in range(8)), False, list(range(256))),
    ],
)
@pytest.mark.parametrize("channels", [1, 64, 67])
def test_levels_round_trip(multipliers, signed, values, channels):
    levels = np.random.default_rng(1).choice(values, (2, channels, 3, 2))
    bits = bk.pack_levels(levels, multipliers, signed)
    assert bits.words.shape[0] == len(multipliers)
    np.testing.assert_array_equal(bk.unpack(bits), levels)


def test_level_without_a_code_is_refused():
    with pytest.raises(ValueError, match="level 2 "):
        bk.pack_levels(np.array([[1, 2]]), (1,), True)
    with pytest.raises(ValueError, match="level 0 "):
        bk.pack_levels(np.array([[0]]), (1, 2), True)
    with pytest.raises(TypeError, match="float64"):
        bk.pack_levels(np.array([[1.0]]))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 100])
def test_dense_bits_take_one_bit_each_and_round_trip(count):
    codes = np.random.default_rng(2).integers(0, 4, count).astype(np.uint8)
    dense = to_dense_bits(codes, 2)
    assert dense.shape == (2, -(-count // 8))
    np.testing.assert_array_equal(from_dense_bits(dense, (count,)), codes)
    if count % 8:
        dense[0, -1] |= 128
        with pytest.raises(ValueError, match="after the last weight"):
            from_dense_bits(dense, (count,))


@pytest.mark.parametrize("length", [1, 3, 8, 13, 64])
def test_codes_of_rows(length):
    codes = np.random.default_rng(3).integers(0, 8, (9, length)).astype(np.uint8)
    rows = np.array([[0, 8, 3], [8, 5, 5]])
    np.testing.assert_array_equal(codes_of_rows(to_dense_bits(codes, 3), rows, length), codes[rows])
