"""Sign with the gradient of its Fourier series: frequency domain approximation."""

import math

import torch
from torch import Tensor

from bnn.quantizers.description import BINARY_INPUTS, Description, Example, Panel
from bnn.quantizers.masks import as_numbers
from bnn.quantizers.surrogate_sign import SurrogateSign


class FdaSign(SurrogateSign):
    """Forward: q(x) = +1 if x >= 0, else -1. Gradient: (4 w / pi) sum_{i=0..n} cos((2i + 1) w x) if |x| <= 1, else 0.

    Xu et al., "Learning Frequency Domain Approximation for Binary Neural Networks", NeurIPS 2021, section 2.2,
    equation 10: the derivative of the first n + 1 terms of the square wave's series. n rises from 9 to 18 during
    training (section 3.2, setting 3): a schedule sets the attribute `n`. w and the bound |x| <= 1, which the paper does
    not print, are those of BiBench's code. The paper's noise adaptation module is in NoiseAdaptedSign.

    n: number of the last term, >= 0. frequency: w, in (0, pi).

    >>> x = torch.tensor([-2.0, -1.0, 0.0, 0.5], requires_grad=True)
    >>> y = FdaSign(n=1, frequency=1.0)(x)
    >>> y.tolist()
    [-1.0, -1.0, 1.0, 1.0]
    >>> y.sum().backward()
    >>> [round(g, 4) for g in (x.grad + 0.0).tolist()]
    [0.0, -0.5726, 2.5465, 1.2074]
    """

    description = Description(
        group=BINARY_INPUTS,
        method="FDA",
        year=2021,
        forward="sign(x)",
        gradient="(4w/pi) sum_i cos((2i+1) w x) if |x| <= 1, more terms in time",
        published="C10 R20 85.83 (1/1)",
        panel=Panel(options={"frequency": 1.0}, schedule=("n", (1, 2, 4)), note=r"n = 1, 2, 4, $\omega$ = 1"),
        examples=(
            Example(
                (-1, -1, -1, 1, 1, 1, 1, 1),
                (0, 0.687934, 1.117373, 1.27324, 1.27324, 1.117373, 0.687934, 0),
                options={"n": 0, "frequency": 1.0},
            ),
        ),
    )

    def __init__(self, n: int = 9, frequency: float = 0.1):
        super().__init__()
        if n < 0 or not 0 < frequency < math.pi:
            raise ValueError(f"n must be at least 0 and frequency in (0, pi), got n={n!r}, frequency={frequency!r}")
        self.n = n
        self.frequency = frequency

    def slope(self, x: Tensor) -> Tensor:
        terms = int(self.n) + 1
        angle = x.clamp(-1, 1).mul_(self.frequency)
        # The sum of cosines is sin(2 m a) / (2 sin a) for m terms, and m at 0, where this is 0 / 0.
        waves = torch.sin(2 * terms * angle).div_(torch.sin(angle).mul_(2)).nan_to_num_(float(terms))
        return waves.mul_(4 * self.frequency / math.pi).mul_(as_numbers(x.abs() <= 1, x.dtype))

    def extra_repr(self) -> str:
        return f"n={self.n}, frequency={self.frequency}"
