"""Steps over windows of several sizes, resizing, permutation and normalization, each against plain NumPy."""

import bnn_kernels as bk
import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from bnn_kernels.ops import pooling

SHAPE = (5, 6, 7)


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(x, op, attrs=None, **tensors):
    model = bk.PackedModel(x.shape[1:], [bk.StepSpec(op, ["x"], ["y"], attrs or {}, tensors)])
    first = model(x)
    for _ in range(2):  # recorded, and played back
        np.testing.assert_array_equal(model(x), first)
    return first


def windows(*pairs):
    return np.array(pairs, np.int32)


def test_windows_of_any_sizes():
    x = floats(3, *SHAPE)
    rows, columns = windows((0, 2), (1, 6), (5, 6)), windows((0, 7), (3, 4))
    row_sizes, column_sizes = np.array([2, 7, 1], np.int32), np.array([7, 3], np.int32)
    largest = run(x, "window_pool", {"kind": "max"}, rows=rows, columns=columns)
    sizes = {"row_sizes": row_sizes, "column_sizes": column_sizes}
    mean = run(x, "window_pool", {"kind": "avg"}, rows=rows, columns=columns, **sizes)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            part = x[:, :, top:bottom, left:right]
            np.testing.assert_array_equal(largest[:, :, i, j], part.max((2, 3)))
            expected = part.sum((2, 3), dtype=np.float64) / (row_sizes[i] * column_sizes[j])
            np.testing.assert_allclose(mean[:, :, i, j], expected, rtol=0, atol=1e-6)
    x[0, 1, 0, 0] = np.nan
    assert np.isnan(run_once(x, "window_pool", {"kind": "max"}, rows=rows, columns=columns)[0, 1, 0, 0])


def run_once(x, op, attrs, **tensors):
    return bk.PackedModel(x.shape[1:], [bk.StepSpec(op, ["x"], ["y"], attrs, tensors)])(x)


def neighbours(outputs, extent, taps, seed):
    """Starts and weights of an axis, in no order, and the same as a matrix."""
    starts = np.random.default_rng(seed).integers(0, extent - taps + 1, outputs).astype(np.int32)
    weights, matrix = floats(outputs, taps, seed=seed), np.zeros((outputs, extent), np.float32)
    for i, start in enumerate(starts):
        matrix[i, start : start + taps] = weights[i]
    return starts, weights, matrix


@pytest.mark.parametrize("channels", [5, 16, 19])
@pytest.mark.parametrize("taps", [(1, 1), (2, 2), (4, 3), (6, 7)])
def test_weighted_rows_and_columns(channels, taps):
    x = floats(3, channels, 6, 7)
    (row_starts, row_weights, rows), (column_starts, column_weights, columns) = (
        neighbours(outputs, extent, count, seed)
        for seed, (outputs, extent, count) in enumerate(zip((4, 9), (6, 7), taps, strict=True))
    )
    expected = np.einsum("rh,wv,nchv->ncrw", rows, columns, x, dtype=np.float64)
    sparse = {"row_starts": row_starts, "row_weights": row_weights}
    sparse |= {"column_starts": column_starts, "column_weights": column_weights}
    found = run(x, "resize", **sparse)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * abs(expected).max())
    # As older files have it: the same numbers.
    np.testing.assert_allclose(run(x, "resample", rows=rows, columns=columns), found, rtol=0, atol=1e-6)
    rows[1] = 0
    assert not run(x, "resample", rows=rows, columns=columns)[:, :, 1].any()


def test_resizing_by_copies_is_exact():
    x = floats(2, 19, 6, 7)
    whole = {"column_starts": np.arange(7, dtype=np.int32), "column_weights": np.ones((7, 1), np.float32)}
    found = run(x, "resize", row_starts=np.array([5, 0, 0], np.int32), row_weights=np.ones((3, 1), np.float32), **whole)
    np.testing.assert_array_equal(found, x[:, :, [5, 0, 0]])


