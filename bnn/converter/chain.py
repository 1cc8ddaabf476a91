"""From a module to a chain: the layers of a network in the order in which data passes them."""

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from bnn.converter.errors import ConversionError
from bnn.layers.base import QuantLayer
from bnn.quantizers.base import Quantizer

# Functions that stand for a module without parameters.
_FUNCTIONS: dict[Any, type[nn.Module]] = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    torch.flatten: nn.Flatten,
    "relu": nn.ReLU,
    "flatten": nn.Flatten,
}


@dataclass(frozen=True)
class Link:
    """One module of the chain: its dotted path, and the shape of its output without the batch."""

    path: str
    module: nn.Module
    shape: tuple[int, ...]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, QuantLayer | Quantizer) or super().is_leaf_module(module, qualified_name)


def _as_module(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[str, nn.Module]:
    if node.op == "call_module":
        return str(node.target), modules[str(node.target)]
    stack = list((node.meta.get("nn_module_stack") or {"": None}).keys())
    where = stack[-1] or "the model"
    kind = _FUNCTIONS.get(node.target)
    if kind is nn.ReLU:
        return node.name, nn.ReLU()
    if kind is nn.Flatten and list(node.args[1:]) == [1] and not node.kwargs:
        return node.name, nn.Flatten()
    if kind is nn.Flatten and node.kwargs == {"start_dim": 1} and len(node.args) == 1:
        return node.name, nn.Flatten()
    if kind is nn.Flatten:
        raise ConversionError(f"{node.name} in {where}: only flatten(x, 1) can be converted")
    name = getattr(node.target, "__name__", str(node.target))
    hint = (
        "branches and sums are not supported yet"
        if node.target in (operator.add, torch.add, torch.cat)
        else ("use a module such as nn.ReLU, nn.MaxPool2d or nn.Flatten instead")
    )
    raise ConversionError(f"function {name!r} in {where} cannot be converted: {hint}")


def trace_chain(model: nn.Module, example: Tensor) -> list[Link]:
    """Return the links of a network without branches; ConversionError names what does not fit into a chain."""
    try:
        graph = _Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError) as error:
        raise ConversionError(
            f"{type(model).__name__} cannot be traced (control flow that depends on data?): {error}"
        ) from error
    inputs = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise ConversionError(
            f"a network with one input can be converted; this one takes {', '.join(map(repr, inputs))}"
        )
    module = fx.GraphModule(model, graph)
    try:
        with torch.no_grad():
            ShapeProp(module).propagate(example)
    except RuntimeError as error:
        reason = error.__cause__ or error
        raise ConversionError(f"the model does not run on an input of shape {tuple(example.shape)}: {reason}") from None
    modules = dict(model.named_modules())
    links: list[Link] = []
    before: fx.Node | None = None
    for node in graph.nodes:
        if node.op == "placeholder":
            pass
        elif node.op == "output":
            if node.args[0] is not before:
                raise ConversionError("a network with one output, made by its last layer, can be converted")
            break
        elif node.op == "get_attr":
            raise ConversionError(f"the tensor {node.target!r} is used outside of a layer and cannot be converted")
        else:
            path, part = _as_module(node, modules)
            if node.all_input_nodes != [before]:
                raise ConversionError(
                    f"{path} ({type(part).__name__}) does not take the output of the layer before it: "
                    "branches and residual connections are not supported yet"
                )
            links.append(Link(path, part, tuple(node.meta["tensor_meta"].shape[1:])))
        before = node
    if not links:
        raise ConversionError("the model has no layers")
    return links
