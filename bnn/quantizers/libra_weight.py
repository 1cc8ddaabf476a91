"""Balanced, standardized binary weights with power-of-two scales: IR-Net's Libra parameter binarization."""

import torch
from torch import Tensor

from bnn.planes import Planes, sign_planes
from bnn.quantizers.base import Quantizer
from bnn.quantizers.description import BINARY_WEIGHTS, Description, Example, Panel
from bnn.quantizers.ede_sign import ede_slope
from bnn.quantizers.filters import like_filters, mean_magnitude, standardized
from bnn.quantizers.sharpness import Sharpened
from bnn.quantizers.straight_through import sign, straight_through


class LibraWeight(Sharpened, Quantizer):
    """Forward: q(W) = 2^s sign(V), V = (W - mean W) / std W of each filter (axis 0), s = round(log2 mean|V|).

    Gradient: EDE's with respect to V (k t (1 - tanh(t V)^2), k = max(1 / t, 1)) times 2^s, then the chain rule through
    the standardization; s counts as constant.
    Qin et al., "IR-Net", CVPR 2020, "Libra parameter binarization", with the gradient of its EDE. The
    scale is a shift of bits. std is the unbiased one, as in the authors' code.

    t: sharpness of the gradient, raised by a schedule as for EdeSign.

    >>> w = torch.tensor([[3.0, 1.0, 0.0, 0.0]], requires_grad=True)
    >>> q = LibraWeight(t=1.0)(w)
    >>> q.tolist()
    [[1.0, 1.0, -1.0, -1.0]]
    >>> q[0, 0].backward()
    >>> [round(g, 4) for g in w.grad.flatten().tolist()]
    [0.0124, -0.0373, 0.0124, 0.0124]
    """

    description = Description(
        group=BINARY_WEIGHTS,
        method="IR-Net",
        year=2020,
        forward="2^s sign(V), V standardized",
        gradient="EDE's, through V",
        storage="a power of two a filter",
        published="see `EdeSign`; IN R18 1/32 66.5",
        panel=Panel(schedule=("t", (0.5, 1, 3)), note="t = 0.5, 1, 3"),
        examples=(Example((-1, -1, -1, 1, 1, 1, 1, 1), None),),
    )

    @staticmethod
    def _scale(v: Tensor) -> Tensor:
        shift = mean_magnitude(v).log2().round()
        return torch.ldexp(torch.ones_like(shift), shift)

    def forward(self, w: Tensor) -> Tensor:
        v = standardized(w)
        fixed = v.detach()
        signs = straight_through(v, sign(fixed), ede_slope(fixed, self.t, self.k))
        return signs * like_filters(self._scale(fixed), w)

    def planes(self, w: Tensor) -> Planes:
        v = standardized(w.detach())
        return sign_planes(v, self._scale(v))