@pytest.mark.parametrize("channels", [7, 16, 35])
@pytest.mark.parametrize("geometry", [(3, 2, 1, 1), (5, 1, 2, 2), (2, 3, 1, 3), (2, 2, 0, 4)])
def test_maxima_of_spread_windows(geometry, channels):
    """Floats, integers in channels that rise and fall, and signs; against PyTorch."""
    kernel, stride, padding, dilation = geometry
    x = floats(2, channels, 8, 9)
    attrs = {"kernel": [kernel] * 2, "stride": [stride] * 2, "padding": [padding] * 2, "dilation": [dilation] * 2}
    expected = functional.max_pool2d(torch.from_numpy(x), *geometry).numpy()
    np.testing.assert_array_equal(run(x, "max_pool", attrs), expected)
    rising = np.random.default_rng(1).random(channels) < 0.5
    sides = (*[kernel] * 2, *[stride] * 2, *[padding] * 2, *[dilation] * 2)
    ints = np.ascontiguousarray((100 * x).astype(np.int32).transpose(0, 2, 3, 1))
    direction = np.where(rising, 1, -1)[:, None, None]
    top = functional.max_pool2d(torch.from_numpy(direction * np.float32(ints.transpose(0, 3, 1, 2))), *geometry)
    found = pooling.extreme_pool(ints, rising.astype(np.uint8), sides)
    np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), direction * top.numpy().astype(int))
    signs = functional.max_pool2d(torch.from_numpy(direction * np.where(x < 0, -1, 1).astype(np.float32)), *geometry)
    or_mask = bk.pack(np.where(rising, 1, -1)[None].astype(np.float32)).words.reshape(-1)
    np.testing.assert_array_equal(bk.unpack(pooling.pool_signs(bk.pack(x), or_mask, sides)), direction * signs.numpy())


def test_maxima_of_spread_windows_one_by_one():
    x = floats(2, *SHAPE)
    rows, columns = windows((0, 5), (1, 6)), windows((1, 7), (0, 4), (2, 3))
    found = run(x, "window_pool", {"kind": "max", "dilation": [2, 3]}, rows=rows, columns=columns)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            np.testing.assert_array_equal(found[:, :, i, j], x[:, :, top:bottom:2, left:right:3].max((2, 3)))


@pytest.mark.parametrize("channels", [3, 16])
def test_means_of_large_maps(channels):
    """As digits of float32 go, whatever the size: PyTorch sums in a cascade."""
    x = np.abs(floats(1, channels, 150, 170)) + 1
    exact = x.mean((2, 3), dtype=np.float64)
    sides = {"kernel": [150, 170], "stride": [1, 1], "padding": [0, 0]}
    whole = {"row_sizes": np.array([150], np.int32), "column_sizes": np.array([170], np.int32)}
    ends = {"rows": windows((0, 150)), "columns": windows((0, 170))}
    for found in (run(x, "avg_pool", sides), run(x, "window_pool", {"kind": "avg"}, **ends, **whole)):
        np.testing.assert_allclose(found[:, :, 0, 0], exact, rtol=1.2e-7, atol=0)


@pytest.mark.parametrize("shape", [(3, 1, 5), (19, 4, 17), (8, 8, 8), (16, 9, 7), (1, 3, 3), (11, 2, 40)])
def test_outputs_are_maps_with_channels_first(shape):
    """Outputs are put in order eight channels and eight pixels at a time, and what is left over one by one."""
    x = floats(2, *shape)
    model = bk.PackedModel(shape, [bk.StepSpec("activation", ["x"], ["y"], {"kind": "abs"}, {})])
    for _ in range(3):
        np.testing.assert_array_equal(model(x), np.abs(x))


