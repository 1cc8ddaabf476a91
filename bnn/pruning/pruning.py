"""Pruning while a network trains: single weights by magnitude, or whole output channels by the norm of their filters.

Both set masks of torch.nn.utils.prune, which are buffers and so part of every checkpoint; what is trained are the
original parameters. Quantizers see the masked weights.
"""

import copy
import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from bnn.calibration.layer_graph import is_layer
from bnn.layers.base import QuantLayer
from bnn.pruning.channel_path import ChannelPath, channel_paths
from bnn.pruning.masks import add_mask, remove_masks, set_mask

_NORMS = (1, 2, math.inf)


class Pruning:
    """What both kinds share: how much is pruned when.

    amount: the share of each layer that is pruned in the end. epoch: at whose start, counted from 0, pruning begins.
    until: at whose start the amount is reached; it grows as Zhu & Gupta let it ("To prune, or not to prune",
    arXiv:1710.01878, equation 1), amount (1 - (1 - t)^3) with t from 0 before `epoch` to 1. None: all at once.
    layers: dotted paths; None: all that can be pruned.

    In a loop of one's own: `begin` before the optimizer is made, `update` at the start of every epoch, `end` at last.
    """

    removes_channels = False  # whether `remove_dead_channels` finds what it pruned

    def __init__(
        self, amount: float, layers: Iterable[str] | None = None, epoch: int = 1, until: int | None = None
    ) -> None:
        if isinstance(amount, bool) or not isinstance(amount, float | int) or not 0 < amount < 1:
            raise ValueError(f"amount must be a share between 0 and 1, got {amount!r}")
        for name, number, least in (("epoch", epoch, 0), ("until", epoch if until is None else until, epoch)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ValueError(f"{name} must be at least {least}, a whole number; got {number!r}")
        if isinstance(layers, str):
            raise ValueError(f"layers must be a list of dotted paths, got {layers!r}")
        self.amount, self.epoch, self.until = float(amount), epoch, epoch if until is None else until
        self.layers = None if layers is None else list(layers)

    def amount_at(self, epoch: int) -> float:
        """Return the share that is pruned from the start of an epoch on."""
        if epoch < self.epoch:
            return 0.0
        left = (self.until - epoch) / (self.until - self.epoch + 1)
        return self.amount * (1 - max(0.0, left) ** 3)

    def begin(self, network: nn.Module) -> None:
        """Put masks of ones on what will be pruned; ValueError, naming the layer, where it cannot be."""
        raise NotImplementedError

    def update(self, network: nn.Module, epoch: int) -> None:
        """Set the masks of an epoch that begins; what was pruned before stays so."""
        raise NotImplementedError

    def end(self, network: nn.Module) -> None:
        """Make the masks permanent: what was pruned is 0, and parameters have their own names again."""
        remove_masks(network)

    def _chosen(self, possible: Iterable[str], network: nn.Module) -> list[str]:
        """Return the layers that are meant, of those that can be; ValueError for none, and for a name that is none."""
        found = list(possible)
        if not found:
            raise ValueError(f"{type(network).__name__} has no layer that could be pruned so")
        if self.layers is None:
            return found
        if wrong := [name for name in self.layers if name not in found]:
            raise ValueError(f"{wrong[0]!r} is no layer that could be pruned; those are {', '.join(found)}")
        return self.layers


class WeightPruning(Pruning):
    """Prunes single weights, those of the smallest magnitude of each layer.

    The arguments are those of `Pruning`. Weights whose quantizer has no zero (binary ones) cannot be pruned so. Zeros
    take as many bits as other weights: the packed file does not become smaller, nor the network faster.
    """

    def __init__(
        self, amount: float = 0.5, layers: Iterable[str] | None = None, epoch: int = 1, until: int | None = None
    ) -> None:
        super().__init__(amount, layers, epoch, until)
        self._names: list[str] = []

    def begin(self, network: nn.Module) -> None:
        modules = {name: module for name, module in network.named_modules() if is_layer(module)}
        self._names = self._chosen(modules, network)
        for name in self._names:
            layer: Any = modules[name]
            places = torch.arange(layer.weight.numel(), device=layer.weight.device).reshape(layer.weight.shape)
            if not _keeps_zeros(layer, places % 2 == 0):
                raise ValueError(
                    f"{name}: {type(layer.weight_quantizer).__name__} makes something else of 0, so single weights "
                    "cannot be pruned: prune channels, take ternary weights or more bits, or name other layers"
                )
            _mask(layer, name, "weight")

    def update(self, network: nn.Module, epoch: int) -> None:
        if not self.epoch <= epoch <= self.until:
            return
        for name in self._names:
            layer: Any = network.get_submodule(name)
            weight = _masked(layer, "weight")
            count = round(self.amount_at(epoch) * weight.numel())
            set_mask(layer, "weight", prune.L1Unstructured(count).compute_mask(weight, torch.ones_like(weight)))


class ChannelPruning(Pruning):
    """Prunes output channels, those whose filters have the smallest norm in each layer.

    A pruned channel's filter and bias are 0, and so are scale and shift of every batch norm up to the next layer: the
    channel is constant, and `remove_dead_channels` takes it out. By default all layers are pruned whose channels one
    other layer alone reads, with nothing between that mixes them.

    norm: of filters, 1, 2 or infinity. The other arguments are those of `Pruning`. ValueError for a layer whose
    channels are read in another way, and for weights whose quantizer has no zero (LSQ at one bit) without a batch norm
    behind.
    """

    removes_channels = True

    def __init__(
        self,
        amount: float = 0.5,
        norm: float = 1,
        layers: Iterable[str] | None = None,
        epoch: int = 1,
        until: int | None = None,
    ) -> None:
        super().__init__(amount, layers, epoch, until)
        if norm not in _NORMS:
            raise ValueError(f"norm must be 1, 2 or inf, got {norm!r}")
        self.norm = norm
        self._paths: list[tuple[str, list[str]]] = []

    def begin(self, network: nn.Module) -> None:
        found = channel_paths(network)
        for name in self.layers or ():
            if isinstance(reason := found.get(name), str):
                raise ValueError(f"{name}: its channels cannot be pruned, as {reason}")
        paths = {name: path for name, path in found.items() if isinstance(path, ChannelPath)}
        self._paths = [(name, list(paths[name].norms())) for name in self._chosen(paths, network)]
        for name, norms in self._paths:
            layer: Any = network.get_submodule(name)
            rows = torch.arange(len(layer.weight), device=layer.weight.device) % 2 == 0
            if not norms and not _keeps_zeros(layer, rows.reshape(-1, *[1] * (layer.weight.ndim - 1))):
                raise ValueError(
                    f"{name}: {type(layer.weight_quantizer).__name__} makes something else of 0, and no batch norm "
                    "lies behind that could make a channel constant: name other layers"
                )
            _mask(layer, name, "weight")
            if layer.bias is not None:
                _mask(layer, name, "bias")
            for path in norms:
                _mask(network.get_submodule(path), path, "weight")
                _mask(network.get_submodule(path), path, "bias")

    def update(self, network: nn.Module, epoch: int) -> None:
        if not self.epoch <= epoch <= self.until:
            return
        for name, norms in self._paths:
            layer: Any = network.get_submodule(name)
            weight = _masked(layer, "weight")
            count = min(round(self.amount_at(epoch) * len(weight)), len(weight) - 1)
            mask = prune.LnStructured(count, self.norm, dim=0).compute_mask(weight, torch.ones_like(weight))
            channels = mask.flatten(1)[:, 0]
            set_mask(layer, "weight", mask)
            if layer.bias is not None:
                set_mask(layer, "bias", channels)
            for path in norms:
                set_mask(network.get_submodule(path), "weight", channels)
                set_mask(network.get_submodule(path), "bias", channels)


def _masked(layer: Any, name: str) -> Tensor:
    """Return a masked parameter as the next forward has it; the module's own is that of the last one."""
    return (getattr(layer, f"{name}_mask") * getattr(layer, f"{name}_orig")).detach()


def _mask(module: nn.Module, path: str, name: str) -> None:
    try:
        add_mask(module, name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _keeps_zeros(layer: Any, zeros: Tensor) -> bool:
    """Whether a layer's quantizer makes 0 of weights that are 0; zeros: bool, that goes with the weight."""
    if not isinstance(layer, QuantLayer):
        return True
    weight = torch.where(zeros, 0, layer.weight.detach())
    with torch.no_grad(), warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # of quantizers that wait for training
        made = copy.deepcopy(layer.weight_quantizer).train()(layer.filters(weight))
    return not bool(layer.from_filters(made)[zeros.expand_as(weight)].any())
