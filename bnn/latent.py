"""Latent weights: the FP32 parameters behind quantized weights, and what is done to them after an optimizer step."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bnn.layers.base import QuantLayer


def latent_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (dotted name, parameter) of every weight behind a weight quantizer that has bit planes."""
    for name, module in model.named_modules():
        if isinstance(module, QuantLayer) and module.weight_quantizer.packable:
            yield f"{name}.weight" if name else "weight", module.weight


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
    for layer in model.modules():
        if isinstance(layer, QuantLayer) and layer.weight_quantizer.packable:
            filters = layer.filters(layer.weight)
            layer.weight.copy_(layer.from_filters(filters - filters.mean(1, keepdim=True)))
