"""Linear layers of an ONNX file in 4 or 2 bits, with a scale for each 32 weights: ONNX Runtime's MatMulNBits."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

BLOCK = 32
# The library's lowest accuracy: inputs are rounded to 8 bits, and integers are multiplied.
INTEGERS = 4


def quantize_linear_layers(source: str, target: str, bits: int) -> None:
    """Write an ONNX file whose linear layers have MatMulNBits nodes; ValueError if there is no linear layer."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.ERROR)
    model = onnx.load(source)
    _as_products(model.graph)
    quantizer = MatMulNBitsQuantizer(model, bits, BLOCK, is_symmetric=False, accuracy_level=INTEGERS)
    quantizer.process()
    quantizer.model.save_model_to_file(target, False)
    if not any(node.op_type == "MatMulNBits" for node in quantizer.model.model.graph.node):
        raise ValueError("the network has no linear layer whose weights MatMulNBits could hold")


def _as_products(graph: Any) -> None:
    """Make x W^T + b of constant W, a Gemm node, a product and a sum: the library quantizes products alone."""
    from onnx import helper, numpy_helper

    constants = {one.name: one for one in graph.initializer}
    nodes = []
    for node in graph.node:
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, **given} == {
            "alpha": 1.0,
            "beta": 1.0,
            "transA": 0,
            "transB": 1,
        }
        if node.op_type != "Gemm" or not plain or node.input[1] not in constants:
            nodes.append(node)
            continue
        weight, product = f"{node.output[0]}_weight", f"{node.output[0]}_product"
        transposed = np.ascontiguousarray(numpy_helper.to_array(constants[node.input[1]]).T)
        graph.initializer.append(numpy_helper.from_array(transposed, weight))
        biased = len(node.input) > 2
        out = product if biased else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], weight], [out], name=f"{node.name}_product"))
        if biased:
            nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=f"{node.name}_bias"))
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    for one in [one for one in graph.initializer if one.name not in read]:
        graph.initializer.remove(one)
