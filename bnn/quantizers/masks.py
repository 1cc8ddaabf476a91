"""Arithmetic with masks, by operations of PyTorch that are vectorized on a CPU: those that take bools are slow there.

There `torch.where` takes many times as long as a product, and a product with bools several times. A gradient is never
written into another tensor, for it may be one of many that torch.vmap takes at once.
"""

import torch
from torch import Tensor


def as_numbers(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a bool mask as 0 and 1 of `dtype`, a new tensor."""
    return mask.view(torch.uint8).to(dtype)


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """Return x * mask, for a bool mask of x's shape."""
    return x * as_numbers(mask, x.dtype)


def between(x: Tensor, place: Tensor, low: float, high: float) -> Tensor:
    """Return x where low < place < high, also where place is NaN, and 0 elsewhere.

    >>> between(torch.tensor([5.0, 6.0, 7.0, float("inf")]), torch.tensor([-1.0, 0.0, 0.5, 2.0]), 0, 1).tolist()
    [0.0, 0.0, 7.0, 0.0]
    """
    return torch.ops.aten.hardtanh_backward(x, place, low, high)


def or_nan(x: Tensor, value: Tensor) -> Tensor:
    """Return the value, or NaN where x is."""
    return x.clamp(-1, 1).mul_(0).add_(value)
