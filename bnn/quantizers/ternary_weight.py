"""Ternary weights with a threshold and a scale computed from the weights: TWN."""

import torch
from torch import Tensor

from bnn.planes import Planes, Term, ternary_bits
from bnn.quantizers.base import Quantizer
from bnn.quantizers.description import TERNARY, Description, Example
from bnn.quantizers.straight_through import straight_through


class TernaryWeight(Quantizer):
    """Forward: q(W) = alpha * t, t = sign(W) where |W| > delta, else 0. Gradient: 1 (dC/dW = dC/dq).

    delta = factor * mean|W|; alpha = mean of |W| over |W| > delta (0 if there is none). |W| = delta gives 0.
    Li et al., "Ternary Weight Networks", 2016, equations 3, 5 and 6, with factor = 0.7.

    per_channel: delta and alpha of each output channel (axis 0) rather than of the layer (the authors' code).

    >>> w = torch.tensor([[1.0, -0.5, 0.1, -0.0]], requires_grad=True)
    >>> q = TernaryWeight()(w)
    >>> q.tolist()
    [[0.75, -0.75, 0.0, 0.0]]
    >>> q.sum().backward()
    >>> w.grad.tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """

    description = Description(
        group=TERNARY,
        method="TWN",
        year=2016,
        forward="alpha sign(W) if |W| > 0.7 mean|W|",
        gradient="1",
        storage="mean of the large |W|, a layer or filter",
        examples=(
            Example((-1.5, -1.5, 0, 0, 0, 0, 1.5, 1.5), (1, 1, 1, 1, 1, 1, 1, 1)),
            Example(
                (-7 / 6, -7 / 6, -7 / 6, 0, 0, 7 / 6, 7 / 6, 7 / 6), (1, 1, 1, 1, 1, 1, 1, 1), options={"factor": 0.5}
            ),
        ),
    )

    def __init__(self, factor: float = 0.7, per_channel: bool = False):
        super().__init__()
        if not 0 <= factor < 1:
            raise ValueError(f"factor must lie in [0, 1): at 1 and above whole layers vanish; got {factor!r}")
        self.factor = factor
        self.per_channel = per_channel

    def _levels_and_scale(self, w: Tensor) -> tuple[Tensor, Tensor]:
        magnitude = w.detach().abs()
        rows = magnitude.reshape(w.shape[0] if self.per_channel else 1, -1)
        delta = self.factor * rows.mean(1, keepdim=True)
        large = rows > delta
        alpha = (rows * large).sum(1) / large.sum(1).clamp(min=1)
        levels = torch.sign(w.detach()) * large.reshape(w.shape)
        return levels, alpha if self.per_channel else alpha[0]

    def forward(self, w: Tensor) -> Tensor:
        levels, scale = self._levels_and_scale(w)
        # + 0.0: the levels of small negative weights are -0.0, planes know only 0.
        scale = scale.reshape(-1, *[1] * (w.ndim - 1)) if self.per_channel else scale
        return straight_through(w, (levels + 0.0) * scale)

    def planes(self, w: Tensor) -> Planes:
        levels, scale = self._levels_and_scale(w)
        return Planes((Term(ternary_bits(levels), False, (1, -1), scale),))

    def extra_repr(self) -> str:
        return f"factor={self.factor}, per_channel={self.per_channel}"
