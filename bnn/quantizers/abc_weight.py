"""Weights as a sum of several binary bases: ABC-Net."""

import torch
from torch import Tensor

from bnn.planes import Planes, Term, check_bits, sign_bits
from bnn.quantizers.base import Quantizer
from bnn.quantizers.description import FEW_BITS, Description, Example, Panel
from bnn.quantizers.straight_through import straight_through

# Keeps the least squares solvable where two bases are equal, without a trace in float32.
_RIDGE = 1e-6


class AbcWeight(Quantizer):
    """Forward: q(W) = sum_m alpha_m B_m, B_m = sign(W - mean W + u_m std W), m = 1 .. M. Gradient: sum_m alpha_m.

    The shifts u_m lie evenly in [-1, 1] (0 for M = 1), mean and std are those of the layer, and alpha is the
    least-squares fit of W to the bases. The gradient passes each sign unchanged, with alpha constant.
    Lin et al., "Towards Accurate Binary Convolutional Neural Network", NeurIPS 2017, section 3.1.

    bases: M, 1 .. 8. The network pays for M binary convolutions.

    >>> w = torch.tensor([[3.0, 1.0, -1.0, -3.0]], requires_grad=True)
    >>> q = AbcWeight(bases=2)(w)
    >>> [round(v, 3) for v in q.flatten().tolist()]
    [3.0, 0.0, 0.0, -3.0]
    >>> q.sum().backward()
    >>> [round(g, 3) for g in w.grad.flatten().tolist()]
    [3.0, 3.0, 3.0, 3.0]
    """

    description = Description(
        group=FEW_BITS,
        method="ABC-Net",
        year=2017,
        forward="sum_m alpha_m sign(W - mean W + u_m std W)",
        gradient="sum_m alpha_m",
        storage="M terms of one {-1,+1} plane",
        published="IN R18 one base/1 42.7 (FDA's table)",
        panel=Panel(options={"bases": 3}, note="3 bases"),
        examples=(
            Example(
                (-0.875, -0.875, -0.875, 0.875, 0.875, 0.875, 0.875, 0.875),
                (0.875, 0.875, 0.875, 0.875, 0.875, 0.875, 0.875, 0.875),
                options={"bases": 1},
            ),
        ),
    )

    def __init__(self, bases: int = 3):
        super().__init__()
        self.bases = self._bits = check_bits(bases)

    def _signs_and_scales(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return bits bool (M, *shape) and alpha (M,)."""
        first = -1 if self.bases > 1 else 0
        shifts = torch.linspace(first, 1, self.bases, dtype=w.dtype, device=w.device).reshape(-1, *[1] * w.ndim)
        spread = w.std(correction=0)
        bits = sign_bits(w - w.mean() + shifts * spread)[0]
        # In float64: the bases are alike, which makes the equations of float32 weights ill-conditioned.
        rows = (1 - 2 * bits.to(torch.float64)).reshape(self.bases, -1)
        ridge = _RIDGE * torch.eye(self.bases, dtype=torch.float64, device=w.device)
        gram, right = rows @ rows.T / w.numel() + ridge, rows @ w.reshape(-1).double() / w.numel()
        alpha = torch.linalg.solve_ex(gram, right).result
        return bits, alpha.to(w.dtype)

    def forward(self, w: Tensor) -> Tensor:
        planes = self.planes(w)
        slope = sum(term.scale for term in planes.terms)
        return straight_through(w, planes.value(), slope)  # type: ignore[arg-type]

    def planes(self, w: Tensor) -> Planes:
        bits, alpha = self._signs_and_scales(w.detach())
        return Planes(tuple(Term(bits[m : m + 1], True, (1,), alpha[m]) for m in range(self.bases)))

    def extra_repr(self) -> str:
        return f"bases={self.bases}"
