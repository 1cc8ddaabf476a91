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


def variance(w: Tensor) -> Tensor:
    """Return the unbiased variance of each filter, shaped to go with the weight; 0 for filters of one weight."""
    flat = filters(w)
    return like_filters(flat.var(1, correction=min(1, flat.shape[1] - 1)), w)


def standardized(w: Tensor) -> Tensor:
    """Return the weight with mean 0 and standard deviation 1 in each filter; filters of equal weights become 0."""
    smallest = torch.finfo(w.dtype).tiny
    return centered(w) / variance(w).clamp(min=smallest).sqrt()
