"""The steps of a plan, each alone, against the plain reference; and plans that do not fit."""

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels import reference
from bnn_kernels.bits.planes import level_of_code
from bnn_kernels.bits.storage import to_dense_bits

SHAPE = (5, 6, 7)


def floats(seed=0, n=3, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal((n, *shape)).astype(np.float32)


def run(x, *steps):
    return bk.PackedModel(x.shape[1:], steps)(x)


def step(op, attrs=None, tensors=None, inputs=("x",), output="y"):
    return bk.StepSpec(op, list(inputs), [output], attrs or {}, tensors or {})


def levels_step(inputs="x", thresholds=None, flip=None, codes=(1, 0), signed=True, multipliers=(1,)):
    """A pack step followed by its levels as floats."""
    thresholds = np.zeros((1, 1), np.float32) if thresholds is None else thresholds
    tensors = {"thresholds": thresholds, "codes": np.array(codes, np.uint8)}
    tensors["flip"] = np.zeros(thresholds.shape[1], bool) if flip is None else flip
    attrs = {"signed": signed, "multipliers": list(multipliers)}
    return [step("pack", attrs, tensors, [inputs], "bits"), step("unpack", {"scale": 1.0}, {}, ["bits"], "levels")]


@pytest.mark.parametrize("channels", [1, 7, 8, 9, 20, 63, 64, 65, 72, 130])
@pytest.mark.parametrize("flip", [False, True])
def test_pack_signs_by_channel(channels, flip):
    rng = np.random.default_rng(channels)
    x = floats(1, 2, (channels, 3, 3))
    t = rng.standard_normal((1, channels)).astype(np.float32)
    x[0, :, 0, 0] = t[0]  # the threshold itself is reached
    flips = rng.random(channels) < 0.5 if flip else np.zeros(channels, bool)
    found = run(x, *levels_step(thresholds=t, flip=flips))
    np.testing.assert_array_equal(found, np.where(reference.threshold(x, t[0], flips), -1, 1))


@pytest.mark.parametrize("channels", [5, 8, 20, 64, 70])
@pytest.mark.parametrize(
    ("multipliers", "signed"),
    [
        ((1, 2), False),
        ((1, 2, 4, 8), False),
        ((1, -1), False),
        ((1, 2, 4), True),
        ((1, 2, 4, 8, 16, 32, 64, 128), False),
    ],
)
def test_pack_several_levels_by_channel(channels, multipliers, signed):
    rng = np.random.default_rng(channels)
    levels, codes = np.unique(level_of_code(multipliers, signed), return_index=True)
    x = floats(2, 2, (channels, 3, 3))
    t = rng.standard_normal((len(levels) - 1, channels)).astype(np.float32)
    x[0, :, 0, 0], x[0, :, 1, 1] = t[0], t[-1]
    flips = rng.random(channels) < 0.5
    found = run(x, *levels_step(thresholds=t, flip=flips, codes=codes, signed=signed, multipliers=multipliers))
    np.testing.assert_array_equal(found, levels[reference.thresholds(x, t, flips)])
    integers = np.rint(x * 3).transpose(0, 2, 3, 1).astype(np.int32)
    bounds = np.rint(t * 3).astype(np.int32)
    packed = bk.Thresholds(bounds, flips, codes.astype(np.uint8), signed, multipliers)(integers.copy())
    expected = reference.thresholds(integers.transpose(0, 3, 1, 2), bounds, flips)
    np.testing.assert_array_equal(bk.unpack(packed), levels[expected])


@pytest.mark.parametrize("value", [np.nan, -np.nan])
@pytest.mark.parametrize("channel", [0, 7, 8])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2)])
def test_nan_into_bits_is_refused(value, channel, multipliers):
    x = floats(3, 1, (9, 2, 2))
    x[0, channel, 1, 1] = value
    codes = range(1 << len(multipliers)) if len(multipliers) > 1 else (1, 0)
    t = np.zeros((len(codes) - 1, 1), np.float32)
    steps = levels_step(thresholds=t, codes=tuple(codes), signed=len(multipliers) == 1, multipliers=multipliers)
    with pytest.raises(ValueError, match="NaN"):
        run(x, *steps)


def sign_bits(w):
    return to_dense_bits((w < 0).astype(np.uint8), 1)


