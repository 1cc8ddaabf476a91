"""LSQ's weights with a gradient that rises between the levels: StableQAT."""

import math

from bnn.planes import check_bits
from bnn.quantizers.description import FEW_BITS, Description, Example, Panel
from bnn.quantizers.lsq import LsqWeight

# Beyond it the gradient at a level would be negative.
_LARGEST = 1 / (math.sqrt(2) * math.pi)


class StableLsqWeight(LsqWeight):
    """k-bit weights with a learned step. Forward and gradient to s: LsqWeight's.

    Gradient to W, with x = W / s: (1 - c cos t) / (1 + c cos t), t = pi (x + round(x)), if -Q_N < x < Q_P, else 0.
    It is 1 halfway between two levels and (1 - c) / (1 + c) at a level, where a small change of a weight changes
    nothing: the derivative of the first term of a Fourier series of rounding, turned by 45 degrees so that it is
    bounded. c = sqrt(2) pi amplitude; an amplitude of 0 is the straight-through estimator.
    "StableQAT", 2026, arXiv:2601.19320; the formula and the amplitude 0.21 are those of the authors' code.

    bits: k, 2 .. 8. amplitude: in [0, 0.225]. per_channel, channels: as in LsqWeight.

    >>> import torch
    >>> quantizer = StableLsqWeight(bits=3).eval()
    >>> w = torch.tensor([[-5.0, -1.5, 0.25, 1.0]], requires_grad=True)
    >>> q = quantizer(w)
    >>> q.tolist()
    [[-4.0, -2.0, 0.0, 1.0]]
    >>> q.sum().backward()
    >>> [round(g, 4) for g in w.grad[0].tolist()]
    [0.0, 1.0, 0.205, 0.0347]
    """

    description = Description(
        group=FEW_BITS,
        method="StableQAT",
        year=2026,
        forward="LSQ's",
        gradient="(1 - c cos t)/(1 + c cos t) inside, t = pi (W/s + round(W/s))",
        storage="{0,1}, two's complement, scale s",
        panel=Panel(options={"bits": 3}, learned={"step": 0.4}, note="3 bits, s = 0.4"),
        examples=(
            Example(
                (-1.6, -0.8, -0.8, 0, 0, 0.8, 0.8, 1.6),
                (1, 0.22826087, 0.49248888, 0.05899862, 0.05899862, 0.49248888, 0.22826087, 1),
                options={"bits": 3, "amplitude": 0.2},
                learned={"step": 0.8},
            ),
        ),
    )

    def __init__(self, bits: int, amplitude: float = 0.21, per_channel: bool = False, channels: int | None = None):
        check_bits(bits, range(2, 9))
        if not 0 <= amplitude <= _LARGEST:
            raise ValueError(f"amplitude must lie in [0, {_LARGEST:.3f}], got {amplitude!r}")
        super().__init__(bits, per_channel, channels)
        self.amplitude = float(amplitude)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, amplitude={self.amplitude:g}"
