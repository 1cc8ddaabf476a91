"""Sign with the clipped straight-through estimator: BinaryNet's binarization of weights and activations."""

import torch
from torch import Tensor

from bnn.planes import Planes, Term, sign_bits
from bnn.quantizers.base import Quantizer
from bnn.quantizers.straight_through import sign, straight_through


class SteSign(Quantizer):
    """Forward: q(x) = +1 if x >= 0, else -1. Gradient: 1 if |x| <= clip, else 0 (clip None: always 1).

    Courbariaux et al., "Binarized Neural Networks", 2016, equations 1 and 4. The boundary |x| = clip passes the
    gradient, as the paper prints it.

    clip: the bound of the estimator, > 0, or None.

    >>> quantizer = SteSign()
    >>> x = torch.tensor([-1.5, -1.0, -0.0, 0.0, 0.4, 1.0, 1.5], requires_grad=True)
    >>> y = quantizer(x)
    >>> y.tolist()
    [-1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    """

    elementwise = True

    def __init__(self, clip: float | None = 1.0):
        super().__init__()
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be positive or None, got {clip!r}")
        self.clip = clip

    def forward(self, x: Tensor) -> Tensor:
        return straight_through(x, sign(x), None if self.clip is None else x.abs() <= self.clip)

    def planes(self, x: Tensor) -> Planes:
        scale = torch.ones((), dtype=x.dtype, device=x.device)
        return Planes((Term(sign_bits(x), True, (1,), scale),))

    def extra_repr(self) -> str:
        return f"clip={self.clip}"
