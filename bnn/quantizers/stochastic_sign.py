"""Signs drawn at random in training: BinaryNet's stochastic binarization of activations."""

import torch
from torch import Tensor

from bnn.planes import Planes, sign_planes
from bnn.quantizers.base import Quantizer
from bnn.quantizers.description import BINARY_INPUTS, Description, Example, Panel
from bnn.quantizers.masks import as_numbers, or_nan
from bnn.quantizers.straight_through import sign, straight_through


def random_sign(x: Tensor) -> Tensor:
    """Return +1 with probability clip((x + 1) / 2, 0, 1), else -1, dtype of x; a NaN stays NaN."""
    drawn = torch.rand_like(x) < (x + 1).div_(2)
    return or_nan(x, as_numbers(drawn, x.dtype).mul_(2).sub_(1))


class StochasticSign(Quantizer):
    """Training: q(x) = +1 with probability clip((x + 1) / 2, 0, 1), else -1. Evaluation: sign.

    Gradient: 1 if |x| <= 1, else 0: that of the expectation 2 clip((x + 1) / 2, 0, 1) - 1.
    Courbariaux et al., "Binarized Neural Networks", 2016, section 1.1, equations 2 and 3. Draws come from torch's
    generator of the device.

    >>> quantizer = StochasticSign()
    >>> x = torch.tensor([-2.0, -1.0, 1.0, 2.0], requires_grad=True)
    >>> y = quantizer(x)
    >>> y.tolist()
    [-1.0, -1.0, 1.0, 1.0]
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [0.0, 1.0, 1.0, 0.0]
    >>> quantizer.eval()(torch.tensor([-0.1, 0.0, 0.1])).tolist()
    [-1.0, 1.0, 1.0]
    """

    description = Description(
        group=BINARY_INPUTS,
        method="BNN",
        year=2016,
        forward="+1 with probability clip((x+1)/2, 0, 1) in training, sign(x) in evaluation",
        gradient="1 if |x| <= 1",
        panel=Panel(note="here in evaluation"),
        examples=(Example((-1, -1, -1, 1, 1, 1, 1, 1), (0, 1, 1, 1, 1, 1, 1, 0)),),
    )

    elementwise = True

    def forward(self, x: Tensor) -> Tensor:
        fixed = x.detach()
        return straight_through(x, random_sign(fixed) if self.training else sign(fixed), fixed.abs() <= 1)

    def planes(self, x: Tensor) -> Planes:
        return sign_planes(x, torch.ones((), dtype=x.dtype, device=x.device))
