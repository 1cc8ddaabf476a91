"""What all signs with a surrogate gradient share: they differ in one function of the input."""

import torch
from torch import Tensor

from bnn.planes import Planes, sign_planes
from bnn.quantizers.base import Quantizer
from bnn.quantizers.straight_through import sign, straight_through


class SurrogateSign(Quantizer):
    """Forward: q(x) = +1 if x >= 0, else -1. Gradient: slope(x), which a subclass defines."""

    elementwise = True

    def slope(self, x: Tensor) -> Tensor:
        """Return what stands in for the derivative of sign at x, same shape and dtype."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return straight_through(x, sign(x), self.slope(x.detach()))

    def planes(self, x: Tensor) -> Planes:
        return sign_planes(x, torch.ones((), dtype=x.dtype, device=x.device))
