"""Ternary activations: TBN's inputs, or a fixed threshold."""

import torch
from torch import Tensor

from bnn.planes import Planes, Term, ternary_bits
from bnn.quantizers.base import Quantizer
from bnn.quantizers.description import TERNARY, Description, Example, Panel
from bnn.quantizers.masks import as_numbers, or_nan
from bnn.quantizers.precision import is_recomputing
from bnn.quantizers.straight_through import straight_through

# mean|x| of a standard normal x, which batch norm makes likely.
_MEAN_MAGNITUDE = 0.7979


class TernaryActivation(Quantizer):
    """Forward: q(x) = sign(x) if |x| > delta, else 0. Gradient: 1 if |x| <= 1, else 0.

    Training: delta = factor mean|x| of the batch. Evaluation: its running average, as in batch norm, so that a trained
    network has fixed thresholds.
    Wan et al., "TBN", ECCV 2018, with the running average of the authors' code, whose factor is 0.5 and momentum 0.01,
    without its option of a scale 2 delta. |x| = delta gives 0 (+-1 in that code).

    factor: in (0, 1). momentum: weight of the newest batch in the average, in (0, 1]. threshold: a fixed delta > 0
        instead, for training as well.

    >>> x = torch.tensor([-2.0, -0.5, -0.0, 0.5, 0.75, 2.0], requires_grad=True)
    >>> y = TernaryActivation(threshold=0.5)(x)
    >>> y.tolist()
    [-1.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    """

    description = Description(
        group=TERNARY,
        method="TBN",
        year=2018,
        forward="sign(x) if |x| > delta, delta from a running mean|x| or fixed",
        gradient="1 if |x| <= 1",
        storage="1",
        published="IN R18 1/t 55.6 (FDA's table)",
        panel=Panel(options={"threshold": 0.4}, note=r"$\Delta$ = 0.4"),
        examples=(
            Example((-1, -1, 0, 0, 0, 0, 1, 1), (0, 1, 1, 1, 1, 1, 1, 0), options={"threshold": 0.5}),
            Example((-1, 0, 0, 0, 0, 0, 0, 1), (0, 1, 1, 1, 1, 1, 1, 0), options={"threshold": 1.0}),
        ),
    )

    elementwise = True
    _bits = 2

    def __init__(self, factor: float = 0.5, momentum: float = 0.1, threshold: float | None = None):
        super().__init__()
        if not 0 < factor < 1:
            raise ValueError(f"factor must lie in (0, 1), got {factor!r}")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must lie in (0, 1], got {momentum!r}")
        if threshold is not None and not threshold > 0:
            raise ValueError(f"threshold must be positive or None, got {threshold!r}")
        self.factor = factor
        self.momentum = momentum
        self.fixed = threshold
        self.threshold: Tensor
        start = factor * _MEAN_MAGNITUDE if threshold is None else threshold
        self.register_buffer("threshold", torch.tensor(start))

    @property
    def needs_data(self) -> bool:
        return self.fixed is None

    def _delta(self, x: Tensor) -> Tensor:
        if self.training and self.fixed is None:
            return self.factor * x.abs().mean()
        return self.threshold.to(x.dtype)

    @staticmethod
    def _levels(x: Tensor, delta: Tensor) -> Tensor:
        return or_nan(x, as_numbers(x > delta, x.dtype).sub_(as_numbers(x < -delta, x.dtype)))

    def forward(self, x: Tensor) -> Tensor:
        fixed = x.detach()
        delta = self._delta(fixed)
        if self.training and self.fixed is None and x.numel() > 0 and not is_recomputing():
            self.threshold.lerp_(delta.to(self.threshold.dtype), self.momentum)
        return straight_through(x, self._levels(fixed, delta), fixed.abs() <= 1)

    def planes(self, x: Tensor) -> Planes:
        x = x.detach()
        levels = self._levels(x, self._delta(x))
        scale = torch.ones((), dtype=x.dtype, device=x.device)
        return Planes((Term(ternary_bits(levels), False, (1, -1), scale),))

    def extra_repr(self) -> str:
        return f"factor={self.factor}" if self.fixed is None else f"threshold={self.fixed:g}"
