"""Binary weights with a fixed scale for the gradient: Bi-Real Net's magnitude-aware sign."""

from torch import Tensor

from bnn.planes import Planes, sign_planes
from bnn.quantizers.base import Quantizer
from bnn.quantizers.filters import like_filters, mean_magnitude
from bnn.quantizers.straight_through import sign, straight_through


class MagnitudeAwareSign(Quantizer):
    """Forward: q(W) = alpha sign(W), alpha = mean|W| of each filter (axis 0). Gradient: alpha if |W| <= 1, else 0.

    Liu et al., "Bi-Real Net", ECCV 2018, "magnitude-aware gradient": the forward is XnorWeight's, but alpha counts
    as constant, so that the step follows the magnitude of the weights.

    >>> import torch
    >>> w = torch.tensor([[0.5, -1.5]], requires_grad=True)
    >>> q = MagnitudeAwareSign()(w)
    >>> q.tolist()
    [[1.0, -1.0]]
    >>> q.sum().backward()
    >>> w.grad.tolist()
    [[1.0, 0.0]]
    """

    def forward(self, w: Tensor) -> Tensor:
        fixed = w.detach()
        return straight_through(w, sign(fixed), fixed.abs() <= 1) * like_filters(mean_magnitude(fixed), w)

    def planes(self, w: Tensor) -> Planes:
        return sign_planes(w, mean_magnitude(w.detach()))
