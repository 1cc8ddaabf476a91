"""Binary weights with one scale an output channel: BWN and XNOR-Net."""

from typing import Any, Literal

import torch
from torch import Tensor

from bnn.planes import Planes, Term, sign_bits
from bnn.quantizers.base import Quantizer
from bnn.quantizers.straight_through import sign

Gradient = Literal["exact", "printed", "released"]


def _filters(w: Tensor) -> Tensor:
    return w.reshape(w.shape[0], -1)


class _ScaledSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, form: Gradient) -> Tensor:
        alpha = _filters(w).abs().mean(1).reshape(-1, *[1] * (w.ndim - 1))
        ctx.save_for_backward(w, alpha)
        ctx.form = form
        return sign(w) * alpha

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (g,) = gradients
        w, alpha = ctx.saved_tensors
        n = _filters(w).shape[1]
        if ctx.form == "exact":
            signs = sign(w)
            coupled = _filters(g * signs).sum(1).reshape(alpha.shape)
            return signs * coupled / n + g * alpha * (w.abs() <= 1), None
        if ctx.form == "printed":
            return g * (alpha * (w.abs() <= 1) + 1 / n), None
        return g * ((alpha * (w.abs() < 1) + 1 / n) * (1 - 1 / w.shape[1])), None


class XnorWeight(Quantizer):
    """Forward: q(W) = alpha * sign(W), alpha = mean|W| over each output channel (axis 0), sign(0) = +1.

    Rastegari et al., "XNOR-Net", ECCV 2016, section 3.1, equations 5 and 6. With g = dC/dq(W), n weights a filter
    and c input channels, the gradient is by `gradient`:

    - "exact" (default; the chain rule): dC/dW_i = (1/n) sign(W_i) sum_j g_j sign(W_j) + g_i alpha 1[|W_i| <= 1].
    - "printed" (section 3.1, below equation 6): dC/dW_i = g_i (1/n + alpha 1[|W_i| <= 1]). It drops the coupling of
      a filter's weights.
    - "released" (the authors' Torch code): dC/dW_i = g_i (1/n + alpha 1[|W_i| < 1]) (1 - 1/c). The code also
      multiplies by n or 1e9, which an optimizer like Adam cancels; here that is the learning rate's business.

    "exact" is the default because it is the derivative of the forward that is used.

    >>> w = torch.tensor([[0.5, -1.5]], requires_grad=True)
    >>> q = XnorWeight()(w)
    >>> q.tolist()
    [[1.0, -1.0]]
    >>> q.backward(torch.tensor([[1.0, 0.0]]))
    >>> w.grad.tolist()
    [[1.5, -0.5]]
    """

    def __init__(self, gradient: Gradient = "exact"):
        super().__init__()
        if gradient not in ("exact", "printed", "released"):
            raise ValueError(f"gradient must be 'exact', 'printed' or 'released', got {gradient!r}")
        self.gradient: Gradient = gradient

    def forward(self, w: Tensor) -> Tensor:
        return _ScaledSign.apply(w, self.gradient)

    def planes(self, w: Tensor) -> Planes:
        return Planes((Term(sign_bits(w), True, (1,), _filters(w).abs().mean(1)),))

    def extra_repr(self) -> str:
        return f"gradient={self.gradient!r}"
