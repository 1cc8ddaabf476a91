"""torchao's quantization-aware training (PT2E), as a model that the training harness takes."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bnn.layers.base import QuantLayer
from bnn.training import begin_with
from experiments.engines.base import missing, silent
from experiments.engines.torchao_pt2e import TorchaoPt2e, exported
from experiments.ladder_rungs import plain

# What torchao writes for every batch norm behind a convolution, and takes when it folds it.
_FOLDED_EPS = 1e-5
_MOMENTUM, _EPS = 6, 7  # arguments of aten.batch_norm


class Prepared(nn.Module):
    """A network in FP32 that torchao has prepared for training in 8 bits, for its integer kernels on x86.

    of: dotted name of the network's class, arguments: its own. Inputs (N, *input_shape), float32, outputs those of the
    network. Weights have a scale a channel, inputs one scale and a zero point that follow a moving average of their
    ends while it trains; before the first batch of training it answers in FP32. Its weights are in `graph`, under the
    names that the network has for them, and `begin_with` takes them from a network without quantizers. Batch norms keep
    the eps and momentum of the network, of which torchao takes 1e-5 and 0.1 for all that it folds or sets to another
    mode; so modes are set here, in the graph. ValueError for a name that is no class, a network with quantizers, or one
    that does not say what it takes (`input_shape`); ModuleNotFoundError without torchao.
    """

    def __init__(self, of: str, **arguments: Any):
        super().__init__()
        if reason := missing(TorchaoPt2e()):
            raise ModuleNotFoundError(reason)
        self._of, self._arguments = of, arguments
        network = self._original()
        shape = getattr(network, "input_shape", None)
        if shape is None:
            raise ValueError(f"{of} does not say what it takes: give it an attribute input_shape, (C, H, W)")
        if any(isinstance(m, QuantLayer) and (m.weight_quantizer.packable or m.input_quantizer.packable)
               for m in network.modules()):  # fmt: skip
            raise ValueError(f"{of} has quantizers of ours, and torchao brings its own: give quantizer=fp32")
        self.input_shape = tuple(shape)
        self.graph = _prepared(plain(network).eval(), torch.zeros(2, *self.input_shape))

    def _original(self) -> nn.Module:
        """Return the network anew, of random weights."""
        module, _, name = self._of.rpartition(".")
        try:
            kind = getattr(importlib.import_module(module), name)
        except (AttributeError, ImportError, ValueError) as error:
            raise ValueError(f"of={self._of} names no class, such as bnn.models.LeNet5: {error}") from error
        network: nn.Module = kind(**self._arguments)
        return network

    def begin_with(self, source: nn.Module) -> None:
        """Take the weights of a trained network of the same kind; ValueError as of `bnn.training.begin_with`."""
        network = self._original()
        begin_with(network, source)
        absent = self.graph.load_state_dict(network.state_dict(), strict=False).missing_keys
        assert not {name for name, _ in self.graph.named_parameters()} & set(absent)

    def __deepcopy__(self, memo: dict[int, Any]) -> Prepared:
        """Return a copy, without PyTorch's deprecation of a part of its own graphs."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        with silent():
            twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def train(self, mode: bool = True) -> Prepared:
        """Set the mode, which the next `forward` gives to the graph: exported graphs refuse to be asked."""
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's outputs, with weights and inputs at the levels of 8 bits."""
        # Not in `train`: who restores modes sets `training` alone, and weights that are loaded bring flags along.
        _set_mode(self.graph, self.training)
        outputs: Tensor = self.graph(x)
        return outputs

    def converted(self) -> Any:
        """Return a graph of integers and their scales that answers as this network does in evaluation mode."""
        with silent():
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

            graph = copy.deepcopy(self.graph)
            _set_mode(graph, False)
            for name, (momentum, eps) in _norms(graph).items():
                with torch.no_grad():
                    graph.get_buffer(name).add_(eps - _FOLDED_EPS)
                _set_norms(graph, {name: (momentum, _FOLDED_EPS)})
            return convert_pt2e(graph)


def _prepared(network: nn.Module, example: Tensor) -> Any:
    """Return the graph of a network in evaluation mode with torchao's quantizers, none of which has seen anything."""
    with silent():
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        graph = exported(network, example).module()
        norms = _norms(graph)
        _set_flags(graph, True)  # in which torchao looks for convolutions with batch norms
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
        graph = prepare_qat_pt2e(graph, quantizer)
        _set_norms(graph, norms)
        # Once, so that ranges have their shapes, which a moving average of the network's buffers needs.
        _set_flags(graph, False)
        with torch.no_grad():
            graph(example)
            for quantizer in _quantizers(graph):
                quantizer.activation_post_process.min_val.fill_(torch.inf)
                quantizer.activation_post_process.max_val.fill_(-torch.inf)
                quantizer.scale.fill_(1)
                quantizer.zero_point.fill_(0)
    return graph


def _quantizers(graph: Any) -> list[Any]:
    from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase

    return [module for module in graph.modules() if isinstance(module, FakeQuantizeBase)]


def _set_mode(graph: Any, mode: bool) -> None:
    """Let quantizers follow what they see in training mode alone; those that have seen nothing leave it as it is."""
    _set_flags(graph, mode)
    for quantizer in _quantizers(graph):
        quantizer.enable_observer(mode)
        quantizer.enable_fake_quant(mode or bool(quantizer.activation_post_process.min_val.isfinite().all()))


def _calls(graph: Any) -> Iterator[tuple[Any, list[str]]]:
    """Nodes that call an operator, with the names of its arguments."""
    for node in graph.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            yield node, [argument.name for argument in node.target._schema.arguments]


def _set_flags(graph: Any, mode: bool) -> None:
    """Set the mode of batch norms and dropout."""
    changed = False
    for node, names in _calls(graph):
        for at, name in enumerate(names[: len(node.args)]):
            if name in ("training", "train") and node.args[at] is not mode:
                node.update_arg(at, mode)
                changed = True
    if changed:
        graph.recompile()


def _norms(graph: Any) -> dict[str, tuple[float, float]]:
    """Return {name of its running variance: (momentum, eps)} of each batch norm."""
    return {
        str(node.args[4].target): (node.args[_MOMENTUM], node.args[_EPS])
        for node, _ in _calls(graph)
        if node.target is torch.ops.aten.batch_norm.default and node.args[4] is not None
    }


def _set_norms(graph: Any, norms: dict[str, tuple[float, float]]) -> None:
    """Give batch norms their momentum and eps, and eps to the scale of the weights that they are folded into."""
    for node, _ in _calls(graph):
        if node.target is torch.ops.aten.batch_norm.default:
            variance = node.args[4]
            if variance is not None and variance.target in norms:
                for at, value in zip((_MOMENTUM, _EPS), norms[variance.target], strict=True):
                    node.update_arg(at, value)
        elif node.target is torch.ops.aten.add.Tensor and getattr(node.args[0], "target", None) in norms:
            node.update_arg(1, norms[node.args[0].target][1])
    graph.recompile()
