"""ONNX files become networks: their answers are those of ONNX Runtime or of qonnx, and their layers bits."""

import subprocess
import sys
import warnings

import bnn_kernels as bk
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnn
from bnn import quantizers as q
from bnn.layers import QuantConv2d, QuantLinear
from bnn.models import LeNet5, ResNet20

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

QONNX = "qonnx.custom_op.general"


def model_of(nodes, shape, constants=(), outputs=("y",), opset=21, dtype=TensorProto.FLOAT):
    """A model of the input x; constants: arrays by name."""
    x = helper.make_tensor_value_info("x", dtype, ["N", *shape])
    ys = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    found = [
        value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        for name, value in dict(constants).items()
    ]
    graph = helper.make_graph(nodes, "g", [x], ys, found)
    domains = [helper.make_opsetid("", opset), helper.make_opsetid(QONNX, 1), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def runtime(model, x):
    """What ONNX Runtime makes of a model, each node by itself."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


def qonnx_answers(model, x):
    """What the package qonnx makes of it."""
    pytest.importorskip("qonnx")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.input[0].type.tensor_type.shape.dim[0].dim_value = len(x)
    copy.graph.output[0].ClearField("type")
    copy.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    return execute_onnx(ModelWrapper(copy).transform(InferShapes()), {"x": x})["y"]


def layers_on_bits(network, x):
    found = bnn.converter.explain(network, x[:1])
    return [layer.on_bits for layer in found.layers]


def few(bits, signed=False):
    return {
        "weight_quantizer": lambda: q.LsqWeight(bits=bits),
        "input_quantizer": lambda: q.LsqActivation(bits=bits, signed=signed),
    }


WIDTHS = {
    "1/1": {"weight_quantizer": q.XnorWeight, "input_quantizer": q.SteSign},
    "t/2": {**few(2), "weight_quantizer": q.TernaryWeight},
    "dorefa 3/3": {
        "weight_quantizer": lambda: q.DoReFaWeight(bits=3),
        "input_quantizer": lambda: q.DoReFaActivation(bits=3),
    },
    "4/4": few(4),
    "8/8": few(8),
    "affine 8/8": {**few(8), "input_quantizer": lambda: q.AffineActivation(bits=8)},
}


def small(**quantizers):
    """Pooling before batch norm, whose scale is negative in some channels."""
    return nn.Sequential(
        QuantConv2d(3, 12, 3, padding=1, **quantizers),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(12),
        QuantConv2d(12, 8, 3, stride=2, groups=1, **quantizers),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        QuantLinear(8 * 9, 5, **quantizers),
    )


NETWORKS = {
    "small": (small, (3, 16, 16)),
    "LeNet5": (LeNet5, (1, 28, 28)),
    "ResNet20": (ResNet20, (3, 32, 32)),
}


@pytest.mark.quick_cases(8)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("style", ["qdq", "qonnx"])
def test_a_network_comes_back_from_its_own_export(style, width, network):
    torch.manual_seed(3)
    make, shape = NETWORKS[network]
    x = torch.randn(8, *shape)
    model = make(**WIDTHS[width])
    bnn.calibrate(model.eval(), x)
    packed = bnn.convert(bnn.models.trained_like(model, x), x)
    exported = bk.onnx_model(packed, style)
    again = bnn.from_onnx(exported)
    expected = packed(x.numpy())
    # Of 5 bits and more the export rounds in place of thresholds: a level may be one beside its own, and in a deep
    # untrained network move others.
    near = (0.15 if network == "ResNet20" else 2e-2) if "8" in width else 1e-5
    scale = np.abs(expected).max()
    np.testing.assert_allclose(again(x).detach().numpy(), expected, rtol=0, atol=near * scale)
    repacked = bnn.convert(again, x)
    np.testing.assert_allclose(repacked(x.numpy()), expected, rtol=0, atol=near * scale)
    second, first = np.sort(expected, axis=1)[:, -2:].T
    sure = first - second > 2 * near * scale
    np.testing.assert_array_equal(repacked(x.numpy()).argmax(1)[sure], expected.argmax(1)[sure])
    integers = sum(step.op in ("binary_conv", "binary_linear") for step in packed.steps)
    assert sum(layers_on_bits(again, x)) == integers
    report = bnn.check_parity(again, repacked, x)
    assert report.first_difference is None
    assert report.ok or near == 0.15  # where rounding before a level decides on predictions
    if style == "qdq":
        np.testing.assert_allclose(again(x).detach().numpy(), runtime(exported, x.numpy()), rtol=0, atol=near * scale)
    elif network == "small":
        found = qonnx_answers(exported, x.numpy())
        np.testing.assert_allclose(again(x).detach().numpy(), found, rtol=0, atol=near * scale)


class Plain(nn.Module):
    """Padding, stride, depthwise, groups, a residual sum, and a view that asks for the batch."""

    def __init__(self):
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.dw, self.b2 = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16)
        self.pw, self.b3 = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        self.c2, self.b4 = nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(32)
        self.pool, self.f1, self.f2 = nn.MaxPool2d(2), nn.Linear(32 * 4 * 4, 40), nn.Linear(40, 10)

    def forward(self, x):
        x = F.relu(self.b1(self.c1(x)))
        y = F.relu6(self.b2(self.dw(x)))
        x = F.relu(self.b3(self.pw(y)) + x)
        x = self.pool(F.relu(self.b4(self.c2(x))))
        return self.f2(F.relu(self.f1(x.view(x.size(0), -1))))


def exported(network, x, file, free=True):
    """A file by PyTorch's exporter that needs no other package, of which it warns."""
    axes = {"x": {0: "n"}, "y": {0: "n"}} if free else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": axes, "dynamo": False}
        torch.onnx.export(network, (x[:1],), str(file), **names)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A network with the state of a trained one, images, and its file."""
    torch.manual_seed(0)
    x = torch.randn(32, 3, 16, 16)
    network = bnn.models.trained_like(Plain().eval(), x).eval()
    file = tmp_path_factory.mktemp("onnx") / "plain.onnx"
    exported(network, x, file)
    return network, x, file


@pytest.mark.parametrize("free", [True, False])
def test_fp32_is_read_whatever_the_batch(plain, free, tmp_path):
    network, x, _ = plain
    exported(network, x, tmp_path / "net.onnx", free)
    read = bnn.from_onnx(tmp_path / "net.onnx")
    torch.testing.assert_close(read(x), network(x), rtol=0, atol=1e-5)
    np.testing.assert_allclose(bnn.convert(read, x)(x.numpy()), network(x).detach().numpy(), rtol=0, atol=2e-5)
    assert read.meta["inputs"] == [((3, 16, 16), torch.float32)]


def test_a_network_that_was_read_is_quantized_and_trained_as_any_other(plain):
    _, x, file = plain
    network = bnn.quantize(bnn.from_onnx(file), bits=8)
    network = bnn.calibrate(network, [x]).eval()
    assert sum(layers_on_bits(network, x)) == 4  # all but the first and the last
    assert bnn.check_parity(network, bnn.convert(network, x), x).ok


def quantized(file, x, target, **options):
    quantization = pytest.importorskip("onnxruntime.quantization")
    from onnxruntime.quantization.shape_inference import quant_pre_process

    left = iter([{"x": part.numpy()} for part in x.split(8)])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self):
            return next(left, None)

    prepared = str(target) + ".prepared"
    quant_pre_process(str(file), prepared)
    quantization.quantize_static(prepared, str(target), Reader(), **options)
    return onnx.load(target)


def assert_levels(found, expected):
    """The levels of an output are the same, but for a few beside their own: ONNX Runtime adds floats in its order."""
    step = np.diff(np.unique(expected.round(5))).min()
    levels = np.abs(found - expected) / step
    assert levels.max() < 1.1
    assert (levels > 0.1).mean() < 0.03


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("types", ["u8 s8", "s8 s8", "u8 u8", "u8 s4"])
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_what_onnx_runtime_quantizes_runs_on_bits(plain, form, types, per_channel, tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    if form == "QOperator" and types == "u8 s4":
        pytest.skip("ONNX Runtime has no such operators")
    kinds = {"u8": "QUInt8", "s8": "QInt8", "s4": "QInt4"}
    activations, weights = (getattr(quantization.QuantType, kinds[part]) for part in types.split())
    _, x, file = plain
    model = quantized(
        file, x, tmp_path / "q.onnx", per_channel=per_channel, activation_type=activations, weight_type=weights,
        quant_format=getattr(quantization.QuantFormat, form),
    )  # fmt: skip
    network = bnn.from_onnx(model)
    expected = runtime(model, x.numpy())
    found = network(x).detach().numpy()
    assert_levels(found, expected)
    packed = bnn.convert(network, x)
    np.testing.assert_array_equal(packed(x.numpy()), found)
    assert layers_on_bits(network, x) == [True] * 6
    report = bnn.check_parity(network, packed, x)
    assert report.ok and report.first_difference is None


@pytest.mark.slow
def test_what_nncf_quantizes_runs_on_bits(plain, tmp_path):
    nncf = pytest.importorskip("nncf")
    _, x, file = plain
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nncf.quantize(onnx.load(file), nncf.Dataset([{"x": x[i : i + 1].numpy()} for i in range(len(x))]))
    network = bnn.from_onnx(model)
    np.testing.assert_allclose(network(x).detach().numpy(), runtime(model, x.numpy()), rtol=0, atol=1e-5)
    assert layers_on_bits(network, x) == [True] * 6


class Fake(nn.Module):
    """Levels as torch.ao has them: the exporter writes Q/DQ nodes of weights that are floats."""

    def __init__(self, network, per_channel):
        super().__init__()
        self.network, self.per_channel = network, per_channel

    def weight(self, w):
        if not self.per_channel:
            return torch.fake_quantize_per_tensor_affine(w, float(w.abs().max()) / 127, 0, -128, 127)
        zero = torch.zeros(len(w), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(w, w.detach().flatten(1).abs().amax(1) / 127, zero, 0, -128, 127)

    def forward(self, x):
        net = self.network
        for layer, given in ((net.c1, {"padding": 1}), (net.c2, {"padding": 1, "stride": 2, "groups": 2})):
            x = torch.fake_quantize_per_tensor_affine(x, 0.03, 100, 0, 255)
            x = F.relu(F.conv2d(x, self.weight(layer.weight), layer.bias, **given))
        x = torch.fake_quantize_per_tensor_affine(x, 0.03, 0, 0, 255)
        return F.linear(net.pool(x).flatten(1), self.weight(net.f1.weight), net.f1.bias)


@pytest.mark.parametrize("per_channel", [False, True])
def test_fake_quantization_of_pytorch_runs_on_bits(plain, per_channel, tmp_path):
    network, x, _ = plain
    fake = Fake(network, per_channel).eval()
    exported(fake, x, tmp_path / "fake.onnx")
    read = bnn.from_onnx(tmp_path / "fake.onnx")
    torch.testing.assert_close(read(x), fake(x), rtol=0, atol=1e-5)
    np.testing.assert_allclose(bnn.convert(read, x)(x.numpy()), fake(x).detach().numpy(), rtol=0, atol=1e-5)
    assert layers_on_bits(read, x) == [True] * 3


# -- operators, one by one --------------------------------------------------------------------------------------------


def case(op, shape=(3, 6, 6), *constants, domain="", **attributes):
    """A model of one operator: its input, then constants."""
    names = [f"c{i}" for i in range(len(constants))]
    given = ["" if constant is None else name for name, constant in zip(names, constants, strict=True)]
    node = helper.make_node(op, ["x", *given], ["y"], name="the_node", domain=domain, **attributes)
    return model_of([node], shape, {n: c for n, c in zip(names, constants, strict=True) if c is not None})


def ints(*values):
    return np.array(values, np.int64)


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


OPERATORS = {
    **{op: case(op) for op in (
        "Abs", "Ceil", "Erf", "Exp", "Floor", "Neg", "Round", "Sign", "Sigmoid", "Softplus", "Softsign", "Tanh", "Elu",
        "Relu", "LeakyRelu", "HardSwish", "HardSigmoid", "Gelu", "Softmax", "LogSoftmax", "GlobalAveragePool",
        "GlobalMaxPool", "Identity", "Flatten", "Transpose", "Mish",
    )},
    "Clip": case("Clip", (3, 6, 6), np.float32(-0.5), np.float32(1.5)),
    "Clip without a low end": case("Clip", (3, 6, 6), None, np.float32(0.5)),
    "HardSigmoid of sixths": case("HardSigmoid", alpha=1 / 6, beta=0.5),
    "PRelu": case("PRelu", (3, 6, 6), floats(3, 1, 1)),
    "PRelu of every number": case("PRelu", (3, 6, 6), floats(3, 6, 6)),
    "Add": case("Add", (3, 6, 6), floats(3, 1, 1)), "Sub": case("Sub", (3, 6, 6), floats(6)),
    "Mul": case("Mul", (3, 6, 6), floats(3, 1, 1)), "Div": case("Div", (3, 6, 6), floats(3, 1, 1)),
    "Pow": case("Pow", (3, 6, 6), np.float32(2)), "Max": case("Max", (3, 6, 6), floats(3, 1, 1)),
    "Min": case("Min", (3, 6, 6), np.float32(0.2)), "Sum": case("Sum", (3, 6, 6), floats(3, 1, 1), floats(6)),
    "Conv": case("Conv", (4, 7, 7), floats(6, 2, 3, 3), floats(6), group=2, strides=[2, 1], pads=[1, 0, 1, 0]),
    "Conv with uneven pads": case("Conv", (3, 7, 7), floats(4, 3, 3, 3), pads=[0, 1, 2, 1]),
    "Conv of the same size": case("Conv", (3, 7, 8), floats(4, 3, 2, 2), auto_pad="SAME_UPPER", strides=[2, 2]),
    "Conv of the same size, lower": case("Conv", (3, 7, 8), floats(4, 3, 2, 2), auto_pad="SAME_LOWER"),
    "Conv over one axis": case("Conv", (3, 9), floats(4, 3, 3), dilations=[2]),
    "Conv over three axes": case("Conv", (2, 4, 5, 6), floats(3, 2, 2, 2, 2)),
    "ConvTranspose": case("ConvTranspose", (3, 5, 5), floats(3, 4, 3, 3), floats(4), strides=[2, 2], pads=[1, 1, 1, 1],
                          output_padding=[1, 1]),
    "MatMul": case("MatMul", (5, 6), floats(6, 3)), "Gemm": case("Gemm", (6,), floats(6, 3), floats(3)),
    "Gemm turned and scaled": case("Gemm", (6,), floats(3, 6), floats(3), transB=1, alpha=0.5, beta=2.0),
    "MaxPool": case("MaxPool", (3, 7, 7), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "MaxPool with uneven pads": case("MaxPool", (3, 7, 7), kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
    "MaxPool rounding up": case("MaxPool", (3, 7, 7), kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "AveragePool": case("AveragePool", (3, 7, 7), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "AveragePool counting pads": case("AveragePool", (3, 7, 7), kernel_shape=[2, 2], pads=[0, 0, 1, 1],
                                      count_include_pad=1),
    "BatchNormalization": case("BatchNormalization", (3, 6, 6), floats(3), floats(3, seed=1), floats(3, seed=2),
                               np.abs(floats(3, seed=3)), epsilon=1e-3),
    "LayerNormalization": case("LayerNormalization", (5, 6), floats(6), floats(6, seed=1)),
    "Reshape": case("Reshape", (3, 4, 5), ints(0, 12, -1)), "Squeeze": case("Squeeze", (3, 1, 5), ints(2)),
    "Unsqueeze": case("Unsqueeze", (3, 5), ints(1, -1)), "Slice": case("Slice", (6, 5), ints(1), ints(99), ints(1)),
    "Slice with steps": case("Slice", (6, 5), ints(0, 1), ints(6, -1), ints(1, 2), ints(2, 1)),
    "Gather": case("Gather", (6, 5), ints(2, 0, -1), axis=1), "Expand": case("Expand", (1, 5), ints(1, 4, 1)),
    "Pad": case("Pad", (3, 5, 5), ints(0, 1, 2, 0, 0, 0, 1, 3), np.float32(0.5)),
    "Pad by reflection": case("Pad", (3, 5, 5), ints(0, 0, 2, 1, 0, 0, 1, 2), mode="reflect"),
    "ReduceMean": case("ReduceMean", (3, 5, 5), ints(2, 3)),
    "ReduceSum": case("ReduceSum", (3, 5, 5), ints(-1), keepdims=0),
    "ReduceMax": case("ReduceMax", (3, 5, 5), ints(1)),
    "DepthToSpace": case("DepthToSpace", (8, 3, 3), blocksize=2, mode="CRD"),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_what_onnx_runtime_computes(name):
    model = OPERATORS[name]
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = floats(3, *shape, seed=7)
    found = bnn.from_onnx(model)(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, runtime(model, x), rtol=1e-5, atol=2e-6)


def test_a_graph_of_shapes_splits_and_choices():
    """Reshape to a shape that is computed, Split, Concat, Where, Greater, Cast and a constant that is an operator."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Constant", [], ["rest"], value=numpy_helper.from_array(ints(6, -1))),
        helper.make_node("Concat", ["n", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Split", ["r"], ["a", "b"], axis=1, num_outputs=2),
        helper.make_node("Greater", ["a", "b"], ["which"]),
        helper.make_node("Where", ["which", "a", "half"], ["w"]),
        helper.make_node("Cast", ["which"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["w", "f"], ["y"], axis=2),
    ]
    model = model_of(nodes, (4, 9), {"zero": ints(0), "half": np.float32(0.5)})
    x = floats(5, 4, 9)
    np.testing.assert_array_equal(bnn.from_onnx(model)(torch.from_numpy(x)).numpy(), runtime(model, x))


# -- quantizers, one by one -------------------------------------------------------------------------------------------


def quantizer_model(bits, signed, narrow, zero, mode="ROUND", weight_bits=4):
    """A convolution of quantized inputs and weights."""
    nodes = [
        helper.make_node("Quant", ["x", "s", "z", "b"], ["q"], domain=QONNX, signed=signed, narrow=narrow,
                         rounding_mode=mode),
        helper.make_node("Quant", ["w", "ws", "zero", "wb"], ["wq"], domain=QONNX, signed=1, narrow=1,
                         rounding_mode="ROUND"),
        helper.make_node("Conv", ["q", "wq"], ["y"], name="conv", pads=[1, 1, 1, 1]),
    ]  # fmt: skip
    w = floats(6, 3, 3, 3)
    scale = (np.abs(w).max((1, 2, 3), keepdims=True) / (2 ** (weight_bits - 1) - 1)).astype(np.float32)
    given = {"s": np.float32(0.25), "z": np.float32(zero), "b": np.float32(bits), "w": w, "ws": scale}
    return model_of(nodes, (3, 6, 6), {**given, "zero": np.float32(0), "wb": np.float32(weight_bits)})


@pytest.mark.parametrize(
    "given",
    [
        (2, 0, 0, 0), (4, 1, 0, 0), (4, 1, 1, 0), (8, 1, 0, 0), (3, 0, 0, 3), (8, 0, 0, 10), (8, 0, 0, 11),
        (4, 1, 0, 0, "FLOOR"), (4, 1, 0, 0, "CEIL"), (4, 1, 0, 0, "DOWN"),
    ],
)  # fmt: skip
def test_quant_of_qonnx(given):
    model = quantizer_model(*given)
    x = (np.random.default_rng(0).integers(-60, 60, (4, 3, 6, 6)) / 8).astype(np.float32)  # halves among them
    network = bnn.from_onnx(model)
    expected = qonnx_answers(model, x)
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-5, atol=1e-5)
    packed = bnn.convert(network, torch.from_numpy(x))
    np.testing.assert_allclose(packed(x), expected, rtol=1e-5, atol=1e-5)
    assert layers_on_bits(network, torch.from_numpy(x)) == [True]


def test_thresholds_and_signs_of_qonnx():
    """MultiThreshold per channel, whose output feeds a binary layer; signs that are turned over in some channels."""
    thresholds = np.sort(floats(6, 3, seed=4), 1)
    nodes = [
        helper.make_node("MultiThreshold", ["x", "t"], ["m"], domain=QONNX, out_scale=2.0, out_bias=-3.0),
        helper.make_node("BipolarQuant", ["w", "one"], ["wq"], domain=QONNX),
        helper.make_node("Conv", ["m", "wq"], ["c"], name="first"),
        helper.make_node("BipolarQuant", ["c", "one"], ["b"], domain=QONNX),
        helper.make_node("Mul", ["b", "direction"], ["d"]),
        helper.make_node("Flatten", ["d"], ["f"]),
        helper.make_node("MatMul", ["f", "vq"], ["y"], name="second"),
        helper.make_node("BipolarQuant", ["v", "half"], ["vq"], domain=QONNX),
    ]
    nodes.insert(6, nodes.pop())
    direction = np.array([1, -1, -1, 1], np.float32).reshape(4, 1, 1)
    given = {"t": thresholds, "w": floats(4, 6, 3, 3), "v": floats(4 * 16, 5), "direction": direction}
    model = model_of(nodes, (6, 6, 6), {**given, "one": np.float32(1), "half": np.float32(0.5)})
    model.graph.node[0].attribute.append(helper.make_attribute("out_dtype", "INT4"))
    x = floats(5, 6, 6, 6)
    network = bnn.from_onnx(model)
    expected = qonnx_answers(model, x)
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach().numpy(), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(bnn.convert(network, torch.from_numpy(x))(x), expected, rtol=0, atol=1e-5)
    found = bnn.converter.explain(network, torch.from_numpy(x))
    assert [(layer.weight_bits, layer.input_bits) for layer in found.layers] == [(1, 2), (1, 1)]


@pytest.mark.parametrize(("kind", "zero"), [(np.uint8, 0), (np.uint8, 117), (np.int8, -5), (np.int8, 0)])
def test_levels_between_q_and_dq_are_moved(kind, zero):
    """A pool and a Flatten between them; a ReLU before them leaves the levels above 0 alone."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["q"]),
        helper.make_node("MaxPool", ["q"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("DequantizeLinear", ["f", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], axis=1),
        helper.make_node("MatMul", ["d", "wd"], ["y"]),
    ]
    w = np.random.default_rng(1).integers(-8, 8, (27, 5)).astype(np.int8)
    scales = np.linspace(0.1, 0.3, 5).astype(np.float32)
    model = model_of(nodes, (3, 6, 6), {"s": np.float32(0.02), "z": np.array(zero, kind), "w": w, "ws": scales})
    x = floats(4, 3, 6, 6)
    network = bnn.from_onnx(model)
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach().numpy(), runtime(model, x), rtol=0, atol=1e-5)
    (layer,) = bnn.converter.explain(network, torch.from_numpy(x)).layers
    assert layer.weight_bits == 4
    assert layer.input_bits == (7 if kind is np.int8 and zero == 0 else 8)
    assert not any(isinstance(module, nn.ReLU) for module in network.modules())


@pytest.mark.parametrize(("zero", "other"), [(0, 0), (5, 0), (0, 5), (100, 90)])
def test_levels_may_be_dequantized_with_another_scale_and_zero_point(zero, other):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "t", "o"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], axis=0),
        helper.make_node("Conv", ["d", "wd"], ["y"], pads=[1, 1, 1, 1]),
    ]
    w = np.random.default_rng(1).integers(-8, 8, (4, 3, 3, 3)).astype(np.int8)
    given = {"s": np.float32(0.02), "t": np.float32(1), "w": w, "ws": np.full(4, 0.5, np.float32)}
    given |= {"z": np.array(zero, np.uint8), "o": np.array(other, np.uint8)}
    model = model_of(nodes, (3, 6, 6), given)
    x = floats(4, 3, 6, 6)
    network = bnn.from_onnx(model)
    expected = runtime(model, x)
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(bnn.convert(network, torch.from_numpy(x))(x), expected, rtol=1e-6, atol=1e-3)
    assert layers_on_bits(network, torch.from_numpy(x)) == [True]


def test_pixels_are_an_input():
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["d"]),
        helper.make_node("Conv", ["d", "w"], ["y"]),
    ]
    given = {"s": np.float32(1 / 255), "z": np.array(128, np.uint8), "w": floats(4, 3, 3, 3)}
    model = model_of(nodes, (3, 6, 6), given, dtype=TensorProto.UINT8)
    x = np.random.default_rng(0).integers(0, 256, (4, 3, 6, 6), np.uint8)
    network = bnn.from_onnx(model)
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach().numpy(), runtime(model, x), rtol=0, atol=1e-5)
    np.testing.assert_allclose(bnn.convert(network, torch.from_numpy(x))(x), runtime(model, x), rtol=0, atol=1e-5)


def test_scales_of_each_channel_of_an_input_are_read():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=1),
    ]
    given = {"s": np.array([0.1, 0.2, 0.05], np.float32), "z": np.array([0, 3, 100], np.uint8)}
    model = model_of(nodes, (3, 6, 6), given)
    x = floats(4, 3, 6, 6)
    np.testing.assert_allclose(bnn.from_onnx(model)(torch.from_numpy(x)).numpy(), runtime(model, x), atol=1e-6)


def test_gradients_pass_within_the_range():
    network = bnn.from_onnx(quantizer_model(4, 1, 0, 0))
    x = torch.tensor([-3.0, -1.0, 0.3, 1.5, 9.0]).repeat(1, 3, 5, 1).requires_grad_()
    network.train()
    network(x).sum().backward()
    assert (x.grad[0, 0, 2] != 0).tolist() == [False, True, True, True, False]
    assert all(p.grad is not None for p in network.parameters())


# -- errors -----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_named():
    with pytest.raises(
        bnn.onnx_file.OnnxError, match=r"^operator Einsum, node 'the_node', output 'y': there is no rule"
    ):
        bnn.from_onnx(case("Einsum", (4, 4), equation="nij->nji"))
    with pytest.raises(ValueError, match=r"^operator Relu of my.own, node 'the_node', output 'y': there is no rule"):
        bnn.from_onnx(case("Relu", domain="my.own"))
    with pytest.raises(ValueError, match=r"^operator Trunc of qonnx.custom_op.general, .* cannot be read; .* IntQuant"):
        bnn.from_onnx(case("Trunc", (4,), np.float32(1), domain=QONNX))
    with pytest.raises(ValueError, match=r"^operator Quant .*: rounding_mode 'HALF_UP' has no form here"):
        bnn.from_onnx(quantizer_model(4, 1, 0, 0, "HALF_UP"))
    with pytest.raises(ValueError, match=r"^operator Conv, node 'the_node', output 'y': its windows have 2 axes"):
        bnn.from_onnx(case("Conv", (3, 6), floats(4, 3, 3, 3)))
    with pytest.raises(ValueError, match=r"^operator MatMul, .*: it does not take what it is given: .*shapes"):
        bnn.from_onnx(case("MatMul", (5,), floats(6, 3)))


def test_integers_that_are_computed_with_are_named():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("Cast", ["q"], ["y"], name="as_float", to=TensorProto.FLOAT),
    ]
    model = model_of(nodes, (4,), {"s": np.float32(1), "z": np.array(0, np.uint8)})
    with pytest.raises(ValueError, match=r"^operator Cast, node 'as_float', output 'y': it computes with the integers"):
        bnn.from_onnx(model)


def test_free_sides_are_asked_for():
    model = case("Relu", (3, 6, 6))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    with pytest.raises(ValueError, match=r"'x' leaves sides beside its batch free: .* give input_shapes"):
        bnn.from_onnx(model)
    assert bnn.from_onnx(model, [(3, 5, 6)])(torch.zeros(2, 3, 5, 6)).shape == (2, 3, 5, 6)
    with pytest.raises(ValueError, match="without its batch, input_shapes"):
        bnn.from_onnx(model, [(4, 5, 6)])
    with pytest.raises(ValueError, match="1 inputs, input_shapes 2"):
        bnn.from_onnx(model, [(3, 5, 6), (3,)])


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        bnn.from_onnx(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match=r"text\.onnx is no ONNX file"):
        bnn.from_onnx(tmp_path / "text.onnx")
    with pytest.raises(TypeError, match=r"path of a file or an onnx\.ModelProto, got int"):
        bnn.from_onnx(3)


def test_the_command_packs_a_file(tmp_path):
    onnx.save(quantizer_model(4, 1, 0, 0), tmp_path / "net.onnx")
    command = [sys.executable, "-W", "ignore", "-m", "experiments.from_onnx", "file=net.onnx", "require_bits=true"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "conv   4        4       bits" in done.stdout and "parity holds" in done.stdout
    x = floats(2, 3, 6, 6)
    expected = bnn.from_onnx(tmp_path / "net.onnx")(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(bk.load(tmp_path / "net.safetensors")(x), expected, rtol=0, atol=1e-5)
