"""A packed model as ONNX: ONNX Runtime and the package qonnx return its numbers, or levels beside its own."""

import subprocess
import sys
from collections import Counter

import bnn_kernels as bk
import numpy as np
import pytest
import torch
from bnn_kernels.bits.thresholds import Thresholds
from bnn_kernels.onnx_file.folding import fit
from torch import nn

import bnn
from bnn import quantizers as q
from bnn.layers import QuantConv2d, QuantLinear
from bnn.models import LeNet5, ResNet20, VGGSmall

onnx = pytest.importorskip("onnx")


def few(bits, signed=False):
    return {
        "weight_quantizer": lambda: q.LsqWeight(bits=bits),
        "input_quantizer": lambda: q.LsqActivation(bits=bits, signed=signed),
    }


WIDTHS = {
    "1/1": {"weight_quantizer": q.XnorWeight, "input_quantizer": q.SteSign},
    "2/2": few(2),
    "t/8": {**few(8, signed=True), "weight_quantizer": q.TernaryWeight},
    "4/4": few(4),
    "8/8": few(8),
    "affine 8/8": {**few(8), "input_quantizer": lambda: q.AffineActivation(bits=8)},
    "lq 2/2": {
        "weight_quantizer": lambda channels: q.LqWeight(bits=2, channels=channels),
        "input_quantizer": lambda: q.LqActivation(bits=2),
    },
    "32/32": {"weight_quantizer": q.FullPrecision, "input_quantizer": q.FullPrecision},
}
# Of these a level beside the right one may come out.
ROUNDED = {"t/8", "8/8", "affine 8/8"}


def converted(model, x):
    bnn.calibrate(model.eval(), x)
    return bnn.convert(bnn.models.trained_like(model, x), x)


