"""Binary weights with one scale an output channel: BWN and XNOR-Net."""

from typing import Any, Literal

import torch
from torch import Tensor

from bnn.planes import Planes, sign_planes
from bnn.quantizers.base import Quantizer
from bnn.quantizers.description import BINARY_WEIGHTS, Description, Example
from bnn.quantizers.filters import filters, like_filters, mean_magnitude
from bnn.quantizers.straight_through import sign

Gradient = Literal["exact", "printed", "released"]


class _ScaledSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, form: Gradient) -> Tensor:
        alpha = like_filters(mean_magnitude(w), w)
        ctx.save_for_backward(w, alpha)
        ctx.form = form
        return sign(w) * alpha

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (g,) = gradients
        w, alpha = ctx.saved_tensors
        n = filters(w).shape[1]
        if ctx.form == "exact":
            signs = sign(w)
            coupled = filters(g * signs).sum(1).reshape(alpha.shape)
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

    center: subtract from W its mean over the input channels (axis 1) for each filter and position before all else, as
        the released code does to the latents; the gradient passes the subtraction by the chain rule.

    >>> w = torch.tensor([[0.5, -1.5]], requires_grad=True)
    >>> q = XnorWeight()(w)
    >>> q.tolist()
    [[1.0, -1.0]]
    >>> q.backward(torch.tensor([[1.0, 0.0]]))
    >>> w.grad.tolist()
    [[1.5, -0.5]]
    """

    description = Description(
        group=BINARY_WEIGHTS,
        method="XNOR-Net",
        year=2016,
        forward="alpha sign(W)",
        gradient="three forms: exact, printed, released",
        storage="mean|W| a filter",
        published="IN AlexNet 1/1 44.2, R18 1/1 51.2; 1/32 56.8, 60.8",
        examples=(
            Example(
                (-0.875, -0.875, -0.875, 0.875, 0.875, 0.875, 0.875, 0.875),
                (-0.25, 0.625, 0.625, 1.125, 1.125, 1.125, 1.125, 0.25),
            ),
            Example(
                (-0.875, -0.875, -0.875, 0.875, 0.875, 0.875, 0.875, 0.875),
                (0.125, 1, 1, 1, 1, 1, 1, 0.125),
                options={"gradient": "printed"},
            ),
            Example(
                (-0.875, -0.875, -0.875, 0.875, 0.875, 0.875, 0.875, 0.875),
                (0.109375, 0.109375, 0.875, 0.875, 0.875, 0.875, 0.109375, 0.109375),
                options={"gradient": "released"},
            ),
        ),
    )

    _bits = 1

    def __init__(self, gradient: Gradient = "exact", center: bool = False):
        super().__init__()
        if gradient not in ("exact", "printed", "released"):
            raise ValueError(f"gradient must be 'exact', 'printed' or 'released', got {gradient!r}")
        self.gradient: Gradient = gradient
        self.center = center

    def _centered(self, w: Tensor) -> Tensor:
        if not self.center:
            return w
        if w.shape[1] == 1:
            raise ValueError(
                f"center=True makes every weight of a filter with one input channel 0, got a weight {tuple(w.shape)}"
            )
        return w - w.mean(1, keepdim=True)

    def forward(self, w: Tensor) -> Tensor:
        return _ScaledSign.apply(self._centered(w), self.gradient)

    def planes(self, w: Tensor) -> Planes:
        w = self._centered(w.detach())
        return sign_planes(w, mean_magnitude(w))

    def extra_repr(self) -> str:
        return f"gradient={self.gradient!r}" + (", center=True" if self.center else "")
