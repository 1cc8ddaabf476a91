"""Products of two tensors of levels against plain integers: every kind of planes, shapes around word edges."""

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels import reference
from bnn_kernels.bits.level_bytes import LevelBytes, bytes_of_codes
from bnn_kernels.bits.planes import level_of_code
from bnn_kernels.bits.tensor import pack_levels, unpack_codes
from bnn_kernels.ops.level_product import counts, product_of_levels

SIGNS = (1,), True
BITS = (1,), False
TERNARY = (1, -1), False
TWO = (1, 2), True
FOUR = (1, 2, 4, 8), False
BYTES = (1, 2, 4, 8, 16, 32, 64, -128), False
PIXELS = (1, 2, 4, 8, 16, 32, 64, 128), False
# Counted ones, and ones that are multiplied.
PAIRS = [
    (SIGNS, SIGNS), (BITS, SIGNS), (SIGNS, BITS), (BITS, BITS), (TERNARY, SIGNS), (TERNARY, TERNARY), (TWO, BITS),
    (BYTES, TERNARY), (BYTES, BYTES), (FOUR, BITS), (SIGNS, PIXELS), (FOUR, TWO), (BITS, FOUR), (TWO, FOUR),
]  # fmt: skip
# (summed, heads, rows, columns): around words, vectors, chunks and blocks.
SHAPES = [
    (1, 1, 1, 1), (63, 2, 3, 7), (64, 1, 4, 8), (65, 3, 5, 9), (128, 2, 16, 16), (129, 1, 17, 15), (31, 2, 33, 2),
    (32, 1, 2, 33), (33, 2, 18, 5),
]  # fmt: skip


def levels(planes, shape, seed):
    values = level_of_code(*planes)
    return np.random.default_rng(seed).choice(values, shape).astype(np.int64)


def packed(x, planes):
    return pack_levels(x, *planes)


def as_bytes(bits):
    u = bytes_of_codes(bits.multipliers, bits.signed)[unpack_codes(bits)].reshape(-1)
    return LevelBytes(np.concatenate([u, np.full(128, 255, np.uint8)]), bits.shape, bits.signed, bits.multipliers)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pair", PAIRS)
def test_products_are_exact(pair, shape):
    summed, heads, rows, columns = shape
    a, b = levels(pair[0], (2, summed, heads, rows), 1), levels(pair[1], (2, summed, heads, columns), 2)
    expected = reference.level_matmul(a, b)
    bits = packed(a, pair[0]), packed(b, pair[1])
    assert np.array_equal(expected, np.einsum("nkhr,nkhc->nhrc", a, b))
    np.testing.assert_array_equal(product_of_levels(*bits, 1.0), expected)
    if not counts(pair[0][0], pair[1][0]):
        forms = [as_bytes(x) if len(x.multipliers) > 1 else x for x in bits]
        np.testing.assert_array_equal(product_of_levels(*forms, 1.0), expected)
    half = product_of_levels(*bits, 0.37)
    np.testing.assert_array_equal(half, expected.astype(np.float32) * np.float32(0.37))


def test_the_largest_sums_are_exact():
    for planes, other, summed in ((SIGNS, SIGNS, 1 << 16), (PIXELS, BYTES, 3000), (TERNARY, TERNARY, 40000)):
        ends = level_of_code(*planes).max(), level_of_code(*other).min()
        a, b = np.full((1, summed, 1, 5), ends[0]), np.full((1, summed, 1, 9), ends[1])
        found = product_of_levels(packed(a, planes), packed(b, other), 1.0)
        assert (found == np.float32(summed * int(ends[0]) * int(ends[1]))).all()
    a = np.full((1, 70_000, 1, 1), 255)
    with pytest.raises(ValueError, match="can overflow int32"):
        product_of_levels(packed(a, PIXELS), packed(-a // 2, BYTES), 1.0)


def test_threads_share_the_rows():
    a, b = levels(SIGNS, (3, 100, 4, 70), 1), levels(TERNARY, (3, 100, 4, 130), 2)
    before = bk.get_num_threads()
    try:
        bk.set_num_threads(2)
        found = product_of_levels(packed(a, SIGNS), packed(b, TERNARY), 1.0)
    finally:
        bk.set_num_threads(before)
    np.testing.assert_array_equal(found, reference.level_matmul(a, b))


def plan(planes, shapes, scale=0.5):
    """Two inputs of floats, packed as levels, and their product."""
    signed, many = planes[1], len(planes[0]) > 1
    table = level_of_code(*planes)
    order = np.argsort(table, kind="stable")
    thresholds = ((table[order][1:] + table[order][:-1]) / 2).astype(np.float32)[:, None]
    tensors = {"thresholds": thresholds, "flip": np.zeros(1, bool), "codes": order.astype(np.uint8)}
    attrs = {"signed": signed, "multipliers": list(planes[0])}
    assert many or len(order) == 2
    packs = [bk.StepSpec("pack", [x], [y], attrs, tensors) for x, y in (("x", "a"), ("x1", "b"))]
    return bk.PackedModel(shapes, [*packs, bk.StepSpec("level_matmul", ["a", "b"], ["y"], {"scale": scale}, {})])


@pytest.mark.parametrize("planes", [SIGNS, TERNARY, BYTES])
def test_a_step_of_a_plan(planes, tmp_path):
    shapes = [(70, 2, 5), (70, 2, 9)]
    model = plan(planes, shapes)
    model.save(tmp_path / "model.safetensors")
    a, b = (levels(planes, (3, *shape), i) for i, shape in enumerate(shapes))
    expected = reference.level_matmul(a, b).transpose(0, 3, 1, 2) / 2
    for run in (model, bk.load(tmp_path / "model.safetensors")):
        for _ in range(3):  # step by step, recorded, played back
            np.testing.assert_array_equal(run(a.astype(np.float32), b.astype(np.float32)), expected)
    assert f"A{len(planes[0])}A{len(planes[0])}" in str(model.summary())
    assert model.costs()[-1].macs == 70 * 2 * 5 * 9


def test_what_does_not_fit_is_refused():
    for shapes, words in (
        ([(70, 2, 5), (71, 2, 5)], "do not fit"),
        ([(70, 2, 5), (70, 3, 5)], "do not fit"),
        ([(70,), (70,)], "do not fit"),
    ):
        with pytest.raises(bk.PlanError, match=words):
            plan(SIGNS, shapes)
    with pytest.raises(bk.PlanError, match="scale"):
        plan(SIGNS, [(70, 2, 5), (70, 2, 5)], float("inf"))
    with pytest.raises(bk.PlanError, match="takes bits"):
        bk.PackedModel([(7, 2, 5)] * 2, [bk.StepSpec("level_matmul", ["x", "x1"], ["y"], {"scale": 1.0}, {})])
    bits = packed(levels(SIGNS, (1, 8, 1, 2), 0), SIGNS)
    with pytest.raises(ValueError, match="are multiplied, got"):
        product_of_levels(bits, bits.with_shape((1, 8, 2)), 1.0)