@pytest.mark.parametrize("named", [("rows",), ("columns",), ("channels",), ("rows", "columns", "channels")])
def test_gathers(named):
    x, index = floats(2, 20, 6, 7), {"channels": [3, -1, 0, 3, 19], "rows": [5, -1, 2], "columns": [0, 1, -1, 6, 6]}
    expected = x
    for axis, name in enumerate(("channels", "rows", "columns"), 1):
        if name in named:
            expected = np.concatenate([expected, np.zeros_like(expected.take([0], axis))], axis).take(index[name], axis)
    given = {name: np.array(index[name], np.int32) for name in named}
    np.testing.assert_array_equal(run(x, "select", **given), expected)
    run_of = {"channels": np.arange(2, 13, dtype=np.int32), "rows": np.arange(1, 4, dtype=np.int32)}
    np.testing.assert_array_equal(run(x, "select", **run_of), x[:, 2:13, 1:4])
    vector = floats(2, 9)
    picked = run(vector, "select", channels=np.array([8, -1, 0], np.int32))
    np.testing.assert_array_equal(picked, np.stack([vector[:, 8], np.zeros(2), vector[:, 0]], 1))


@pytest.mark.parametrize(
    ("split", "order", "shape"),
    [
        ((5, 6, 7), (0, 2, 1), (5, 7, 6)),
        ((5, 6, 7), (2, 0, 1), (7, 5, 6)),
        ((5, 2, 3, 7), (2, 0, 3, 1), (3, 5, 14)),
        ((10, 3, 7), (1, 2, 0), (7, 3, 10)),
        ((5, 42), (1, 0), (210,)),
        ((210, 1), (1, 0), (6, 5, 7)),
    ],
)
def test_axes_in_another_order(split, order, shape):
    x = floats(3, *SHAPE)
    expected = x.reshape(3, *split).transpose(0, *(1 + axis for axis in order)).reshape(3, *shape)
    np.testing.assert_array_equal(
        run(x, "permute", {"split": list(split), "order": list(order), "shape": list(shape)}), expected
    )
    vector = floats(3, 210)
    expected = vector.reshape(3, *split).transpose(0, *(1 + axis for axis in order)).reshape(3, *shape)
    found = run(vector, "permute", {"split": list(split), "order": list(order), "shape": list(shape)})
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [SHAPE, (11,)])
def test_normalization_softmax_and_constants(shape):
    x = floats(3, *shape) * 3 + 1
    wide = x.astype(np.float64)
    centered = wide - wide.mean(1, keepdims=True)
    expected = centered / np.sqrt((centered**2).mean(1, keepdims=True) + 0.01)
    np.testing.assert_allclose(run(x, "normalize", {"eps": 0.01, "center": True}), expected, rtol=0, atol=1e-5)
    expected = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 0.01)
    np.testing.assert_allclose(run(x, "normalize", {"eps": 0.01, "center": False}), expected, rtol=0, atol=1e-5)
    powers = np.exp(wide - wide.max(1, keepdims=True))
    softmax = powers / powers.sum(1, keepdims=True)
    np.testing.assert_allclose(run(x, "softmax", {"log": False}), softmax, rtol=0, atol=1e-6)
    np.testing.assert_allclose(run(x, "softmax", {"log": True}), np.log(softmax), rtol=0, atol=1e-5)
    large = np.full((2, *shape), 3e4, np.float32)
    np.testing.assert_allclose(run(large, "softmax", {"log": False}).sum(1), 1, rtol=0, atol=1e-6)
    value = floats(*shape[1:], shape[0], seed=1)
    first = value.transpose(2, 0, 1) if value.ndim == 3 else value
    np.testing.assert_array_equal(run(x, "by_place", {"kind": "add"}, value=value), x + first)
    np.testing.assert_array_equal(run(x, "by_place", {"kind": "multiply"}, value=value), x * first)


