"""Each layer of an exported network, given the levels that the packed model has there, makes the same levels."""

import bnn_kernels as bk
import numpy as np
import pytest
import torch
from bnn_kernels.bits.planes import level_of_code
from bnn_kernels.onnx_file.export import graph_of
from bnn_kernels.onnx_file.graph import Graph
from bnn_kernels.onnx_file.values import Levels

import bnn
from bnn import quantizers as q
from bnn.models import LeNet5, ResNet20, VGGSmall

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


def few(bits):
    return {
        "weight_quantizer": lambda: q.LsqWeight(bits=bits),
        "input_quantizer": lambda: q.LsqActivation(bits=bits),
    }


WIDTHS = {
    "1/1": {"weight_quantizer": q.XnorWeight, "input_quantizer": q.SteSign},
    "1/1 K": {"weight_quantizer": q.XnorWeight, "input_quantizer": q.SteSign, "input_scale": True},
    "2/2": few(2),
    "lq 2/2": {
        "weight_quantizer": lambda channels: q.LqWeight(bits=2, channels=channels),
        "input_quantizer": lambda: q.LqActivation(bits=2),
    },
    "4/4": few(4),
    "8/8": few(8),
    "affine 8/8": {**few(8), "input_quantizer": lambda: q.AffineActivation(bits=8)},
}
NETWORKS = {
    "LeNet5": (LeNet5, (1, 28, 28)),
    "ResNet20": (ResNet20, (3, 32, 32)),
    "VGGSmall": (lambda **given: VGGSmall(width=0.25, **given), (3, 32, 32)),
}


def name_of(value):
    """The tensor of ONNX that a register is, None if it is none of its own."""
    if isinstance(value, Levels):
        return value.name if value.codes is None else value.index
    return value.name if value.rounding is None else None


def level(value, y):
    """Levels that a tensor of ONNX stands for."""
    if value.codes is None:
        return np.rint(y / value.unit).astype(np.int64) + value.zero
    return level_of_code(value.spec.multipliers, value.spec.signed)[value.codes.astype(int)[np.rint(y).astype(int)]]


def compared(packed, x):
    """[(operation, of levels, how many differ, how many there are, largest difference)] of every step by itself.

    Each step of the packed model gets what ONNX Runtime, node by node, has computed before it.
    """
    _, values = graph_of(packed, "qdq")
    model = bk.onnx_model(packed)
    made = {name for node in model.graph.node for name in node.output}
    names = {register: name_of(value) for register, value in values.items() if name_of(value) in made}
    for name in sorted(set(names.values())):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    results = dict(zip([y.name for y in session.get_outputs()], session.run(None, {"x": x}), strict=True))
    made_by = {register: step.op for step in packed.steps for register in step.outputs}
    rows = []

    def compare(register, found):
        if register not in names:
            return found
        y, value = results[names[register]], values[register]
        if isinstance(value, Levels):
            own = bk.unpack(found)
            other = level(value, y).reshape(own.shape)
            rows.append((made_by[register], True, int((own != other).sum()), own.size, int(np.abs(own - other).max())))
            return bk.pack_levels(other, found.multipliers, found.signed)
        if found.ndim == 4:
            n, h, w, c = found.shape
            y = y.reshape(n, c, h, w).transpose(0, 2, 3, 1)
        y = y.reshape(found.shape)
        rows.append((made_by[register], False, int((y != found).sum()), y.size, float(np.abs(y - found).max())))
        return np.ascontiguousarray(y, found.dtype)

    packed.trace(x, replace=compare)
    return rows


@pytest.mark.quick_cases(8)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("network", NETWORKS)
def test_each_layer_is_the_same_given_the_same(network, width, monkeypatch):
    # The levels of a register may be read as integers alone, so that no output needs them as floats.
    monkeypatch.setattr(Graph, "keep", lambda self, outputs: None)
    torch.manual_seed(0)
    make, shape = NETWORKS[network]
    x = torch.randn(6, *shape)
    model = make(**WIDTHS[width])
    bnn.calibrate(model.eval(), x)
    rows = compared(bnn.convert(bnn.models.trained_like(model, x), x), x.numpy())
    levels = [row for row in rows if row[1] and not row[0].startswith("float")]
    assert levels
    for _, _, differ, count, most in levels:
        # Thresholds of 8 bits that are written as a rounding of a sum of floats: one that is a tie in floats.
        near = "8/8" in width and network != "ResNet20"
        assert differ <= (1e-4 * count if near else 0) and most <= 1
    for _, _, _, _, most in (row for row in rows if not row[1]):
        assert most < 1e-5  # the order of float sums in the first and last layer, and of batch norm
