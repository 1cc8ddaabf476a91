"""Weights that are revived from the tails before their signs are taken: ReCU."""

import math

import torch
from torch import Tensor

from bnn.planes import Planes, sign_planes
from bnn.quantizers.approx_sign import triangle
from bnn.quantizers.base import Quantizer
from bnn.quantizers.description import BINARY_INPUTS, BINARY_WEIGHTS, Description, Example, Panel
from bnn.quantizers.filters import centered, like_filters, parameter_per_channel, variance
from bnn.quantizers.straight_through import sign, straight_through

_EPSILON = 1e-5


class RecuWeight(Quantizer):
    """Forward: q(W) = alpha_c sign(W - mean W), with a learned alpha_c for each output channel (axis 0), at first 1.

    Gradient: 1 through the sign, then the chain rule through V = clip(U, -Q, Q), U = 2 sqrt(2) (W - mean W) / std W of
    each filter, where Q = -mean|U| ln(2 - 2 tau) over the layer is the tau-quantile of a Laplace distribution and
    counts as constant. So weights beyond the quantile, which would hardly ever change their sign, get a gradient from
    the standardization only. Gradient to alpha_c: sum of dC/dq sign over the filter.
    Xu et al., "ReCU", ICCV 2021, rectified clamp unit, as in the authors' code: std is sqrt(variance + 1e-5), and the
    gradient of the sign is 1. Alpha scales the weights instead of the output and begins at 1; that code draws it from
    [0, 1).

    tau: in (0.5, 1); it rises from 0.85 to 0.99 during training (bnn.training.ExponentialRise): a schedule sets `tau`.
    channels: the number of output channels; a layer tells it by itself.

    >>> w = torch.tensor([[3.0, 0.0, -3.0]], requires_grad=True)
    >>> q = RecuWeight(channels=1)(w)
    >>> q.tolist()
    [[1.0, 1.0, -1.0]]
    >>> q[0, 1].backward()
    >>> [round(g, 4) for g in w.grad.flatten().tolist()]
    [-0.3143, 0.6285, -0.3143]
    """

    description = Description(
        group=BINARY_WEIGHTS,
        method="ReCU",
        year=2021,
        forward="alpha_c sign(W - mean W)",
        gradient="1 inside the tau-quantile, through the standardization",
        storage="learned a channel",
        published="C10 R20 87.5, VGG-small 92.2; IN R18 60.98 (1/1)",
        panel=Panel(schedule=("tau", (0.7, 0.85, 0.99)), note=r"$\tau$ = 0.7, 0.85, 0.99"),
        examples=(Example((-1, -1, -1, 1, 1, 1, 1, 1), None),),
    )

    for_weights = True
    _bits = 1

    def __init__(self, channels: int, tau: float = 0.85):
        super().__init__()
        if not 0.5 < tau < 1:
            raise ValueError(f"tau must lie in (0.5, 1), got {tau!r}")
        self.tau = tau
        self.alpha = parameter_per_channel(channels, 1.0)

    def _clipped(self, w: Tensor) -> Tensor:
        u = 2 * math.sqrt(2) * centered(w) / (variance(w) + _EPSILON).sqrt()
        bound = -u.detach().abs().mean() * math.log(2 - 2 * self.tau)
        return torch.minimum(torch.maximum(u, -bound), bound)

    def forward(self, w: Tensor) -> Tensor:
        v = self._clipped(w)
        return straight_through(v, sign(v.detach())) * like_filters(self.alpha.to(w.dtype), w)

    def planes(self, w: Tensor) -> Planes:
        return sign_planes(self._clipped(w.detach()), self.alpha.detach().to(w.dtype))

    def extra_repr(self) -> str:
        return f"channels={len(self.alpha)}, tau={self.tau:g}"


class RecuSign(Quantizer):
    """Forward: q(x) = +1 if x >= 0, else -1. Gradient: ApproxSign's at x / std x, with std of each sample, in training.

    Xu et al., "ReCU", ICCV 2021, as in the authors' code: dividing by the standard deviation (of everything but axis
    0) does not change the sign, but keeps inputs of any size within the reach of the gradient 2 - 2|x / std|.

    >>> x = torch.tensor([[2.0, -2.0, 0.0, 0.0]], requires_grad=True)
    >>> y = RecuSign()(x)
    >>> y.tolist()
    [[1.0, -1.0, 1.0, 1.0]]
    >>> y[0, 2].backward()
    >>> [round(g, 4) for g in x.grad.flatten().tolist()]
    [0.0, 0.0, 1.2247, 0.0]
    """

    description = Description(
        group=BINARY_INPUTS,
        method="ReCU",
        year=2021,
        forward="sign(x)",
        gradient="ApproxSign's at x / std x",
        published="see `RecuWeight`",
        panel=Panel(note="input divided by its deviation", training=True),
        examples=(Example((-1, -1, -1, 1, 1, 1, 1, 1), (0, 0, 1, 2, 2, 1, 0, 0)),),
    )

    elementwise = True

    def forward(self, x: Tensor) -> Tensor:
        many = x.numel() > len(x)  # numbers in a sample
        scaled = x / (variance(x) + _EPSILON).sqrt() if self.training and many else x
        # The sign of x itself: dividing a very small x could give 0.
        return straight_through(scaled, sign(x.detach()), triangle(scaled.detach()))

    def planes(self, x: Tensor) -> Planes:
        return sign_planes(x, torch.ones((), dtype=x.dtype, device=x.device))