@pytest.mark.parametrize("shape", [SHAPE, (11,)])
def test_scales_that_follow_the_input(shape):
    x = floats(3, *shape)
    x[1] = 0
    for over, axes in (("channels", (1,)), ("all", tuple(range(1, x.ndim)))):
        expected = np.maximum(np.abs(x).max(axes, keepdims=True), np.float32(1e-3)) / np.float32(127)
        attrs = {"over": over, "levels": 127, "smallest": 1e-3}
        np.testing.assert_array_equal(run(x, "absmax", attrs), expected)


GOOD = {"rows": windows((0, 6)), "columns": windows((0, 7))}
POOL = {"kernel": [2, 2], "stride": [1, 1], "padding": [0, 0]}
RESIZED = {"row_starts": np.array([4], np.int32), "row_weights": floats(1, 2)}
RESIZED |= {"column_starts": np.array([0], np.int32), "column_weights": floats(1, 3)}
SIZES = {"row_sizes": np.ones(1, np.int32), "column_sizes": np.ones(1, np.int32)}


@pytest.mark.parametrize(
    ("op", "attrs", "tensors", "words"),
    [
        ("window_pool", {"kind": "sum"}, GOOD, "unknown kind"),
        ("window_pool", {"kind": "max"}, {"rows": GOOD["rows"]}, "'columns' is missing"),
        ("window_pool", {"kind": "max"}, {**GOOD, "rows": windows((0, 7))}, "reach 7 in a side of 6"),
        ("window_pool", {"kind": "max"}, {**GOOD, "rows": windows((-1, 2))}, "from a first to one past a last"),
        ("window_pool", {"kind": "max"}, {**GOOD, "rows": windows((2, 2))}, "from a first to one past a last"),
        ("window_pool", {"kind": "max"}, {**GOOD, "rows": np.zeros((0, 2), np.int32)}, "is empty"),
        ("window_pool", {"kind": "max"}, {**GOOD, **SIZES}, "are for a mean"),
        ("window_pool", {"kind": "avg"}, {**GOOD, **SIZES, "row_sizes": np.zeros(1, np.int32)}, "holds a 0"),
        ("window_pool", {"kind": "avg"}, {**GOOD, **SIZES, "row_sizes": np.ones(2, np.int32)}, "must be int32"),
        ("resample", {}, {"rows": floats(4, 5), "columns": floats(3, 7)}, "takes a map of 5x7, got 6x7"),
        ("resize", {}, {**RESIZED, "row_starts": np.array([5], np.int32)}, "leads to 7 rows, the input has 6"),
        ("resize", {}, {**RESIZED, "column_starts": np.array([-1], np.int32)}, "numbers from 0 on"),
        ("resize", {}, {**RESIZED, "row_weights": floats(2, 2)}, "must be float32"),
        ("resize", {}, {**RESIZED, "row_weights": floats(1, 0)}, "must not be empty"),
        ("window_pool", {"kind": "avg", "dilation": [2, 1]}, {**GOOD, **SIZES}, "is for a maximum"),
        ("avg_pool", {**POOL, "dilation": [1, 2]}, {}, "is for a maximum"),
        ("max_pool", {**POOL, "dilation": [6, 1]}, {}, "does not fit"),
        ("max_pool", {**POOL, "padding": [1, 0], "dilation": [7, 1]}, {}, "does not fit"),
        ("max_pool", {**POOL, "padding": [2, 0], "dilation": [9, 2]}, {}, "more than half"),
        ("resample", {}, {"rows": floats(0, 6), "columns": floats(3, 7)}, "must not be empty"),
        ("permute", {"split": [5, 6, 7], "order": [0, 1, 1], "shape": [5, 6, 7]}, {}, "no order"),
        ("permute", {"split": [5, 6, 8], "order": [0, 1, 2], "shape": [5, 6, 7]}, {}, "cannot make"),
        ("permute", {"split": [1] * 9, "order": list(range(9)), "shape": [5, 6, 7]}, {}, "2 to 8 sides"),
        ("permute", {"split": [210, 1], "order": [0, 1], "shape": [30, 7]}, {}, r"must be \(C, H, W\)"),
        ("normalize", {"eps": -1.0, "center": True}, {}, "must not be negative"),
        ("normalize", {"eps": 1.0, "center": 1}, {}, "must be bool"),
        ("softmax", {}, {}, "must be bool"),
        ("absmax", {"over": "rows", "levels": 7, "smallest": 1.0}, {}, "unknown over"),
        ("absmax", {"over": "all", "levels": 0, "smallest": 1.0}, {}, "must be positive"),
        ("by_place", {"kind": "divide"}, {"value": floats(6, 7, 5)}, "unknown kind"),
        ("by_place", {"kind": "add"}, {"value": floats(5, 6, 7)}, "does not fit"),
        ("by_place", {"kind": "add"}, {"value": floats(6, 7)}, "one or three axes"),
        ("by_place", {"kind": "add"}, {}, "is missing"),
    ],
)
def test_what_does_not_fit_is_refused(op, attrs, tensors, words):
    with pytest.raises(bk.PlanError, match=words):
        bk.PackedModel(SHAPE, [bk.StepSpec(op, ["x"], ["y"], attrs, tensors)])


