"""Weights of few bits for float inputs, expanded or looked up, against the same weights as float32."""

import numpy as np
import pytest
from bnn_kernels.bits.planes import level_of_code
from bnn_kernels.bits.storage import to_dense_bits
from bnn_kernels.compile.isa import isa
from bnn_kernels.compile.simd.float_tables import TABLE_BITS
from bnn_kernels.ops.coded_weight import CodedWeight
from bnn_kernels.ops.few_bit_weight import FewBitWeight, ScaledTerm
from bnn_kernels.ops.float_conv import POINTWISE, FloatConv2d

KINDS = {
    "signs": [((1,), True)],
    "ternary": [((1, -1), False)],
    "2 bits": [((1, -2), False)],
    "two signs": [((1,), True), ((1,), True)],
    "3 bits": [((1, 2, -4), False)],
    "dorefa 4": [((1, 2, 4, 8), True)],
    "5 bits": [((1, 2, 4, 8, -16), False)],
    "8 bits": [((1, 2, 4, 8, 16, 32, 64, -128), False)],
    "two terms": [((1,), True), ((1, 2), False)],
}


def make(kind, shape, groups=1, offset=False):
    """Return (the weight of few bits, the same as float32)."""
    rng = np.random.default_rng(len(kind) + shape[0])
    terms, dense = [], np.zeros(shape, np.float32)
    for multipliers, signed in KINDS[kind]:
        codes = rng.integers(0, 1 << len(multipliers), shape).astype(np.uint8)
        scale = rng.random(shape[0], np.float32)
        terms.append(ScaledTerm(to_dense_bits(codes, len(multipliers)), multipliers, signed, scale))
        dense += level_of_code(multipliers, signed).astype(np.float32)[codes] * scale.reshape(-1, 1, 1, 1)
    shift = rng.random(shape[0], np.float32) if offset else None
    if shift is not None:
        dense += shift.reshape(-1, 1, 1, 1)
    if CodedWeight.fits(terms, shift):
        return CodedWeight(shape, groups, terms[0]), dense
    return FewBitWeight(shape, groups, terms, shift), dense


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "groups", "geometry"),
    [
        ((16, 5, 3, 3), 1, (3, 3, 1, 1, 1, 1, 1, 1)),
        ((21, 11, 3, 2), 1, (3, 2, 2, 1, 0, 1, 1, 2)),
        ((34, 4, 2, 2), 2, (2, 2, 1, 1, 1, 0, 1, 1)),
        ((1, 1, 1, 1), 1, (1, 1, 2, 2, 0, 0, 1, 1)),
    ],
)
def test_expanded_filters_give_the_same_numbers_as_float32(kind, shape, groups, geometry):
    few, dense = make(kind, shape, groups, offset=shape[0] == 21)
    kh, kw, sy, sx, py, px, dy, dx = geometry
    x = np.random.default_rng(0).standard_normal((2, 7, 8, shape[1] * groups)).astype(np.float32)
    out = (7 + 2 * py - dy * (kh - 1) - 1) // sy + 1, (8 + 2 * px - dx * (kw - 1) - 1) // sx + 1
    expected = FloatConv2d(dense, None, geometry, groups)(x, out)
    np.testing.assert_array_equal(FloatConv2d(few, None, geometry, groups)(x, out), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [1, 2, 3, 4, 29, 30, 31, 32, 33, 61, 96, 257])
@pytest.mark.parametrize("filters", [1, 8, 17])
def test_looked_up_products_are_those_of_float32(kind, inputs, filters):
    few, dense = make(kind, (filters, inputs, 1, 1), offset=inputs % 2 == 1)
    x = np.random.default_rng(inputs).standard_normal((3, inputs)).astype(np.float32)
    assert few.takes_few(3) == (isinstance(few, CodedWeight) or isa() in TABLE_BITS)
    found = FloatConv2d(few, None, POINTWISE)(x.reshape(3, 1, 1, inputs), (1, 1))[:, 0, 0]
    weight = dense[:, :, 0, 0].astype(np.float64)
    # A sum of K products in float32, in any order, is off by at most about K * 2^-24 times the sum of magnitudes.
    bound = (inputs + 8) * 2.0**-24 * (np.abs(x.astype(np.float64)) @ np.abs(weight.T)) + 1e-6
    assert (np.abs(found - x.astype(np.float64) @ weight.T) <= 4 * bound).all()


def test_more_positions_are_expanded():
    few, dense = make("signs", (40, 100, 1, 1))
    x = np.random.default_rng(0).standard_normal((50, 1, 1, 100)).astype(np.float32)
    assert not few.takes_few(50)
    np.testing.assert_array_equal(
        FloatConv2d(few, None, POINTWISE)(x, (1, 1)), FloatConv2d(dense, None, POINTWISE)(x, (1, 1))
    )


@pytest.mark.parametrize("kind", ["signs", "ternary", "3 bits", "dorefa 4", "5 bits", "8 bits"])
def test_memory_is_what_the_bits_take(kind):
    few, _ = make(kind, (64, 960, 1, 1))
    planes = len(KINDS[kind][0][0])
    held = sum(array.nbytes for array in few.packed)
    assert held <= 1.1 * planes * 64 * 960 / 8 + 64 * 8 + 256  # 5 codes of 6 bits to a word are 30 of 32 bits
