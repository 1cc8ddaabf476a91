"""An ONNX file as plain Python: nodes with their attributes, constants as tensors. Only here onnx is needed."""

import os
import re
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnn.onnx_file.errors import OnnxError


@dataclass(frozen=True)
class Node:
    """One operator. inputs, outputs: names, "" of one that is left out. opset: the version of its domain."""

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int

    def named(self, op: str = "", **attributes: Any) -> "Node":
        """Return the node as one of another operator, and with more attributes."""
        return replace(self, op=op or self.op, attributes=self.attributes | attributes)

    def __str__(self) -> str:
        made = ", ".join(name for name in self.outputs if name)
        domain = f" of {self.domain}" if self.domain else ""
        return f"operator {self.op}{domain}, node {self.name or 'without a name'!r}, output {made!r}"


class Stored(NamedTuple):
    """A constant, float32, int64 or bool. range: what its type in the file holds, of integers alone."""

    tensor: Tensor
    range: tuple[int, int] | None = None


@dataclass(frozen=True)
class GraphInput:
    """An input: its sides, None of one that is free, and its dtype in PyTorch."""

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Graph:
    """A model: nodes in the order in which they run."""

    nodes: tuple[Node, ...]
    constants: dict[str, Stored]
    inputs: tuple[GraphInput, ...]
    outputs: tuple[str, ...]


def package() -> Any:
    """Return the package onnx; ImportError says how to get it."""
    try:
        import onnx
    except ImportError:
        raise ImportError("reading ONNX needs the package onnx: pip install 'bitplanes[onnx]'") from None
    return onnx


def read(model: str | os.PathLike[str] | Any) -> Graph:
    """Return the graph of a file, or of an `onnx.ModelProto`; OnnxError if it is none, OSError if there is no file."""
    onnx = package()
    if isinstance(model, str | os.PathLike):
        with open(model, "rb") as file:  # so that a file that is not there is told as any other
            file.read(1)
        try:
            model = onnx.load(os.fspath(model))
        except Exception as error:  # protobuf's own, whose class differs from version to version
            raise OnnxError(f"{os.fspath(model)} is no ONNX file: {error}") from None
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"an ONNX model is the path of a file or an onnx.ModelProto, got {type(model).__name__}")
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    graph = model.graph
    constants = {value.name: tensor_of(onnx, value) for value in graph.initializer}
    if graph.sparse_initializer:
        raise OnnxError(f"constant {graph.sparse_initializer[0].values.name!r} is sparse: write it densely")
    nodes = tuple(_node(onnx, node, opsets) for node in graph.node)
    inputs = tuple(_input(onnx, value) for value in graph.input if value.name not in constants)
    return Graph(nodes, constants, inputs, tuple(value.name for value in graph.output))


def _node(onnx: Any, node: Any, opsets: dict[str, int]) -> Node:
    domain = "" if node.domain == "ai.onnx" else node.domain
    attributes = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            value = tensor_of(onnx, value)
        elif isinstance(value, bytes):
            value = value.decode(errors="replace")
        attributes[attribute.name] = value
    opset = opsets.get(domain, opsets.get("ai.onnx", 1) if not domain else 1)
    return Node(node.op_type, domain, node.name, tuple(node.input), tuple(node.output), attributes, opset)


def tensor_of(onnx: Any, value: Any) -> Stored:
    """Return a constant as float32, int64 or bool, which hold the numbers of all narrower types."""
    array = onnx.numpy_helper.to_array(value)
    kinds = onnx.TensorProto
    kind = kinds.DataType.Name(value.data_type)
    if array.dtype == np.bool_:
        return Stored(torch.from_numpy(array.copy()))
    if kind in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"):
        return Stored(torch.from_numpy(np.array(array, np.float32)))
    ends = integer_range(onnx, value.data_type)
    if ends is None:
        raise OnnxError(f"constant {value.name!r} holds {kind}, which has no form here: use float32 or integers")
    return Stored(torch.from_numpy(array.astype(np.int64)), ends)


def integer_range(onnx: Any, kind: int) -> tuple[int, int] | None:
    """Return the smallest and the largest number of an integer type of ONNX, by its number; None if it is none."""
    found = re.fullmatch(r"(U?)INT(\d+)", onnx.TensorProto.DataType.Name(kind))
    if found is None:
        return None
    bits = int(found[2])
    return (0, 2**bits - 1) if found[1] else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _input(onnx: Any, value: Any) -> GraphInput:
    kinds, tensor = onnx.TensorProto, value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    dtypes = {kinds.UINT8: torch.uint8, kinds.INT64: torch.int64, kinds.INT32: torch.int64}
    floats = {kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE}
    if tensor.elem_type not in {*dtypes, *floats} or not shape:
        kind = kinds.DataType.Name(tensor.elem_type)
        raise OnnxError(f"input {value.name!r} is {kind} {shape}: networks take floats, uint8 pixels or indices")
    return GraphInput(value.name, shape, dtypes.get(tensor.elem_type, torch.float32))
