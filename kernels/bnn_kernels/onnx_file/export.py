"""A packed model as an ONNX file: Q/DQ, which ONNX Runtime and others run in integers, or QONNX."""

import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from bnn_kernels.model.packed_model import PackedModel
from bnn_kernels.model.program import input_register
from bnn_kernels.onnx_file.folding import rounding_after
from bnn_kernels.onnx_file.graph import IR_VERSION, OPSET, QONNX, STYLES, Graph, Node, Style, UnsupportedError
from bnn_kernels.onnx_file.layers import Value, level_layer
from bnn_kernels.onnx_file.steps import STEPS, reshaped
from bnn_kernels.onnx_file.values import Floats, Levels

LAYERS = ("binary_conv", "binary_linear")


def _onnx() -> Any:
    try:
        import onnx
    except ImportError:
        raise ImportError("writing ONNX needs the package onnx: pip install onnx") from None
    return onnx


def onnx_model(model: PackedModel, style: Style = "qdq") -> Any:
    """Return an `onnx.ModelProto` that computes what a packed model does, for any number of images.

    style: "qdq" writes QuantizeLinear and DequantizeLinear around int8 and uint8, weights with a scale for each filter;
    "qonnx" writes Quant and BipolarQuant of the domain qonnx.custom_op.general, which keep the number of bits.

    Sums are of integers, exact up to 2^24, and signs and levels of up to 4 bits are comparisons of them. Thresholds of
    more levels that are those of a rounding become it, so that a runtime can multiply in integers; a level can then be
    one beside that of the packed model. All else are the same operations in the same order, in float32; batch norm
    rounds its product too. In "qonnx" the scales of weights and inputs are those of their quantizers. ValueError names
    a step that has no form in ONNX; ImportError if the package onnx is missing.
    """
    onnx = _onnx()
    g, values = graph_of(model, style)
    return _proto(onnx, g, model, values)


def graph_of(model: PackedModel, style: Style) -> tuple[Graph, dict[str, Value]]:
    """Return the nodes that compute what a packed model does, and what its registers are there; see `onnx_model`."""
    if style not in STYLES:
        raise ValueError(f"there are the styles {' and '.join(STYLES)}, got {style!r}")
    if model.states:
        raise ValueError("a model that computes step by step cannot be written as ONNX: convert it with bnn.convert")
    if any(model.batch_axes):
        raise ValueError("a model whose outputs have the batch behind another axis cannot be written as ONNX")
    g = Graph(style)
    values = _inputs(g, model)
    for index, (placed, spec) in enumerate(zip(model.placed, model.steps, strict=True)):
        where = f"{spec.op} {spec.source}".strip()
        g.prefix = f"{spec.source or spec.op}/{index}/".replace(" ", "_")
        given = [values[register] for register in placed.inputs]
        made = [model.specs[register]._replace(as_bytes=False) for register in placed.outputs]
        try:
            if spec.op in LAYERS:
                results = level_layer(g, placed.step, given, made, rounding_after(model, index))
            elif spec.op in STEPS:
                results = STEPS[spec.op](g, placed.step, given, made)
            else:
                raise UnsupportedError(f"there are {', '.join(sorted([*STEPS, *LAYERS]))}")
        except UnsupportedError as reason:
            raise ValueError(f"{where} cannot be written as ONNX: {reason}") from None
        values.update(zip(placed.outputs, results, strict=True))
    g.keep([value.name for value in (values[register] for register, _ in model.outputs)])
    return g, values


def _inputs(g: Graph, model: PackedModel) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for index, dtype in enumerate(model.input_dtypes):
        name = input_register(index)
        spec = model.specs[name]._replace(as_bytes=False)
        g.prefix = f"{name}/"
        x = name if model.input_shapes[index] == spec.shape else reshaped(g, name, spec.shape)
        if dtype == "uint8":
            if g.style == "qdq":
                zero = g.constant(np.array(0, np.uint8), "zero_point")
                x = g.add("DequantizeLinear", [x, g.floats(1, "scale"), zero])
            else:
                x = g.add("Cast", [x], to=1)
            values[name] = Levels(spec, x)
        else:
            values[name] = Floats(x, spec)
    return values


def _proto(onnx: Any, g: Graph, model: PackedModel, values: dict[str, Value]) -> Any:
    helper, kinds = onnx.helper, {"float32": onnx.TensorProto.FLOAT, "uint8": onnx.TensorProto.UINT8}
    inputs = [
        helper.make_tensor_value_info(input_register(i), kinds[dtype], ["N", *shape])
        for i, (shape, dtype) in enumerate(zip(model.input_shapes, model.input_dtypes, strict=True))
    ]
    outputs = []
    g.prefix = "output/"
    for i, (register, shape) in enumerate(model.outputs):
        value, name = values[register], f"y{i}" if i else "y"
        if not isinstance(value, Floats):
            raise ValueError("a model that returns levels cannot be written as ONNX")
        x = value.name if shape == value.spec.shape else reshaped(g, value.name, shape)
        g.nodes.append(Node("Identity", [x], [name], "", {}))
        outputs.append(helper.make_tensor_value_info(name, kinds["float32"], ["N", *shape]))
    nodes = [
        helper.make_node(
            node.op, node.inputs, node.outputs, name=node.outputs[0], domain=node.domain or None, **node.attributes
        )
        for node in g.nodes
    ]
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in g.constants.items()]
    graph = helper.make_graph(nodes, str(model.info.get("model", "model")), inputs, outputs, constants)
    domains = [helper.make_opsetid("", OPSET)]
    if any(node.domain for node in g.nodes):
        domains.append(helper.make_opsetid(QONNX, 1))
    return helper.make_model(graph, opset_imports=domains, ir_version=IR_VERSION, producer_name="bitplanes")


def write_onnx(model: PackedModel, path: str | os.PathLike[str], style: Style = "qdq") -> None:
    """Write `onnx_model` to a file, whole or not at all."""
    content, target = onnx_model(model, style).SerializeToString(), Path(path)
    partial = target.with_name(f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
