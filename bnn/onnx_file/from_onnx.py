"""bnn.from_onnx: an ONNX file becomes a module of PyTorch."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from bnn.onnx_file import operators as operators  # registers the rules
from bnn.onnx_file.builder import Builder
from bnn.onnx_file.errors import OnnxError
from bnn.onnx_file.read import Graph, GraphInput, read
from bnn.onnx_file.registry import DOMAINS, RULES
from bnn.onnx_file.values import Const, Real, Value


def from_onnx(
    model: str | os.PathLike[str] | Any, input_shapes: Sequence[Sequence[int]] | None = None
) -> fx.GraphModule:
    """Return the network of an ONNX file, in evaluation mode, in float32.

    model: the path of a file, or an `onnx.ModelProto`: in FP32, with QuantizeLinear and DequantizeLinear as ONNX
        Runtime, NNCF and others write them, or with the quantizers of QONNX (Quant, IntQuant, BipolarQuant,
        MultiThreshold).
    input_shapes: of each input without its batch, for a file that leaves other sides than the batch free.

    `network.meta["inputs"]` holds the shape without batch and the dtype of each input.

    The module computes what the operators say; names of its layers are those of the nodes. Layers with levels on both
    sides are `bnn.layers.QuantConv2d` and its kin, so that `bnn.convert` packs them and `bnn.converter.explain` shows
    them. A clamp before a quantizer becomes part of it. OnnxError (a ValueError) names the operator, node and output
    that cannot be read; ImportError if the package onnx is missing.
    """
    graph = read(model)
    examples = _examples(graph.inputs, input_shapes)
    sides = {x.shape[0] for x in graph.inputs}
    build = Builder(next(iter(sides)) if len(sides) == 1 else None)
    values: dict[str, Value] = {name: Const(*stored) for name, stored in graph.constants.items()}
    names = []
    for given, example in zip(graph.inputs, examples, strict=True):
        names.append(build.free(given.name))
        values[given.name] = Real(names[-1], example)
    for node in graph.nodes:
        build.node = node
        rule = RULES.get(node.op) if node.domain in DOMAINS else None
        if rule is None:
            raise OnnxError(f"{node}: there is no rule for it; there are {', '.join(sorted(RULES))}")
        missing = [name for name in node.inputs if name and name not in values]
        if missing:
            raise OnnxError(f"{node}: nothing before it makes its input {missing[0]!r}")
        made = rule(build, [values[name] if name else None for name in node.inputs])
        made = made if isinstance(made, list) else [made]
        values.update(zip(node.outputs, made, strict=False))
    network = build.network(names, _outputs(build, graph, values)).eval()
    network.meta["inputs"] = [(tuple(x.shape[1:]), x.dtype) for x in examples]
    return network


def _examples(inputs: Sequence[GraphInput], input_shapes: Sequence[Sequence[int]] | None) -> list[Tensor]:
    if input_shapes is not None and len(input_shapes) != len(inputs):
        raise ValueError(f"the model has {len(inputs)} inputs, input_shapes {len(input_shapes)}")
    examples = []
    for i, given in enumerate(inputs):
        sides = given.shape[1:]
        if input_shapes is not None:
            chosen = tuple(input_shapes[i])
            if len(chosen) != len(sides) or any(a not in (None, b) for a, b in zip(sides, chosen, strict=True)):
                raise ValueError(f"input {given.name!r} has shape {sides} without its batch, input_shapes {chosen}")
            sides = chosen
        known = [side for side in sides if side]
        if len(known) < len(sides):
            raise OnnxError(
                f"input {given.name!r} leaves sides beside its batch free: {given.shape}; give input_shapes, for "
                "instance [(3, 224, 224)]"
            )
        examples.append(torch.zeros(given.shape[0] or 2, *known, dtype=given.dtype))
    return examples


def _outputs(build: Builder, graph: Graph, values: dict[str, Value]) -> list[str]:
    found = []
    for name in graph.outputs:
        value = values.get(name)
        if value is None or isinstance(value, Const):
            raise OnnxError(f"output {name!r} {'is made by no operator' if value is None else 'is constant'}")
        found.append(build.real(value).name)
    return found
