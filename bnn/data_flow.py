"""How data passes through the layers of a model: which come first and last, and which never see a negative input."""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

# What makes values that are never negative, as modules, functions and names of methods.
_RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softplus)
_RECTIFYING: set[Any] = {F.relu, F.relu6, F.sigmoid, F.hardsigmoid, F.softmax, F.softplus, torch.relu, torch.sigmoid,
                         torch.softmax, "relu", "relu_", "sigmoid", "softmax"}  # fmt: skip
# What makes no negative value of values that are not negative.
_CARRIERS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
             nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Dropout2d, nn.Identity,
             nn.Flatten, nn.Upsample)  # fmt: skip
_CARRYING: set[Any] = {F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool2d, F.dropout,
                       F.interpolate, torch.flatten, torch.cat, torch.mean, torch.add, operator.add, operator.iadd,
                       operator.mul, "flatten", "view", "reshape", "mean", "permute", "transpose",
                       "contiguous"}  # fmt: skip


@dataclass(frozen=True)
class DataFlow:
    """Dotted paths of layers: those with no layer before, those with none behind, those with inputs >= 0."""

    first: frozenset[str]
    last: frozenset[str]
    not_negative: frozenset[str]


class LayerTracer(fx.Tracer):
    """Traces a model into a graph in which some of its layers, and what torch has, are single nodes."""

    def __init__(self, leaves: Iterable[nn.Module]):
        super().__init__()
        self.leaves = set(map(id, leaves))

    @classmethod
    def graph_of(cls, model: nn.Module, leaves: Iterable[nn.Module]) -> fx.Graph:
        """Return the graph of a model: traced, or its own if it is one that fx has made and cannot trace again."""
        found = list(leaves)
        try:
            return cls(found).trace(model)
        except Exception:  # fx runs the model's own code on proxies: anything can be raised
            if not isinstance(model, fx.GraphModule):
                raise
            targets = {id(model.get_submodule(str(n.target))) for n in model.graph.nodes if n.op == "call_module"}
            if not {id(leaf) for leaf in found} <= targets:
                raise
            return model.graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self.leaves or super().is_leaf_module(m, module_qualified_name)


def _traced(graph: fx.Graph, modules: Mapping[str, nn.Module], path_of: Callable[[nn.Module], str | None]) -> DataFlow:
    """Follow the graph: `path_of` gives the path of a module that is a layer, else None."""

    def layer(node: fx.Node) -> str | None:
        return path_of(modules[str(node.target)]) if node.op == "call_module" else None

    def carries(node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(modules[str(node.target)], _CARRIERS)
        return node.op in ("call_function", "call_method") and node.target in _CARRYING

    def rectifies(node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(modules[str(node.target)], _RECTIFIERS)
        return node.op in ("call_function", "call_method") and node.target in _RECTIFYING

    first, last, not_negative = set(), set(), set()
    behind_a_layer: set[fx.Node] = set()
    positive: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        path = layer(node)
        if any(given in behind_a_layer for given in inputs):
            behind_a_layer.add(node)
        elif path is not None:
            first.add(path)
        if path is not None:
            behind_a_layer.add(node)
            if inputs and all(given in positive for given in inputs):
                not_negative.add(path)
        if rectifies(node) or (carries(node) and inputs and all(given in positive for given in inputs)):
            positive.add(node)
    before_a_layer: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        path = layer(node)
        if any(user in before_a_layer for user in node.users):
            before_a_layer.add(node)
        elif path is not None:
            last.add(path)
        if path is not None:
            before_a_layer.add(node)
    return DataFlow(frozenset(first), frozenset(last), frozenset(not_negative))


def _executed(model: nn.Module, layers: Mapping[str, nn.Module], example: Tensor | tuple[Any, ...]) -> DataFlow:
    """Run the model once and take the layers in the order in which they ran."""
    order: list[str] = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, _output, path=path: order.append(path))
        for path, module in layers.items()
    ]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            model(*example) if isinstance(example, tuple) else model(example)
    finally:
        for module, mode in modes:
            module.training = mode
        for handle in handles:
            handle.remove()
    return DataFlow(frozenset(order[:1]), frozenset(order[-1:]), frozenset())


def readers_of_input(
    model: nn.Module, layers: Mapping[str, nn.Module], example: Tensor | tuple[Any, ...] | None = None
) -> list[str]:
    """Return what reads a model's first input: paths of layers, and names of anything else.

    Where torch.fx cannot trace the model it is run on `example`, and only a layer that is handed the very input is
    found.
    """
    names = {id(module): path for path, module in layers.items()}
    if id(model) in names:
        return [names[id(model)]]
    try:
        graph = LayerTracer.graph_of(model, layers.values())
    except Exception:  # fx runs the model's own code on proxies: anything can be raised
        return [] if example is None else _handed(model, layers, example)
    modules = dict(model.named_modules(remove_duplicate=False))
    first = next(node for node in graph.nodes if node.op == "placeholder")
    return [
        names.get(id(modules[str(node.target)]), str(node.target)) if node.op == "call_module" else node.name
        for node in first.users
    ]


def _handed(model: nn.Module, layers: Mapping[str, nn.Module], example: Tensor | tuple[Any, ...]) -> list[str]:
    given = example if isinstance(example, tuple) else (example,)
    found: list[str] = []

    def watch(path: str, inputs: tuple[Any, ...]) -> None:
        if inputs and inputs[0] is given[0]:
            found.append(path)

    handles = [
        module.register_forward_pre_hook(lambda _module, inputs, path=path: watch(path, inputs))
        for path, module in layers.items()
    ]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            model(*given)
    finally:
        for module, mode in modes:
            module.training = mode
        for handle in handles:
            handle.remove()
    return found


def data_flow(
    model: nn.Module, layers: Mapping[str, nn.Module], example: Tensor | tuple[Any, ...] | None = None
) -> DataFlow:
    """Return the data flow between some layers of a model.

    layers: the modules that count as layers, by dotted path. Where torch.fx can trace the model, a layer is first if
    data reaches it through no other layer, and last if none lies behind it: a model with two heads has two last ones.
    Where it cannot, the model is run on `example` (a tensor, or a tuple of arguments) in evaluation mode, first and
    last are what ran first and last, and nothing is known of signs. ValueError if there is no example then.
    """
    names = {id(module): path for path, module in layers.items()}
    if id(model) in names:  # the model is a layer, tracing would look into it
        return DataFlow(frozenset({""}), frozenset({""}), frozenset())
    try:
        graph = LayerTracer.graph_of(model, layers.values())
    except Exception as error:  # fx runs the model's own code on proxies: anything can be raised
        if example is not None:
            return _executed(model, layers, example)
        raise ValueError(
            f"{type(model).__name__} cannot be traced ({type(error).__name__}: {error}), so its first and last layers "
            "are unknown: pass example_input, or name the layers to skip"
        ) from error
    return _traced(graph, dict(model.named_modules(remove_duplicate=False)), lambda module: names.get(id(module)))
