"""What the per-channel floats of a network become in evaluation: merged, or gone into thresholds.

Between two quantized layers the scale of the weights, the bias and batch norm are monotone by channel, so one integer
threshold a channel stands for all of them. Elsewhere a batch norm is a scale and a shift a channel.
This is what a packed file stores; `summary` counts by it. Nothing here changes a network.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from bnn.layers.base import QuantLayer, weight_planes
from bnn.quantizers.base import Quantizer

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_MONOTONE = (*NORMS, *_NOTHING, nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.MaxPool1d, nn.MaxPool2d, nn.Flatten)
_MONOTONE_CALLS: set[Any] = {F.relu, F.relu6, F.hardtanh, F.max_pool1d, F.max_pool2d, F.dropout, torch.relu,
                             torch.flatten, "relu", "flatten"}  # fmt: skip


@dataclass
class Folding:
    """Dotted paths of modules.

    thresholds: path of the first module of a run that ends in an input quantizer -> levels of that quantizer less 1;
        its own per-channel floats are replaced by that many thresholds a channel.
    direct: convolutions whose input quantizer takes signs of floats as they are, as behind a residual sum.
    gone: modules whose floats are in such thresholds.
    """

    thresholds: dict[str, int] = field(default_factory=dict)
    direct: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = any(True for _ in m.parameters(recurse=False))
        return own or isinstance(m, QuantLayer | Quantizer) or super().is_leaf_module(m, module_qualified_name)


class _Walk:
    def __init__(self, model: nn.Module):
        self.graph = _Tracer().trace(model)
        self.modules = dict(model.named_modules(remove_duplicate=False))

    def module(self, node: fx.Node) -> Any:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def run_behind(self, node: fx.Node) -> tuple[list[fx.Node], int] | None:
        """Return (nodes from this one's user to the last before a quantizer, its levels less 1), or None."""
        nodes: list[fx.Node] = []
        while len(node.users) == 1:
            (node,) = node.users
            module = self.module(node)
            if isinstance(module, QuantLayer):
                quantizer = module.input_quantizer
                fits = quantizer.packable and quantizer.elementwise and not module.input_scale
                return (nodes, 2**quantizer.bits - 1) if fits else None
            if not (isinstance(module, _MONOTONE) or (module is None and node.target in _MONOTONE_CALLS)):
                return None
            nodes.append(node)
        return None


def _sums_are_integers(layer: QuantLayer) -> bool:
    both = layer.weight_quantizer.packable and layer.input_quantizer.packable
    return both and not layer.input_scale and len(weight_planes(layer).parts) == 1


def folding(model: nn.Module) -> Folding:
    """Return what becomes of a model's per-channel floats; nothing is folded where torch.fx cannot trace the model."""
    found = Folding()
    try:
        walk = _Walk(model)
    except Exception:  # fx runs the model's own code on proxies: anything can be raised
        return found
    reached: set[fx.Node] = set()
    for node in walk.graph.nodes:
        module, path = walk.module(node), str(node.target)
        if isinstance(module, QuantLayer) and isinstance(module, _CONVS) and node not in reached:
            quantizer = module.input_quantizer
            if quantizer.packable and quantizer.elementwise and quantizer.bits == 1:
                found.direct.add(path)
        starts = isinstance(module, NORMS) or (isinstance(module, QuantLayer) and _sums_are_integers(module))
        run = walk.run_behind(node) if starts and path not in found.gone else None
        if run is not None:
            nodes, levels = run
            found.thresholds[path] = levels
            found.gone.update(_norms(walk, nodes))
            reached.update((nodes[-1] if nodes else node).users)
    return found


def _norms(walk: _Walk, nodes: Iterable[fx.Node]) -> list[str]:
    return [str(node.target) for node in nodes if isinstance(walk.module(node), NORMS)]