GEOMETRIES = [(2, 2, 0), (3, 1, 1), ((3, 2), (2, 1), (1, 0)), ((6, 7), 1, 0), (2, 3, 1)]


def pool_attrs(kernel, stride, padding):
    pairs = zip(("kernel", "stride", "padding"), (kernel, stride, padding), strict=True)
    return {name: [value, value] if isinstance(value, int) else list(value) for name, value in pairs}


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_float_pools(geometry):
    x = floats(4)
    found = run(x, step("max_pool", pool_attrs(*geometry)))
    np.testing.assert_array_equal(found, reference.max_pool2d(x, *geometry))
    found = run(x, step("avg_pool", pool_attrs(*geometry)))
    np.testing.assert_allclose(found, reference.avg_pool2d(x, *geometry), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("channels", [5, 64, 70])
def test_pool_on_bits_is_maximum_or_minimum(geometry, channels):
    x = floats(5, 2, (channels, 6, 7))
    rising = np.random.default_rng(6).random(channels) < 0.5
    steps = levels_step()
    steps.insert(1, step("pool_bits", pool_attrs(*geometry), {"rising": rising}, ["bits"], "pooled"))
    steps[2].inputs = ["pooled"]
    signs = reference.sign(x)
    direction = np.where(rising, 1, -1)[:, None, None]
    expected = direction * reference.max_pool2d(direction * signs, *geometry)
    np.testing.assert_array_equal(run(x, *steps), expected)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_pool_on_integers_before_thresholds(geometry):
    rng = np.random.default_rng(7)
    x = floats(8)
    w = rng.choice([-1, 1], (4, 5, 1, 1))
    rising = np.array([True, False, True, False])
    t, flips = np.array([[-2, 0, 1, 2], [0, 1, 2, 3], [2, 3, 3, 4]], np.int32), ~rising
    attrs = {"shape": [4, 5, 1, 1], "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    attrs |= {"pad_level": 0, "terms": [{"multipliers": [1], "signed": True}], "output": "int"}
    steps = levels_step()[:1]
    bits = sign_bits(w)
    steps += [
        step("binary_conv", attrs, {"bits.0": bits}, ["bits"], "sums"),
        step("pool_int", pool_attrs(*geometry), {"rising": rising}, ["sums"], "pooled"),
        step(
            "threshold",
            {"signed": False, "multipliers": [1, 2]},
            {"thresholds": t, "flip": flips, "codes": np.arange(4, dtype=np.uint8)},
            ["pooled"],
            "levels",
        ),
        step("unpack", {"scale": 0.5}, {}, ["levels"], "y"),
    ]
    direction = np.where(rising, 1, -1)[:, None, None]
    dot = reference.conv2d(reference.sign(x).astype(int), w)
    pooled = direction * reference.max_pool2d((direction * dot).astype(np.float32), *geometry)
    np.testing.assert_array_equal(run(x, *steps), reference.thresholds(pooled, t, flips) / 2)


def clamp(output="y", inputs=("x",), **attrs):
    return step("elementwise", {"channels": 5, **attrs}, {}, inputs, output)


def test_affine_clamp_flatten_linear():
    rng = np.random.default_rng(9)
    x = floats(9)
    scale, shift = rng.standard_normal((2, 5)).astype(np.float32)
    y = run(x, step("elementwise", {"channels": 5}, {"scale": scale, "shift": shift}))
    np.testing.assert_array_equal(y, x * scale[:, None, None] + shift[:, None, None])
    norm = {"norm_scale": scale[::-1].copy(), "norm_shift": shift[::-1].copy()}
    y = run(x, step("elementwise", {"channels": 5}, {"scale": scale, "shift": shift, **norm}))
    expected = x * scale[:, None, None] + shift[:, None, None]
    expected = expected * scale[::-1, None, None] + shift[::-1, None, None]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(run(x, clamp(low=0.0)), np.maximum(x, 0))
    np.testing.assert_array_equal(run(x, clamp(low=-0.5, high=0.25)), np.clip(x, -0.5, 0.25))
    flat = run(x, step("reshape", {"shape": [210]}))
    np.testing.assert_array_equal(flat, x.reshape(3, -1))
    w, bias = rng.standard_normal((4, 210)).astype(np.float32), rng.standard_normal(4).astype(np.float32)
    y = run(flat, step("float_linear", {"shape": [4, 210]}, {"weight": w, "bias": bias}))
    np.testing.assert_allclose(y, flat @ w.T + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 0, 1), ((1, 2), (2, 1), (2, 1))])
