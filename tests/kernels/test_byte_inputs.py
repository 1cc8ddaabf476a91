"""Bytes as the input of a plan, such as pixels, and layers whose input levels have zero points."""

import pickle

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels import PackedFileError, PlanError
from bnn_kernels.__main__ import main
from bnn_kernels.bits.level_bytes import new_level_bytes
from bnn_kernels.bits.storage import to_dense_bits
from bnn_kernels.bits.zero_points import ZeroPoints
from bnn_kernels.model import file_format
from forced_kernels import FORM_NAMES, force

BYTE = (1, 2, 4, 8, 16, 32, 64, 128)
SEVEN_BITS = (1, 2, 4, 8, 16, 32, -64)


def plain_conv(x, weight, stride=1, padding=0, dilation=1, groups=1):
    """int64 (N, O, Ho, Wo): the sum over channels and taps of padded x (N, C, H, W), one tap at a time."""
    o, own, kh, kw = weight.shape
    x = np.pad(x.astype(np.int64), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    ho, wo = ((side - dilation * (k - 1) - 1) // stride + 1 for side, k in zip(x.shape[2:], (kh, kw), strict=True))
    y = np.zeros((len(x), o, ho, wo), np.int64)
    for f in range(o):
        first = f // (o // groups) * own
        for i in range(kh):
            for j in range(kw):
                at = x[:, first : first + own, i * dilation :, j * dilation :][:, :, ::stride, ::stride]
                y[:, f] += np.einsum("nchw,c->nhw", at[:, :, :ho, :wo], weight[f, :, i, j].astype(np.int64))
    return y


def as_levels(x):
    levels = new_level_bytes(x.shape, False, BYTE)
    levels.u[...] = x.transpose(0, 2, 3, 1)
    return levels


@pytest.mark.parametrize("kernel", FORM_NAMES)
@pytest.mark.parametrize(
    ("channels", "filters", "kernel_size", "groups", "how"),
    [
        (3, 20, 7, 1, {"stride": 2, "padding": 3}),
        (1, 5, 5, 1, {}),
        (3, 33, 3, 1, {"padding": 2, "dilation": 2}),
        (6, 6, 3, 3, {"padding": 1}),
        (5, 10, 3, 5, {"padding": 1}),
        (2, 9, 1, 1, {"padding": 1, "stride": 2}),
    ],
)
def test_sums_are_those_of_pixels_less_their_zero_points(
    kernel, channels, filters, kernel_size, groups, how, monkeypatch
):
    """Zero padding counts as nothing though no level does: the border included, exactly."""
    force(kernel, monkeypatch)
    rng = np.random.default_rng(channels)
    x = rng.integers(0, 256, (2, channels, 13, 11), np.uint8)
    weight = rng.integers(-64, 64, (filters, channels // groups, kernel_size, kernel_size))
    codes = (weight & 127).astype(np.uint8)
    points = tuple(int(z) for z in rng.integers(-100, 64 * 255, channels))
    for zero in (ZeroPoints(64, points), ZeroPoints(1, points[:1])):
        conv = bk.PackedConv2d.from_codes(codes, SEVEN_BITS, False, groups=groups, **how, zero=zero)
        real = zero.factor * x.astype(np.int64) - np.array(zero.points).reshape(-1, 1, 1)
        expected = plain_conv(real, weight, groups=groups, **how)
        np.testing.assert_array_equal(conv(as_levels(x)), expected)
        np.testing.assert_array_equal(conv(bk.pack_levels(x.astype(np.int64), BYTE, False)), expected)


def test_depthwise_layers_take_zero_points_too():
    """With the kernels that are chosen for them, not forced ones."""
    rng = np.random.default_rng(0)
    x, weight = rng.integers(0, 256, (2, 40, 9, 9), np.uint8), rng.integers(-64, 64, (40, 1, 3, 3))
    zero = ZeroPoints(64, tuple(range(0, 8000, 200)))
    codes = (weight & 127).astype(np.uint8)
    conv = bk.PackedConv2d.from_codes(codes, SEVEN_BITS, False, padding=1, groups=40, zero=zero)
    real = 64 * x.astype(np.int64) - np.array(zero.points).reshape(-1, 1, 1)
    np.testing.assert_array_equal(conv(as_levels(x)), plain_conv(real, weight, padding=1, groups=40))


def test_sums_with_zero_points_that_could_overflow_are_refused():
    codes = np.zeros((1, 3, 16, 16), np.uint8)
    conv = bk.PackedConv2d.from_codes(codes, (1, 2, 4, 8, 16, 32, 64, -128), False, zero=ZeroPoints(1024, (0,)))
    with pytest.raises(ValueError, match="can overflow int32"):
        conv(as_levels(np.zeros((1, 3, 16, 16), np.uint8)))


def model(dtypes=("uint8",), **changes):
    """Bytes (3, 6, 6) -> an exact layer -> floats (4, 6, 6), beside the values of a table."""
    rng = np.random.default_rng(0)
    attrs = {
        "shape": [4, 3, 3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1, "pad_level": 0,
        "terms": [{"multipliers": list(SEVEN_BITS), "signed": False}], "output": "float",
        "zero_points": [7000, 8000, 9000], "input_factor": 64,
    }  # fmt: skip
    weight = rng.integers(-64, 64, (4, 3, 3, 3))
    bits = to_dense_bits((weight & 127).astype(np.uint8), 7)
    scale = np.full(4, 2.0**-20, np.float32)
    attrs = {key: value for key, value in (attrs | changes).items() if value is not None}
    layer = bk.StepSpec("binary_conv", ["x"], ["a"], attrs, {"bits.0": bits, "scale.0": scale})
    table = bk.StepSpec("unpack", ["x"], ["b"], {}, {"values": rng.standard_normal((3, 256)).astype(np.float32)})
    outputs = [("a", (4, 6, 6)), ("b", (3, 6, 6))]
    return bk.PackedModel((3, 6, 6), [layer, table], None, None, outputs, dtypes), weight


def test_a_plan_takes_bytes_as_they_are(tmp_path):
    packed, weight = model()
    x = np.random.default_rng(1).integers(0, 256, (5, 3, 6, 6), np.uint8)
    real = 64 * x.astype(np.int64) - np.array([7000, 8000, 9000]).reshape(-1, 1, 1)
    sums = (plain_conv(real, weight, padding=1) * 2.0**-20).astype(np.float32)
    values = packed.steps[1].tensors["values"][np.arange(3).reshape(-1, 1, 1), x]
    packed.save(tmp_path / "model.safetensors")
    loaded = bk.load(tmp_path / "model.safetensors")
    for one in (packed, loaded, pickle.loads(pickle.dumps(packed))):
        assert one.input_dtypes == ["uint8"]
        assert "uint8" in repr(one)
        strided = x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)  # as decoders of images give them
        for given in (x, x, x, x[:2], x.astype(np.float32), x.astype(np.int64), strided, strided, strided):
            a, b = one(given)
            np.testing.assert_array_equal(a, sums[: len(given)])
            np.testing.assert_array_equal(b, values[: len(given)])
    assert len(packed.profile(x, repeats=1)) == 2
    np.testing.assert_array_equal(packed.trace(x, replace=lambda _, value: value)[0], sums)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_number_of_channels_gets_into_order(channels, dtype):
    """Over blocks of pixels and their ends, and images after the first; three channels have kernels of their own."""
    x = np.random.default_rng(channels).integers(0, 256, (3, channels, 23, 29)).astype(dtype)
    values = np.arange(channels * 256, dtype=np.float32).reshape(channels, 256)
    if dtype == "uint8":
        step = bk.StepSpec("unpack", ["x"], ["y"], {}, {"values": values})
        expected = x + 256 * np.arange(channels).reshape(-1, 1, 1)
    else:
        step, expected = bk.StepSpec("activation", ["x"], ["y"], {"kind": "hard_swish"}), x * np.minimum(x + 3, 6) / 6
    packed = bk.PackedModel((channels, 23, 29), [step], input_dtypes=[dtype])
    for _ in range(3):
        np.testing.assert_allclose(packed(x), expected, rtol=1e-6)


def test_parts_of_a_large_batch_of_bytes(monkeypatch):
    packed, _ = model()
    x = np.random.default_rng(2).integers(0, 256, (7, 3, 6, 6), np.uint8)
    whole = packed(x)
    packed._executor.most_images = 3
    for ours, theirs in zip(packed(x), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (np.full((1, 3, 6, 6), 0.5, np.float32), ValueError, r"whole numbers 0 .. 255.*normalizes.*float32 from 0.5"),
        (np.full((1, 3, 6, 6), -1, np.int64), ValueError, "whole numbers 0 .. 255"),
        (np.full((1, 3, 6, 6), 256.0), ValueError, "whole numbers 0 .. 255"),
        (np.full((1, 3, 6, 6), np.nan), ValueError, "whole numbers 0 .. 255"),
        (np.zeros((1, 3, 6, 6), bool), TypeError, "float or uint8 array, got bool"),
        (np.zeros((1, 6, 6, 3), np.uint8), ValueError, r"must have shape \(N, 3, 6, 6\), got \(1, 6, 6, 3\)"),
        (np.zeros((3, 6, 6), np.uint8), ValueError, "must have shape"),
        ([[0]], TypeError, "got list"),
    ],
)
def test_inputs_that_are_no_bytes(x, error, words):
    with pytest.raises(error, match=words):
        model()[0](x)


def test_bytes_for_a_network_of_floats():
    steps = [bk.StepSpec("elementwise", ["x"], ["y"], {"channels": 3, "low": 0.0})]
    with pytest.raises(TypeError, match="must be a NumPy float array, got uint8; this network takes normalized images"):
        bk.PackedModel((3, 4, 4), steps)(np.zeros((1, 3, 4, 4), np.uint8))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtypes": ("int8",)}, "inputs are of float32 or uint8, got 'int8'"),
        ({"dtypes": ("uint8", "uint8")}, "1 inputs and 2 dtypes"),
        ({"dtypes": None}, "takes bits, got"),
        ({"zero_points": [1, 2]}, "zero points for 2 channels, takes 3"),
        ({"zero_points": [1 << 40] * 3}, "'zero_points'"),
        ({"zero_points": None}, "'input_factor' goes with zero points"),
        ({"input_factor": 0}, "no factor"),
        ({"input_factor": 1 << 14}, "overflow int32"),
        ({"pad_level": 1}, "padded with 0"),
    ],
)
def test_plans_of_bytes_that_do_not_fit(changes, words):
    with pytest.raises(PlanError, match=words):
        model(**changes)


@pytest.mark.parametrize("dtypes", ["uint8", [8], ["uint8", "uint8"], ["float32"], ["int8"], None, {}, []])
def test_files_whose_dtypes_are_none(dtypes, tmp_path):
    packed, _ = model()
    packed.save(tmp_path / "model.safetensors")
    header, tensors = file_format.read(tmp_path / "model.safetensors")
    assert header["dtypes"] == ["uint8"]
    file_format.write(tmp_path / "model.safetensors", header | {"dtypes": dtypes}, tensors)
    with pytest.raises((PackedFileError, PlanError)):
        bk.load(tmp_path / "model.safetensors")


def test_files_of_floats_say_nothing_of_dtypes(tmp_path):
    """So they are what they were, byte for byte, and other versions read them."""
    steps = [bk.StepSpec("elementwise", ["x"], ["y"], {"channels": 3, "low": 0.0})]
    bk.PackedModel((3, 4, 4), steps).save(tmp_path / "model.safetensors")
    header, _ = file_format.read(tmp_path / "model.safetensors")
    assert "dtypes" not in header
    assert bk.load(tmp_path / "model.safetensors").input_dtypes == ["float32"]


def test_commands_run_a_model_on_bytes(tmp_path, capsys):
    packed, _ = model()
    packed.save(tmp_path / "model.safetensors")
    x = np.random.default_rng(3).integers(0, 256, (2, 3, 6, 6), np.uint8)
    np.save(tmp_path / "x.npy", x)
    main(["run", str(tmp_path / "model.safetensors"), str(tmp_path / "x.npy"), str(tmp_path / "y.npz")])
    with np.load(tmp_path / "y.npz") as written:
        np.testing.assert_array_equal(written["output0"], packed(x)[0])
    main(["verify", str(tmp_path / "model.safetensors")])
    main(["bench", str(tmp_path / "model.safetensors"), "--batch", "1", "--threads", "1", "--seconds", "0.01"])
    assert "it runs" in capsys.readouterr().out
