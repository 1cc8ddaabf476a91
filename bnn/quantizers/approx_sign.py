"""Sign with a triangular gradient: Bi-Real Net's binarization of activations."""

from torch import Tensor

from bnn.quantizers.description import BINARY_INPUTS, Description, Example
from bnn.quantizers.surrogate_sign import SurrogateSign


def triangle(x: Tensor) -> Tensor:
    """Return max(2 - 2|x|, 0): the derivative of Bi-Real Net's piecewise quadratic approximation of sign."""
    return (2 - 2 * x.abs()).clamp(min=0)


class ApproxSign(SurrogateSign):
    """Forward: q(x) = +1 if x >= 0, else -1. Gradient: 2 - 2|x| if |x| <= 1, else 0.

    Liu et al., "Bi-Real Net", ECCV 2018, "approximation to the derivative of the sign": the
    derivative of 2x + x^2 on [-1, 0) and 2x - x^2 on [0, 1), which approximates sign.

    >>> import torch
    >>> x = torch.tensor([-1.5, -1.0, -0.5, -0.0, 0.0, 0.25, 1.0], requires_grad=True)
    >>> y = ApproxSign()(x)
    >>> y.tolist()
    [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0]
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [0.0, 0.0, 1.0, 2.0, 2.0, 1.5, 0.0]
    """

    description = Description(
        group=BINARY_INPUTS,
        method="Bi-Real Net",
        year=2018,
        forward="sign(x)",
        gradient="2 - 2|x| if |x| <= 1",
        published="IN R18 1/1 56.4",
        examples=(Example((-1, -1, -1, 1, 1, 1, 1, 1), (0, 0, 1, 2, 2, 1, 0, 0)),),
    )

    def slope(self, x: Tensor) -> Tensor:
        return triangle(x)
