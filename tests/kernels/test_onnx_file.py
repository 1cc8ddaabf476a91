"""A packed model as ONNX: ONNX Runtime and the package qonnx return its numbers, within a level where integers are asked for."""

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


def assert_close(found, expected, rounded):
    """Equal but for roundings of floats; or, where levels were rounded anew, nearly so."""
    size = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=(0.03 if rounded else 1e-5) * size)
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


NETWORKS = {
    "LeNet5": (LeNet5, (1, 28, 28)),
    "ResNet20": (ResNet20, (3, 32, 32)),
    "VGGSmall": (lambda **given: VGGSmall(width=0.25, **given), (3, 32, 32)),
}


@pytest.mark.quick_cases(9)
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
    assert_close(answers(model, x.numpy()), expected, width in ROUNDED)
    assert_close(answers(model, x.numpy(), tmp_path / "optimized.onnx"), expected, width in ROUNDED)
