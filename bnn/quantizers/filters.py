"""Statistics of filters: one number for each output channel (axis 0) of a weight, shaped to go with it."""

import torch
from torch import Tensor, nn


def parameter_per_channel(channels: int, start: float) -> nn.Parameter:
    """Return a learned number for each channel, (channels,); ValueError if there is none."""
    if channels < 1:
        raise ValueError(f"channels must be at least 1, got {channels!r}")
    return nn.Parameter(torch.full((channels,), float(start)))


def filters(w: Tensor) -> Tensor:
    """Return the weight as (filters, weights of a filter)."""
    return w.reshape(w.shape[0], -1)


def like_filters(values: Tensor, w: Tensor) -> Tensor:
    """Return values (filters,) shaped to go with the weight."""
    return values.reshape(-1, *[1] * (w.ndim - 1))


def mean_magnitude(w: Tensor) -> Tensor:
    """Return mean|w| of each filter, shape (filters,): the scale that brings the filter's signs closest to it."""
    return filters(w).abs().mean(1)


def centered(w: Tensor) -> Tensor:
    """Return the weight less the mean of each filter."""
    return w - like_filters(filters(w).mean(1), w)


def deviation(w: Tensor, correction: int = 1) -> Tensor:
    """Return the standard deviation of each filter, (filters,); 0, with gradient 0, where all its weights are equal."""
    flat = filters(w)
    return flat.std(1, correction=min(correction, flat.shape[1] - 1))


def variance(x: Tensor, correction: int = 1) -> Tensor:
    """Return the variance of each row, all axes but the first, which stay with one number: in two passes.

    `torch.var` takes several times as long on a CPU.
    """
    axes = tuple(range(1, x.ndim))
    return (x - x.mean(axes, keepdim=True)).square().sum(axes, keepdim=True) / max(1, x[0].numel() - correction)


def divided(w: Tensor, by: Tensor) -> Tensor:
    """Return the weight divided by a number >= 0 for each filter; filters whose number is about 0 stay as they are.

    So filters of equal weights, whose deviation is 0, get neither a NaN nor a gradient of any size. About 0 is what
    has no square: the gradient of a deviation divides by it twice.
    """
    return w / like_filters(torch.where(by > torch.finfo(w.dtype).tiny ** 0.5, by, 1), w)


def standardized(w: Tensor) -> Tensor:
    """Return the weight with mean 0 and standard deviation 1 in each filter; filters of equal weights become 0."""
    return divided(centered(w), deviation(w))