def test_input_scale(groups, stride, padding, dilation):
    rng = np.random.default_rng(10)
    x = floats(10, 2, (6, 7, 8))
    w = rng.choice([-1, 1], (4, 6 // groups, 3, 3))
    pairs = {"stride": stride, "padding": padding, "dilation": dilation}
    attrs = {name: [v, v] if isinstance(v, int) else list(v) for name, v in pairs.items()}
    attrs |= {"shape": list(w.shape), "groups": groups, "pad_level": 0, "output": "float", "input_scale": True}
    attrs["terms"] = [{"multipliers": [1], "signed": True}]
    scale, bias = rng.standard_normal((2, 4)).astype(np.float32)
    dense = sign_bits(w)
    tensors = {"bits.0": dense, "scale.0": scale, "shift": bias}
    found = run(x, levels_step()[0], step("binary_conv", attrs, tensors, ["bits", "x"]))
    k = reference.input_scale(x, (3, 3), stride, padding, dilation, groups)
    dot = reference.conv2d(reference.sign(x).astype(int), w, stride, padding, dilation, groups)
    expected = dot * scale[:, None, None] * k.repeat(4 // groups, axis=1) + bias[:, None, None]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


ONE = np.ones(5, np.float32)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([], "at least one step"),
        ([step("fly")], "step 0 .*unknown op"),
        ([clamp(inputs=["z"])], "reads 'z'"),
        ([clamp(low=0.0), clamp(low=0.0)], "writes 'y' a second time"),
        ([clamp(low=0.0, output="x")], "writes 'x' a second time"),
        ([clamp(low="0")], "'low' must be float"),
        ([clamp(lo=1)], "unknown attributes"),
        ([clamp(low=1.0, high=0.0)], "above high"),
        ([clamp(inputs=["x", "x"])], "takes 1 inputs, got 2"),
        ([clamp(residual="before")], "takes 2 inputs, got 1"),
        ([clamp(residual="beside")], "unknown residual"),
        ([clamp(keep=False)], "floats or bits"),
        ([step("elementwise", {"channels": 4}, {"scale": ONE[:4]})], "takes 4 channels"),
        ([step("elementwise", {"channels": 5}, {"bounds": ONE})], "'flip' is missing"),
        ([step("elementwise", {"channels": 5}, {"scale": ONE.astype(np.float64)})], "'scale' must be float32"),
        ([step("elementwise", {"channels": 5}, {"scale": ONE * np.nan})], "holds a NaN"),
        ([step("elementwise", {"channels": 5}, {"extra": ONE})], "unknown tensor 'extra'"),
        ([step("max_pool", {"kernel": [2], "stride": [1, 1], "padding": [0, 0]})], "'kernel' must be 2 integers"),
        ([step("max_pool", {"kernel": [9, 9], "stride": [1, 1], "padding": [0, 0]})], "does not fit"),
        ([step("max_pool", {"kernel": [2, 2], "stride": [1, 1], "padding": [2, 0]})], "more than half"),
        (levels_step()[:1], "ends with numbers"),
    ],
)
def test_plans_that_do_not_fit_are_refused(steps, words):
    with pytest.raises(bk.PlanError, match=words):
        bk.PackedModel(SHAPE, steps)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (floats()[:, :4], ValueError, r"\(N, 5, 6, 7\)"),
        (floats().astype(np.int32), TypeError, "int32"),
        (floats().tolist(), TypeError, "list"),
    ],
)
def test_bad_inputs_are_refused(x, error, words):
    model = bk.PackedModel(SHAPE, [clamp(low=0.0)])
    with pytest.raises(error, match=words):
        model(x)


def test_looking_at_a_model():
    affine = step("elementwise", {"channels": 5}, {"scale": ONE, "shift": ONE})
    model = bk.PackedModel(SHAPE, [affine, step("reshape", {"shape": [210]}, {}, ["y"], "z")])
    assert "(N, 210)" in repr(model)
    assert model.nbytes == 40
    assert "elementwise" in model.summary()
    assert "us" in model.summary(floats())
    assert [name for name, seconds in model.profile(floats(), repeats=2) if seconds > 0] == ["elementwise", "reshape"]
    assert model(floats(n=0)).shape == (0, 210)