def session(model, path=None):
    """ONNX Runtime on a model; path: where it writes the graph that it runs."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if path is None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.optimized_model_filepath = str(path)
    return ort.InferenceSession(model.SerializeToString(), options)


def answers(model, x, path=None):
    return session(model, path).run(None, {"x": x})[0]


def qonnx_answers(model, x):
    """What the package qonnx computes."""
    pytest.importorskip("qonnx")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in (copy.graph.input[0], copy.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = len(x)
    return execute_onnx(ModelWrapper(copy).transform(InferShapes()), {"x": x})["y"]


def assert_close(found, expected, rounded, most=0.06):
    """Equal but for roundings of floats.

    rounded: levels may be one beside their own, of an untrained network; their errors may be `most` of the answers.
    """
    if rounded:
        error = np.sqrt(np.mean((found - expected) ** 2)) / expected.std()
        assert error < most
        return
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


NETWORKS = {
    "LeNet5": (LeNet5, (1, 28, 28)),
    "ResNet20": (ResNet20, (3, 32, 32)),
    "VGGSmall": (lambda **given: VGGSmall(width=0.25, **given), (3, 32, 32)),
}


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("width", WIDTHS)
def test_onnx_runtime_returns_the_same(width, network, tmp_path):
    torch.manual_seed(0)
    make, shape = NETWORKS[network]
    x = torch.randn(6, *shape)
    packed = converted(make(**WIDTHS[width]), x)
    model = bk.onnx_model(packed)
    onnx.checker.check_model(model, full_check=True)
    expected = packed(x.numpy())
    # In the deep untrained ResNet-20 a level that moved in the stem's floats moves others.
    most = 0.25 if network == "ResNet20" else 0.01
    assert_close(answers(model, x.numpy()), expected, width in ROUNDED, most)
    # Levels of the narrow VGG-small are few sums apart, so that many move where integers round a shift.
    most = 0.02 if network == "LeNet5" else 0.25
    found = answers(model, x.numpy(), tmp_path / "optimized.onnx")
    assert_close(found, expected, width in ROUNDED, most)


def small(**quantizers):
    """Pooling before batch norm, whose scale is negative in some channels, so that thresholds fall and end early."""
    torch.manual_seed(3)
    model = nn.Sequential(
        QuantConv2d(3, 12, 3, padding=1, **quantizers),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(12),
        QuantConv2d(12, 8, 3, stride=2, **quantizers),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        QuantLinear(8 * 9, 5, **quantizers),
    )
    x = torch.randn(16, 3, 16, 16)
    return converted(model, x), x.numpy()


@pytest.mark.parametrize("width", ["1/1", "8/8"])
def test_the_package_qonnx_returns_the_same(width):
    packed, x = small(**WIDTHS[width])
    model = bk.onnx_model(packed, "qonnx")
    kinds = Counter(node.op_type for node in model.graph.node if node.domain == "qonnx.custom_op.general")
    assert set(kinds) == ({"BipolarQuant"} if width == "1/1" else {"Quant"})
    assert_close(qonnx_answers(model, x), packed(x), width in ROUNDED)


@pytest.mark.parametrize("style", ["qdq", "qonnx"])
def test_the_number_of_images_is_free(style):
    packed, x = small(**WIDTHS["2/2"])
    model = bk.onnx_model(packed, style)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    if style == "qdq":
        for count in (1, 7):
            assert_close(answers(model, x[:count]), packed(x[:count]), False)


def test_lenet5_of_eight_bits_runs_in_integers(tmp_path):
    """Both layers that have levels on both sides: all but the first and the last, which are floats."""
    torch.manual_seed(0)
    x = torch.randn(6, 1, 28, 28)
    packed = converted(LeNet5(**WIDTHS["8/8"]), x)
    answers(bk.onnx_model(packed), x.numpy(), tmp_path / "optimized.onnx")
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert {kind: found[kind] for kind in ("QLinearConv", "MatMulIntegerToFloat", "Conv", "MatMul")} == {
        "QLinearConv": 1, "MatMulIntegerToFloat": 1, "Conv": 1, "MatMul": 1
    }  # fmt: skip


@pytest.mark.parametrize("falling", [False, True])
def test_thresholds_of_a_rounding_become_it(falling):
    """level = round(sum * a + b) of 0 .. 255, by its definition."""
    a, b, largest = (-0.037 if falling else 0.037), 100.3001, 5000
    sums = np.arange(-largest, largest + 1)
    levels = np.clip(np.rint(sums * a + b), 0, 255).astype(int)
    one = np.iinfo(np.int32)
    if falling:  # sum < t gives the level: t is one past the last sum that has it
        t = [next((s + 1 for s in sums[::-1] if levels[s + largest] >= i), one.min) for i in range(1, 256)]
    else:
        t = [next((s for s in sums if levels[s + largest] >= i), one.max) for i in range(1, 256)]
    thresholds = Thresholds(
        np.array(t, np.int32)[:, None],
        np.array([falling]),
        np.arange(256, dtype=np.uint8),
        False,
        tuple(1 << p for p in range(8)),
    )
    found = fit(thresholds, largest)
    assert found is not None
    np.testing.assert_allclose(found.scale, a, rtol=1e-3)
    again = np.clip(np.rint(sums * found.scale[0] + found.shift[0]), 0, 255)
    np.testing.assert_array_equal(again, levels)


def test_a_step_that_has_no_form_is_named():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, 4)

        def forward(self, x):
            return self.table(x).sum(1)

    packed = bnn.convert(Table().eval(), torch.randint(0, 10, (3, 6)))
    with pytest.raises(ValueError, match=r"^embedding cannot be written as ONNX: there are .*binary_conv"):
        bk.onnx_model(packed)
    with pytest.raises(ValueError, match="there are the styles qdq and qonnx"):
        bk.onnx_model(packed, "other")


def test_the_command_writes_the_file(tmp_path):
    packed, x = small(**WIDTHS["1/1"])
    packed.save(tmp_path / "packed.safetensors")
    command = [sys.executable, "-m", "bnn_kernels", "onnx", "packed.safetensors", "net.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert_close(answers(onnx.load(tmp_path / "net.onnx"), x), packed(x), False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "packed.safetensors"]
