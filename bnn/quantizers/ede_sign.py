"""Sign with a gradient that sharpens during training: IR-Net's error decay estimator."""

import torch
from torch import Tensor

from bnn.quantizers.description import BINARY_INPUTS, Description, Example, Panel
from bnn.quantizers.sharpness import Sharpened
from bnn.quantizers.surrogate_sign import SurrogateSign


def ede_slope(x: Tensor, t: float, k: float) -> Tensor:
    """Return k t (1 - tanh(t x)^2): the derivative of k tanh(t x)."""
    return (k * t) * (1 - torch.tanh(t * x) ** 2)


class EdeSign(Sharpened, SurrogateSign):
    """Forward: q(x) = +1 if x >= 0, else -1. Gradient: k t (1 - tanh(t x)^2), k = max(1 / t, 1).

    Qin et al., "IR-Net", CVPR 2020, "error decay estimator". The paper lets t rise during training,
    t = T_min 10^(e / E log10(T_max / T_min)) in epoch e of E, that is exponentially from T_min to T_max: a schedule
    sets the attribute `t`. At first the gradient is close to that of the identity, at the end to that of a steep tanh.

    t: the sharpness, > 0; the paper's T_min is 1e-3 for ResNet-20 and 1e-1 for VGG-small, its T_max 10.

    >>> quantizer = EdeSign(t=2.0)
    >>> x = torch.tensor([-0.5, -0.0, 0.0, 1.0], requires_grad=True)
    >>> y = quantizer(x)
    >>> y.tolist()
    [-1.0, 1.0, 1.0, 1.0]
    >>> y.sum().backward()
    >>> [round(g, 4) for g in x.grad.tolist()]
    [0.8399, 2.0, 2.0, 0.1413]
    """

    description = Description(
        group=BINARY_INPUTS,
        method="IR-Net",
        year=2020,
        forward="sign(x)",
        gradient="k t (1 - tanh(t x)^2), t rises",
        published="C10 R20 86.5, VGG-small 90.4; IN R18 58.1 (1/1)",
        panel=Panel(schedule=("t", (0.5, 1, 3)), note="t = 0.5, 1, 3"),
        examples=(
            Example(
                (-1, -1, -1, 1, 1, 1, 1, 1),
                (0.070651, 0.419974, 0.786448, 1, 1, 0.786448, 0.419974, 0.070651),
                options={"t": 1.0},
            ),
            Example(
                (-1, -1, -1, 1, 1, 1, 1, 1),
                (0.419974, 0.786448, 0.940015, 1, 1, 0.940015, 0.786448, 0.419974),
                options={"t": 0.5},
            ),
        ),
    )

    def slope(self, x: Tensor) -> Tensor:
        return ede_slope(x, self.t, self.k)
