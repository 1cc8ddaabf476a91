"""Latent weights: the FP32 parameters behind quantized weights, and what is done to them after an optimizer step."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from bnn.layers.base import QuantLayer
from bnn.quantizers.pixel_levels import PixelLevels

# Weights of more bits on pixels are no latent weights: the layer stands for a method's FP32 stem.
_BITS_ON_PIXELS = 2


def _has_latent(layer: QuantLayer) -> bool:
    quantizer = layer.weight_quantizer
    stem = isinstance(getattr(layer, "input_quantizer", None), PixelLevels)
    return quantizer.packable and not (stem and quantizer.bits > _BITS_ON_PIXELS)


def latent_layers(model: nn.Module) -> Iterator[tuple[str, QuantLayer, Tensor]]:
    """Yield (dotted name, layer, parameter) of every latent weight, see `latent_weights`."""
    for path, layer in model.named_modules():
        if isinstance(layer, QuantLayer) and _has_latent(layer):
            name, parameter = latent_of(path, layer)
            yield f"{path}.{name}" if path else name, layer, parameter


def latent_of(path: str, layer: Any) -> tuple[str, Tensor]:
    """Return (name, parameter) of what is trained in the place of a layer's weight; ValueError if there is not one."""
    if "weight" in layer._parameters:
        return "weight", layer.weight
    if parametrize.is_parametrized(layer, "weight"):
        held: Any = layer.parametrizations["weight"]
        if isinstance(getattr(held, "original", None), nn.Parameter):
            return "parametrizations.weight.original", held.original
    hooks = layer._forward_pre_hooks.values()
    if any(isinstance(hook, prune.BasePruningMethod) for hook in hooks):
        return "weight_orig", layer.weight_orig
    raise ValueError(
        f"{path or type(layer).__name__}: its weight is computed from several parameters (weight norm) or by a hook of "
        "the old form (torch.nn.utils.spectral_norm), so it has no latent weight: remove it, or use a parametrization "
        "of one parameter"
    )


def weight_now(layer: Any) -> Tensor:
    """Return a layer's weight as its next forward has it; what a pruned layer holds is that of the last one."""
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == "weight":
            return hook.apply_mask(layer)
    weight: Tensor = layer.weight
    return weight


def latent_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (dotted name, parameter) of every weight behind a weight quantizer that has bit planes.

    A first layer of pixels with weights of more than two bits is left out: it stands for the stem that the methods keep
    in FP32, which they neither clip nor center, and which Bop does not flip. Of a weight that is pruned or parametrized
    (torch.nn.utils) it is the original parameter, which is trained.
    ValueError, with the layer's path, where there is not one such parameter.
    """
    yield from ((name, parameter) for name, _, parameter in latent_layers(model))


@torch.no_grad()
def clip_latent_weights(model: nn.Module, bound: float = 1.0) -> None:
    """Clamp latent weights to [-bound, bound] in place (BinaryConnect, section 2.4).

    Beyond the bound a latent gets no gradient from the straight-through estimator and could not come back.
    """
    for _, weight in latent_weights(model):
        weight.clamp_(-bound, bound)


@torch.no_grad()
def center_latent_weights(model: nn.Module) -> None:
    """Subtract from latent convolution weights their mean over input channels, in place, for each filter and position.

    The XNOR-Net authors' code does so before every step; the paper does not mention it. Linear weights are centred
    over their inputs.
    """
    for _, layer, weight in latent_layers(model):
        filters = layer.filters(weight)
        weight.copy_(layer.from_filters(filters - filters.mean(1, keepdim=True)))
