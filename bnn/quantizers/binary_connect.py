"""Binary weights, rounded or drawn: BinaryConnect."""

import torch
from torch import Tensor

from bnn.planes import Planes, sign_planes
from bnn.quantizers.base import Quantizer
from bnn.quantizers.stochastic_sign import random_sign
from bnn.quantizers.straight_through import sign, straight_through


class BinaryConnect(Quantizer):
    """Forward: q(W) = sign(W), or in stochastic training +1 with probability clip((W + 1) / 2, 0, 1), else -1.

    Gradient: 1 (dC/dW = dC/dq); the latents are clipped to [-1, 1] after each step (`bnn.latent`).
    Courbariaux et al., "BinaryConnect", NeurIPS 2015, sections 2.2 to 2.4, equations 1 to 3. The paper evaluates the
    stochastic variant with the real latents; here evaluation always uses the signs, which alone are bits.

    >>> w = torch.tensor([[-2.0, -0.0, 0.5]], requires_grad=True)
    >>> q = BinaryConnect()(w)
    >>> q.tolist()
    [[-1.0, 1.0, 1.0]]
    >>> q.sum().backward()
    >>> w.grad.tolist()
    [[1.0, 1.0, 1.0]]
    """

    elementwise = True

    def __init__(self, stochastic: bool = False):
        super().__init__()
        self.stochastic = stochastic

    def forward(self, w: Tensor) -> Tensor:
        fixed = w.detach()
        return straight_through(w, random_sign(fixed) if self.stochastic and self.training else sign(fixed))

    def planes(self, w: Tensor) -> Planes:
        return sign_planes(w, torch.ones((), dtype=w.dtype, device=w.device))

    def extra_repr(self) -> str:
        return f"stochastic={self.stochastic}"
