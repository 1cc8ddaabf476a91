"""Cross-layer equalization: channels of weights get equal ranges, by factors that one layer hands to the next."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnn.calibration.folding import fold_batch_norms
from bnn.calibration.layer_graph import LayerGraph, is_batch_norm, output_axis

# Ranges that changed by less than this share are equal.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class _Pair:
    """Two layers that follow each other, with a batch norm behind the first or None."""

    first: Any
    norm: Any
    second: Any

    @property
    def channels(self) -> int:
        """Output channels of the first."""
        return int(self.first.weight.shape[output_axis(self.first)])

    def ranges(self) -> tuple[Tensor, Tensor]:
        """Return the largest |w| of each channel, of the first layer's outputs and of the second's inputs."""
        first = _largest(self.first.weight, output_axis(self.first))
        if self.norm is not None:
            first = first * (self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()).abs()
        return first, _largest(self._by_input(), 0)

    def _by_input(self) -> Tensor:
        """Return the second layer's weight as (channels, all that reads one)."""
        weight = self.second.weight.detach()
        if getattr(self.second, "groups", 1) == 1:
            weight = weight.movedim(1 - output_axis(self.second), 0)
        return weight.reshape(self.channels, -1)  # a channel that was flattened is a block

    def divide(self, factors: Tensor) -> None:
        """Divide the first layer's outputs by factors (C,), in the second's weights multiply by them."""
        source = self.first if self.norm is None else self.norm
        axis = output_axis(self.first) if self.norm is None else 0
        source.weight.div_(factors.reshape(-1, *[1] * (source.weight.ndim - 1 - axis)))
        if source.bias is not None:
            source.bias.div_(factors)
        weight = self.second.weight
        axis = 0 if getattr(self.second, "groups", 1) > 1 else 1 - output_axis(self.second)
        spread = factors.repeat_interleave(weight.shape[axis] // len(factors))
        weight.mul_(spread.reshape(-1, *[1] * (weight.ndim - 1 - axis)))


def equalize(model: nn.Module, fold: bool = True, iterations: int = 20) -> nn.Module:
    """Return a new model of the same function whose weights have ranges that are equal channel by channel.

        bnn.calibrate(bnn.quantize(bnn.calibration.equalize(model), bits=8), batches, "mse")

    Where layer 2 reads layer 1 through nothing but ReLUs, leaky ReLUs, pooling, dropout and flattening, which hand a
    positive factor on, each channel i of layer 1's output is divided by s_i = sqrt(r1_i / r2_i), and what layer 2
    multiplies it by is multiplied by it, with r the largest |w| of the channel in each layer. Then both are
    sqrt(r1_i r2_i), so that one step for a whole layer fits all its channels. Pairs are gone through until nothing
    changes. Weights with a step for each channel need it less. Outputs are equal up to rounding.
    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.1,
    equations 9 to 11.

    fold: whether batch norms become part of the layers before them first (`fold_batch_norms`). Otherwise the factors go
        through a batch norm into its weight and bias, and layer 1's range is that with the batch norm. iterations: at
        most.

    Layers that are called twice, with groups (but for depthwise ones), or read by several others stay as they are, as
    do those before other activations, such as ReLU6. ValueError if torch.fx cannot trace the model or no two layers
    follow each other so.
    """
    model = fold_batch_norms(model) if fold else copy.deepcopy(model)
    pairs = _pairs(model)
    if not pairs:
        raise ValueError(
            f"{type(model).__name__} has no two layers with nothing but ReLUs, pooling and flattening between them"
        )
    with torch.no_grad():
        for _ in range(iterations):
            largest_change = 0.0
            for pair in pairs:
                first, second = pair.ranges()
                factors = torch.where((first > 0) & (second > 0), (first / second).sqrt(), 1)
                pair.divide(factors)
                largest_change = max(largest_change, float((factors - 1).abs().max()))
            if largest_change < TOLERANCE:
                break
    return model


def _largest(weight: Tensor, axis: int) -> Tensor:
    return weight.detach().movedim(axis, 0).flatten(1).abs().amax(1)


def _pairs(model: nn.Module) -> list[_Pair]:
    graph = LayerGraph.of(model)
    found = []
    for node, first in graph.layers():
        norm: Any = None
        user = graph.only_user(node)
        if user is not None and is_batch_norm(graph.module(user)):
            norm, node = graph.module(user), user
        second = graph.next_layer(node, first)
        if second is None or (norm is not None and not norm.affine):
            continue
        pair = _Pair(first, norm, second)
        if _fits(pair):
            found.append(pair)
    return found


def _fits(pair: _Pair) -> bool:
    """Whether the output channels of the first layer are the input channels of the second, or blocks of them."""
    first, second = pair.first, pair.second
    if getattr(first, "groups", 1) > 1 and output_axis(first) == 1:
        return False
    depthwise = output_axis(second) == 0 and getattr(second, "groups", 1) == pair.channels == len(second.weight)
    if getattr(second, "groups", 1) > 1:
        return depthwise
    inputs = second.weight.shape[1 - output_axis(second)]
    return bool(inputs % pair.channels == 0)
