"""A ramp that becomes sign during training."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bnn.planes import Planes, sign_planes
from bnn.quantizers.base import Quantizer
from bnn.quantizers.description import BINARY_INPUTS, Description, Example, Panel
from bnn.quantizers.straight_through import sign, straight_through

_STEEPEST = 1e7


class ProgressiveSign(Quantizer):
    """Training: q(x) = hardtanh(x 4^(10 p)), progress p in [0, 1] set by a schedule. Evaluation: sign, as +1 or -1.

    Gradient: 1, in training and evaluation. The definition is bitorch's (hpi-xnor/bitorch, progressive_sign): ramp
    hardtanh(x / (1 - T)) at temperature T = 1 - 4^(-10 p), where 1 - T is at least 1e-7. Since evaluation always uses
    sign, accuracy in evaluation means little until p is close to 1.

    progress: p, 0 at the beginning of training and 1 at its end.

    >>> quantizer = ProgressiveSign()
    >>> x = torch.tensor([-2.0, -0.25, 0.0, 0.25], requires_grad=True)
    >>> y = quantizer(x)
    >>> y.tolist()
    [-1.0, -0.25, 0.0, 0.25]
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [1.0, 1.0, 1.0, 1.0]
    >>> quantizer.progress = 0.05
    >>> quantizer(x).tolist(), quantizer.eval()(x).tolist()
    ([-1.0, -0.5, 0.0, 0.5], [-1.0, -1.0, 1.0, 1.0])
    """

    description = Description(
        group=BINARY_INPUTS,
        method="bitorch",
        year=None,
        forward="a ramp that steepens in training, sign(x) in evaluation",
        gradient="1",
        panel=Panel(schedule=("progress", (0.02, 0.1, 0.5)), note="p = 0.02, 0.1, 0.5", training=True),
        examples=(Example((-1, -1, -1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 1, 1, 1)),),
    )

    elementwise = True

    def __init__(self, progress: float = 0.0):
        super().__init__()
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must lie in [0, 1], got {progress!r}")
        self.progress = progress

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return straight_through(x, sign(x))
        return straight_through(x, F.hardtanh(x.detach() * min(4 ** (10 * self.progress), _STEEPEST)))

    def planes(self, x: Tensor) -> Planes:
        return sign_planes(x, torch.ones((), dtype=x.dtype, device=x.device))

    def extra_repr(self) -> str:
        return f"progress={self.progress:g}"
