"""Which layers of a model follow each other, and what lies between them."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from bnn.data_flow import LayerTracer

# f(a x) = a f(x) for a > 0, as modules, functions and names of methods: elementwise, and within channels.
_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
          nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)  # fmt: skip
_ELEMENTWISE_FUNCTIONS: set[Any] = {F.relu, F.leaky_relu, F.dropout, torch.relu, "relu"}
_POOL_FUNCTIONS: set[Any] = {F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool2d}


@dataclass(frozen=True)
class LayerGraph:
    """A model's traced graph and its modules by path."""

    graph: fx.Graph
    modules: dict[str, nn.Module]
    calls: Counter[str]

    @classmethod
    def of(cls, model: nn.Module) -> "LayerGraph":
        """Return the graph of a model; ValueError if torch.fx cannot trace it."""
        modules = dict(model.named_modules(remove_duplicate=False))
        leaves = [module for module in modules.values() if is_layer(module)]
        try:
            graph = LayerTracer(leaves).trace(model)
        except Exception as error:  # fx runs the model's own code on proxies: anything can be raised
            raise ValueError(
                f"{type(model).__name__} cannot be traced ({type(error).__name__}: {error}), so it is unknown which "
                "layers follow each other"
            ) from error
        # One module under two paths is called as often as both are.
        calls = Counter(id(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
        return cls(graph, modules, Counter({path: calls[id(module)] for path, module in modules.items()}))

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, if the model calls it nowhere else."""
        path = str(node.target)
        return self.modules[path] if node.op == "call_module" and self.calls[path] == 1 else None

    def layers(self) -> list[tuple[fx.Node, nn.Module]]:
        """Return the nodes of layers that are called once, with the layers."""
        found = ((node, self.module(node)) for node in self.graph.nodes)
        return [(node, module) for node, module in found if module is not None and is_layer(module)]

    def only_user(self, node: fx.Node) -> fx.Node | None:
        """Return the one node that reads what a node makes; None if there are several or none."""
        users = list(node.users)
        return users[0] if len(users) == 1 and users[0].op != "output" else None

    def next_layer(self, node: fx.Node, layer: nn.Module) -> nn.Module | None:
        """Return the layer that alone reads a node, the output of `layer` or its norm, with the same channels.

        What lies between is positively homogeneous and keeps channels apart; a flattening from axis 1 on makes each a
        block of what a linear layer reads. None if there is no such layer.
        """
        maps = not isinstance(layer, nn.Linear)  # channels are axis 1, else the last
        flat = False
        here: fx.Node = node
        while (user := self.only_user(here)) is not None and len(user.all_input_nodes) == 1:
            here, found = user, self.module(user)
            if is_layer(found):
                return found if isinstance(found, nn.Linear) == (flat or not maps) else None
            if maps and not flat and self.flattens(here):
                flat = True
            elif self._is(here, _ELEMENTWISE, _ELEMENTWISE_FUNCTIONS):
                continue
            elif flat or not maps or not self._is(here, _POOLS, _POOL_FUNCTIONS):
                return None
        return None

    def _is(self, node: fx.Node, kinds: tuple[type[nn.Module], ...], functions: set[Any]) -> bool:
        if node.op == "call_module":
            return isinstance(self.modules[str(node.target)], kinds)
        return node.op in ("call_function", "call_method") and node.target in functions

    def flattens(self, node: fx.Node) -> bool:
        """Whether a node joins all axes from 1 on."""
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
        return node.target in (torch.flatten, "flatten") and (*node.args[1:], *node.kwargs.values()) == (1,)


def is_layer(module: nn.Module | None) -> bool:
    """Whether a module is a convolution or a linear layer."""
    return isinstance(module, _ConvNd | nn.Linear)


def is_batch_norm(module: nn.Module | None) -> bool:
    """Whether a module normalizes by statistics that are fixed in evaluation."""
    return isinstance(module, _BatchNorm) and module.track_running_stats


def output_axis(layer: nn.Module) -> int:
    """Return the axis of a layer's weight that has its output channels; of groups they are another's blocks."""
    return 1 if isinstance(layer, _ConvTransposeNd) else 0
