"""Which layer alone reads the output channels of another one, and what lies between, channel by channel."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from bnn.calibration.layer_graph import LayerGraph, is_batch_norm
from bnn.layers import QuantConv1d, QuantConv2d, QuantConv3d, QuantLinear
from bnn.quantizers.base import Quantizer

# Layers whose forward is known: not what inherits from them.
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, QuantConv1d, QuantConv2d, QuantConv3d)
_LINEAR = (nn.Linear, QuantLinear)

# What makes each output element of its own input element.
_ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
                nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Identity,
                nn.Dropout)  # fmt: skip
_ELEMENTWISE_FUNCTIONS: set[Any] = {F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.hardtanh, F.hardswish,
                                    F.hardsigmoid, F.softplus, F.dropout, torch.relu, torch.sigmoid, torch.tanh,
                                    "relu", "relu_", "sigmoid", "tanh", "contiguous"}  # fmt: skip
# What makes each output channel of its own input channel.
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
          nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
          nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)  # fmt: skip
_POOL_FUNCTIONS: set[Any] = {F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
                             F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d}  # fmt: skip


@dataclass(frozen=True)
class ChannelPath:
    """The way of a layer's output channels to the one layer that reads them.

    layer, reader: dotted paths. between: the nodes that lie on it, in order, each of which reads the one before alone
    and makes each channel of that channel; a flattening makes a channel a block.
    """

    graph: LayerGraph
    node: fx.Node
    between: tuple[fx.Node, ...]
    end: fx.Node

    @property
    def layer(self) -> str:
        return str(self.node.target)

    @property
    def reader(self) -> str:
        return str(self.end.target)

    @property
    def axis(self) -> int:
        """The axis of maps that has the channels."""
        return -1 if isinstance(self.module(self.layer), nn.Linear) else 1

    def module(self, path: str) -> Any:
        """Return a module of the network."""
        return self.graph.modules[path]

    def norms(self) -> Iterator[str]:
        """Yield the paths of the batch norms between that scale and shift each channel."""
        for node in self.between:
            if node.op == "call_module" and is_batch_norm(found := self.module(str(node.target))) and found.affine:
                yield str(node.target)


def channel_paths(network: nn.Module) -> dict[str, ChannelPath | str]:
    """Return, of each convolution and linear layer in order, the way of its channels, or in words why there is none.

    ValueError if torch.fx cannot trace the network.
    """
    graph = LayerGraph.of(network)
    return {str(node.target): _path(graph, node, layer) for node, layer in graph.layers()}


def _path(graph: LayerGraph, node: fx.Node, layer: Any) -> ChannelPath | str:
    if type(layer) not in (*_CONVOLUTIONS, *_LINEAR):
        return f"it is a {type(layer).__name__}"
    if getattr(layer, "groups", 1) > 1:
        return "it has groups"
    maps = type(layer) in _CONVOLUTIONS
    between: list[fx.Node] = []
    here, flat = node, False
    while True:
        if len(here.users) != 1:
            return "its channels go several ways" if here.users else "nothing reads its channels"
        (user,) = here.users
        if user.op == "output":
            return "its channels are outputs of the network"
        module = graph.module(user)
        if type(module) in (*_CONVOLUTIONS, *_LINEAR):
            if (type(module) in _LINEAR) != (flat or not maps):
                return f"{user.target} does not read its channels as channels"
            if getattr(module, "groups", 1) > 1:
                return f"{user.target}, which reads its channels, has groups"
            return ChannelPath(graph, node, tuple(between), user)
        if len(user.all_input_nodes) != 1:
            return f"its channels are joined with others ({user.name})"
        flattens = maps and not flat and graph.flattens(user)
        if not flattens and not _by_channel(graph, user, module, flat):
            return f"it is not known what {user.name} makes of its channels"
        flat = flat or flattens
        between.append(user)
        here = user


def _by_channel(graph: LayerGraph, node: fx.Node, module: nn.Module | None, flat: bool) -> bool:
    """Whether a node makes each channel of that channel; of flattened maps each element of that element."""
    if node.op == "call_module":
        called = module if module is not None else graph.modules[str(node.target)]
        if isinstance(called, Quantizer):
            return called.elementwise and not called.channelwise
        if isinstance(called, nn.PReLU) and called.num_parameters > 1:
            return module is not None and not flat
        if isinstance(called, _ELEMENTWISE):
            return True
        return not flat and (isinstance(called, _POOLS) or (module is not None and is_batch_norm(module)))
    if node.op not in ("call_function", "call_method"):
        return False
    return node.target in _ELEMENTWISE_FUNCTIONS or (not flat and node.target in _POOL_FUNCTIONS)
