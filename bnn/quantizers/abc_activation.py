"""Activations as a sum of several binary ones: ABC-Net."""

import torch
from torch import Tensor, nn

from bnn.planes import Planes, Term, check_bits, sign_bits
from bnn.quantizers.base import Quantizer
from bnn.quantizers.description import FEW_BITS, Description, Example, Panel
from bnn.quantizers.straight_through import sign, straight_through


class AbcActivation(Quantizer):
    """Forward: q(x) = sum_n beta_n H_n(x), H_n(x) = +1 if h_n(x) >= 1/2, else -1, h_n(x) = clip(x + v_n, 0, 1).

    Gradient to x: sum_n beta_n over those n with 0 <= x + v_n <= 1. Gradient to v_n: beta_n over the x within these
    bounds, summed; to beta_n: H_n, summed. The shifts v and scales beta of the layer are learned.
    Lin et al., "Towards Accurate Binary Convolutional Neural Network", NeurIPS 2017, section 3.2 "multiple binary
    activations and bitwise convolution"; meant for batch-normalized inputs. Where v and beta begin is ours: v evenly
    in [-1, 1] (0 for N = 1), as u of the weights does, and beta at 1 / N.

    bases: N, 1 .. 8. With M bases of the weights the network pays for M N binary convolutions.

    >>> quantizer = AbcActivation(bases=2)
    >>> with torch.no_grad():
    ...     _ = quantizer.shift.copy_(torch.tensor([-0.5, 0.5])), quantizer.beta.copy_(torch.tensor([2.0, 1.0]))
    >>> x = torch.tensor([-1.0, 0.0, 0.5, 1.0], requires_grad=True)
    >>> y = quantizer(x)
    >>> y.tolist()
    [-3.0, -1.0, -1.0, 3.0]
    >>> y.sum().backward()
    >>> x.grad.tolist(), quantizer.shift.grad.tolist(), quantizer.beta.grad.tolist()
    ([0.0, 1.0, 3.0, 2.0], [4.0, 2.0], [-2.0, 2.0])
    """

    description = Description(
        group=FEW_BITS,
        method="ABC-Net",
        year=2017,
        forward="sum_n beta_n (+1 if x + v_n >= 1/2, else -1), v and beta learned",
        gradient="sum of beta_n with 0 <= x + v_n <= 1",
        storage="N terms of one {-1,+1} plane",
        panel=Panel(options={"bases": 3}, note="3 bases"),
        examples=(
            Example(
                (-1, -1, -1, -1, -1, 1, 1, 1), (0, 0, 0, 1, 1, 1, 1, 0), options={"bases": 1}, learned={"shift": 0.0}
            ),
        ),
    )

    elementwise = True

    def __init__(self, bases: int = 3):
        super().__init__()
        self._bits = check_bits(bases)
        first = -1.0 if bases > 1 else 0.0
        self.shift = nn.Parameter(torch.linspace(first, 1, bases))
        self.beta = nn.Parameter(torch.full((bases,), 1 / bases))

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor | None = None
        for v, beta in zip(self.shift.to(x.dtype), self.beta.to(x.dtype), strict=True):
            shifted = x + v
            fixed = shifted.detach()
            part = straight_through(shifted, sign(fixed - 0.5), (fixed >= 0) & (fixed <= 1)) * beta
            total = part if total is None else total + part
        assert total is not None
        return total

    def planes(self, x: Tensor) -> Planes:
        x = x.detach()
        shifts, scales = self.shift.detach().to(x.dtype), self.beta.detach().to(x.dtype)
        terms = (Term(sign_bits(x + v - 0.5), True, (1,), beta) for v, beta in zip(shifts, scales, strict=True))
        return Planes(tuple(terms))

    def extra_repr(self) -> str:
        return f"bases={len(self.shift)}"
