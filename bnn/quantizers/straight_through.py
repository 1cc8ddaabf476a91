"""The straight-through estimator: a value forward, another function's gradient backward."""

from typing import Any

import torch
from torch import Tensor

from bnn.quantizers.masks import masked


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(mask)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (g,), (mask,) = gradients, ctx.saved_tensors
        if mask is not None:
            g = masked(g, mask) if mask.dtype == torch.bool and mask.shape == g.shape else g * mask
        return g, None, None


def straight_through(x: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return `value` whose gradient with respect to `x` is `mask`, bool or float (1 everywhere if None).

    The common spelling x + (value - x).detach() is not used: it rounds, and a quantized value must be exact.

    >>> x = torch.tensor([0.3], requires_grad=True)
    >>> y = straight_through(x, torch.tensor([1.0]))
    >>> y.backward()
    >>> y.item(), x.grad.item()
    (1.0, 1.0)
    """
    return _StraightThrough.apply(x, value.detach(), mask)


def sign(x: Tensor) -> Tensor:
    """Return +1 where x >= 0 (so sign(0) = sign(-0.0) = +1) and -1 elsewhere, dtype of x, no gradient; a NaN stays NaN.

    torch.sign(0) is 0, a third value that no bit can hold (BinaryNet, section 1.1 uses the two-valued sign).
    """
    # Below zero the clamped floor is -1, elsewhere 0. One new tensor and no masks; and without detach, autograd would
    # keep some for a gradient that is 0.
    return x.detach().clamp(-1, 0).floor_().mul_(2).add_(1)