@pytest.mark.parametrize("sides", [(1, 1, 1, 1), (4, 5, 6, 7), (1, 9, 3, 16), (3, 4, 17, 33), (2, 7, 64, 31)])
def test_products_of_maps_of_all_sizes(sides):
    heads, height, inner, width = sides
    a, b = floats(2, heads, height, inner), floats(2, heads, inner, width, seed=1)
    model = bk.PackedModel([a.shape[1:], b.shape[1:]], [bk.StepSpec("matmul", ["x", "x1"], ["y"], {}, {}, [""])])
    expected = a.astype(np.float64) @ b
    for _ in range(3):
        np.testing.assert_allclose(model(a, b), expected, rtol=0, atol=1e-6 * inner)


def test_products_of_maps():
    a, b = floats(3, 4, 5, 6), floats(3, 4, 6, 7, seed=1)
    steps = [bk.StepSpec("matmul", ["x", "x1"], ["y"], {}, {}, [""])]
    model = bk.PackedModel([(4, 5, 6), (4, 6, 7)], steps)
    for _ in range(3):
        np.testing.assert_allclose(model(a, b), a @ b, rtol=0, atol=1e-5)
    assert model.costs()[0].macs == 4 * 5 * 6 * 7
    for shape in ((4, 5, 7), (3, 6, 7), (6,)):
        with pytest.raises(bk.PlanError, match=r"do not fit|takes float maps"):
            bk.PackedModel([(4, 5, 6), shape], steps)


def test_rows_of_a_table():
    table, x = floats(5, 3), np.array([[4, 0, 2, 2]], np.int64)
    model = bk.PackedModel((4,), [bk.StepSpec("embedding", ["x"], ["y"], {"shape": [5, 3]}, {"weight": table})])
    for _ in range(3):
        np.testing.assert_array_equal(model(x)[:, :, 0], table[x].transpose(0, 2, 1))
        np.testing.assert_array_equal(model(x.astype(np.float32))[:, :, 0], table[x].transpose(0, 2, 1))
    for wrong in (5.0, -1.0, 0.5, np.nan, np.inf):
        with pytest.raises(ValueError, match="is no row of a table of 5 rows"):
            model(np.array([[0, 1, 2, wrong]], np.float32))
    np.testing.assert_array_equal(model(x)[:, :, 0], table[x].transpose(0, 2, 1))
    with pytest.raises(TypeError, match="must be a NumPy float array, got int64"):
        bk.PackedModel((4,), [bk.StepSpec("softmax", ["x"], ["y"], {"log": False})])(x)
    with pytest.raises(bk.PlanError, match="takes a vector of numbers"):
        bk.PackedModel((4, 1, 2), [bk.StepSpec("embedding", ["x"], ["y"], {"shape": [5, 3]}, {"weight": table})])
