"""Ternary weights with two learned scales: TTQ."""

from typing import Any

import torch
from torch import Tensor, nn

from bnn.planes import Planes, Term
from bnn.quantizers.base import Quantizer
from bnn.quantizers.description import TERNARY, Description, Example, Panel


class _ScaledZones(torch.autograd.Function):
    """positive * wp + negative * wn, with TTQ's gradients. positive is in {0, 1}, negative in {0, -1}."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, wp: Tensor, wn: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        ctx.save_for_backward(wp, wn, positive, negative)
        return positive * wp + negative * wn

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (g,) = gradients
        wp, wn, positive, negative = ctx.saved_tensors
        factor = torch.where(positive != 0, wp, torch.where(negative != 0, wn, torch.ones_like(wn)))
        return g * factor, (g * positive).sum(), (g * negative).sum(), None, None


class TrainedTernary(Quantizer):
    """Forward: q(W) = Wp if W > delta, -Wn if W < -delta, else 0, with Wp and Wn learned for each layer, at first 1.

    delta = t max|W|. |W| = delta gives 0. Gradient to W: Wp, Wn or 1 in the positive, negative and zero zone. Gradient
    to Wp: sum of dC/dq over the positive zone; to Wn: minus the sum over the negative one (the chain rule; the paper's
    equation 7 leaves the minus out).
    Zhu et al., "Trained Ternary Quantization", ICLR 2017, section 3, equations 6 to 9, with t = 0.05.

    >>> quantizer = TrainedTernary()
    >>> with torch.no_grad():
    ...     _ = quantizer.wp.fill_(2.0), quantizer.wn.fill_(3.0)
    >>> w = torch.tensor([[1.0, -1.0, 0.05, -0.0]], requires_grad=True)
    >>> q = quantizer(w)
    >>> q.tolist()
    [[2.0, -3.0, 0.0, 0.0]]
    >>> q.sum().backward()
    >>> w.grad.tolist(), quantizer.wp.grad.item(), quantizer.wn.grad.item()
    ([[2.0, 3.0, 1.0, 1.0]], 1.0, -1.0)
    """

    description = Description(
        group=TERNARY,
        method="TTQ",
        year=2017,
        forward="Wp, -Wn or 0, delta = t max|W|",
        gradient="Wp, Wn or 1",
        storage="two learned ones a layer: two terms",
        published="C10 R20 t/32 91.13; IN AlexNet t/32 57.5",
        panel=Panel(options={"t": 0.25}, learned={"wp": 1.5, "wn": 0.8}, note=r"$W_p$ = 1.5, $W_n$ = 0.8, t = 0.25"),
        examples=(
            Example(
                (-2, 0, 0, 0, 0, 0, 0, 3), (2, 1, 1, 1, 1, 1, 1, 3), options={"t": 0.5}, learned={"wp": 3.0, "wn": 2.0}
            ),
        ),
    )

    _bits = 2

    def __init__(self, t: float = 0.05):
        super().__init__()
        if not 0 <= t < 1:
            raise ValueError(f"t must lie in [0, 1): at 1 every weight is 0; got {t!r}")
        self.t = t
        self.wp = nn.Parameter(torch.tensor(1.0))
        self.wn = nn.Parameter(torch.tensor(1.0))

    def _zones(self, w: Tensor) -> tuple[Tensor, Tensor]:
        delta = self.t * w.abs().max()
        return w > delta, w < -delta

    def forward(self, w: Tensor) -> Tensor:
        positive, negative = self._zones(w.detach())
        # 0 - 1: the levels of the planes, in which no zero is -0.0. A weight that is NaN lies in no zone, but shows.
        levels = positive.to(w.dtype), torch.where(w.isnan(), w.detach(), 0 - negative.to(w.dtype))
        return _ScaledZones.apply(w, self.wp.to(w.dtype), self.wn.to(w.dtype), *levels)

    def planes(self, w: Tensor) -> Planes:
        positive, negative = self._zones(w.detach())
        return Planes(
            (
                Term(positive[None], False, (1,), self.wp.detach().to(w.dtype)),
                Term(negative[None], False, (-1,), self.wn.detach().to(w.dtype)),
            )
        )

    def extra_repr(self) -> str:
        return f"t={self.t:g}"
