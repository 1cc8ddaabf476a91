"""Sign with the gradient of a sigmoid-weighted unit: BNN+."""

import torch
from torch import Tensor

from bnn.quantizers.description import BINARY_INPUTS, Description, Example, Panel
from bnn.quantizers.surrogate_sign import SurrogateSign


class SwishSign(SurrogateSign):
    """Forward: q(x) = +1 if x >= 0, else -1. Gradient: beta (2 - beta x tanh(beta x / 2)) / (1 + cosh(beta x)).

    Darabi et al., "BNN+: Improved Binary Network Training", 2018, SignSwish: the derivative of
    SS(x) = 2 sigmoid(beta x) (1 + beta x (1 - sigmoid(beta x))) - 1, which is negative beyond |x| = 2.4 / beta.

    beta: steepness, > 0; 5 is also Larq's.

    >>> x = torch.tensor([-0.0, 0.0, 0.5, -0.5], requires_grad=True)
    >>> y = SwishSign()(x)
    >>> y.tolist()
    [1.0, 1.0, 1.0, -1.0]
    >>> y.sum().backward()
    >>> [round(g, 4) for g in x.grad.tolist()]
    [5.0, 5.0, -0.0846, -0.0846]
    """

    description = Description(
        group=BINARY_INPUTS,
        method="BNN+",
        year=2018,
        forward="sign(x)",
        gradient="beta (2 - beta x tanh(beta x/2)) / (1 + cosh(beta x))",
        published="C10 VGG-small 1/1 91.31 (FDA's table)",
        panel=Panel(note=r"$\beta$ = 5: 5 at the peak"),
        examples=(
            Example(
                (-1, -1, -1, 1, 1, 1, 1, 1),
                (0.100124, 0.604732, 0.882458, 1, 1, 0.882458, 0.604732, 0.100124),
                options={"beta": 1.0},
            ),
        ),
    )

    def __init__(self, beta: float = 5.0):
        super().__init__()
        if not beta > 0:
            raise ValueError(f"beta must be positive, got {beta!r}")
        self.beta = beta

    def slope(self, x: Tensor) -> Tensor:
        # Beyond it the gradient is below 1e-40; an infinite z would make it NaN.
        z = (self.beta * x).clamp(-100, 100)
        return self.beta * (2 - z * torch.tanh(z / 2)) / (1 + torch.cosh(z))

    def extra_repr(self) -> str:
        return f"beta={self.beta}"
