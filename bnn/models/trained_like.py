"""A state like that of a trained network, without training: for tests of conversion and for timing."""

from typing import Any

import torch
from torch import Tensor, nn

LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear, nn.Embedding)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

ZERO_WEIGHTS = 0.01
ZERO_GAMMAS = 0.05
TINY_VARIANCES = 0.03
TINY = 1e-6


def _draw(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like)


def _some(like: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return a mask with that share of True, at least one where there are eight or more."""
    mask = torch.rand(like.shape, generator=generator) < share
    if like.numel() >= 8 and not mask.any():
        mask.view(-1)[int(torch.randint(like.numel(), (), generator=generator))] = True
    return mask.to(like.device)


def _set_norm(norm: Any, generator: torch.Generator) -> None:
    if norm.weight is not None:
        gamma = _draw(norm.weight, generator)
        gamma = torch.where(gamma < 0, -1.0, 1.0) * (0.5 + gamma.abs())
        norm.weight.copy_(gamma.masked_fill(_some(gamma, ZERO_GAMMAS, generator), 0.0))
        norm.bias.copy_(0.3 * _draw(norm.bias, generator))


def _shrink_variances(norm: Any, generator: torch.Generator) -> None:
    """Make some variances tiny, and their gammas small by the same factor: else values grow from layer to layer."""
    tiny = _some(norm.running_var, TINY_VARIANCES, generator)
    if norm.weight is not None:
        norm.weight.mul_(torch.where(tiny, ((TINY + norm.eps) / (norm.running_var + norm.eps)).sqrt(), 1.0))
    norm.running_var.masked_fill_(tiny, TINY)


def _set_weight(weight: Tensor, generator: torch.Generator) -> None:
    drawn = _draw(weight, generator) / weight[0].numel() ** 0.5
    weight.copy_(drawn.masked_fill(_some(drawn, ZERO_WEIGHTS, generator), 0.0))


def _set_others(module: nn.Module, generator: torch.Generator) -> None:
    """Move parameters of activations and quantizers: shifts, which begin at 0, by adding; scales by a factor.

    A weight of a layer that is none of PyTorch's is drawn like theirs; what is not trained stays.
    """
    for name, parameter in module.named_parameters(recurse=False):
        if not parameter.requires_grad:
            continue
        if name == "weight" and parameter.ndim > 1:
            _set_weight(parameter, generator)
            continue
        noise = _draw(parameter, generator)
        parameter.copy_(torch.where(parameter == 0, 0.2 * noise, parameter * torch.exp(0.3 * noise)))


@torch.no_grad()
def trained_like(model: nn.Module, inputs: Tensor, seed: int = 0) -> nn.Module:
    """Put a model into a state like a trained one's, in place, and return it in evaluation mode.

    Weights are normal with variance 1 / fan-in and 1 % of exact zeros; gammas of batch norm have both signs and 5 % of
    zeros, betas are normal; running statistics are those of `inputs`, except for 3 % of channels whose variance is
    1e-6 and whose gamma is small, as of a channel that died; learned shifts, slopes and scales of other modules are
    moved from their start; parameters without gradients stay. The same seed gives the same state.

    inputs: a batch as the model takes it, of at least two examples.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = []
    for module in model.modules():
        if isinstance(module, LINEAR):
            _set_weight(module.weight, generator)
            bias: Tensor | None = getattr(module, "bias", None)  # an embedding has none
            if bias is not None:
                bias.copy_(0.1 * _draw(bias, generator))
        elif isinstance(module, NORMS):
            _set_norm(module, generator)
            if module.track_running_stats:
                norms.append(module)
        else:
            _set_others(module, generator)
    model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over what comes
        norm.train()
    model(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
        _shrink_variances(norm, generator)
    return model
