"""Two values that need not be opposite: AdaBin's weights and activations."""

from typing import Literal

import torch
from torch import Tensor, nn

from bnn.planes import Planes, sign_planes
from bnn.quantizers.approx_sign import triangle
from bnn.quantizers.base import Quantizer
from bnn.quantizers.description import BINARY_INPUTS, BINARY_WEIGHTS, Description, Example, Panel
from bnn.quantizers.ede_sign import ede_slope
from bnn.quantizers.filters import centered, deviation, divided, filters, like_filters
from bnn.quantizers.sharpness import Sharpened
from bnn.quantizers.straight_through import sign, straight_through


class AdaBinWeight(Sharpened, Quantizer):
    """Forward: q(W) = alpha sign(V) + beta, V = (W - beta) / alpha; beta and alpha are mean and standard deviation.

    Mean and (biased) standard deviation are those of each filter (axis 0). Gradient: EDE's with respect to V
    (k t (1 - tanh(t V)^2), k = max(1 / t, 1)), and the chain rule through alpha and beta wherever they stand.
    Tu et al., "AdaBin", ECCV 2022, "weight equalization"; t rises during training as for EdeSign.

    The offset beta costs a sum over each input window at inference.

    >>> w = torch.tensor([[3.0, 1.0]], requires_grad=True)
    >>> q = AdaBinWeight(t=1.0)(w)
    >>> q.tolist()
    [[3.0, 1.0]]
    >>> q[0, 0].backward()
    >>> w.grad.tolist()
    [[1.0, 0.0]]
    """

    description = Description(
        group=BINARY_WEIGHTS,
        method="AdaBin",
        year=2022,
        forward="alpha sign(W - beta) + beta",
        gradient="EDE's, through mean and std",
        storage="std a filter, and an offset",
        published="C10 R20 88.1, VGG-small 92.3; IN R18 63.1 (1/1)",
        panel=Panel(schedule=("t", (0.5, 1, 3)), note="t = 0.5, 1, 3"),
        examples=(
            Example((-1.1456439, -1.1456439, -1.1456439, 1.1456439, 1.1456439, 1.1456439, 1.1456439, 1.1456439), None),
        ),
    )

    @staticmethod
    def _parts(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return V, alpha and beta."""
        alpha = deviation(w, correction=0)
        return divided(centered(w), alpha), alpha, filters(w).mean(1)

    def forward(self, w: Tensor) -> Tensor:
        v, alpha, beta = self._parts(w)
        fixed = v.detach()
        signs = straight_through(v, sign(fixed), ede_slope(fixed, self.t, self.k))
        return signs * like_filters(alpha, w) + like_filters(beta, w)

    def planes(self, w: Tensor) -> Planes:
        v, alpha, beta = self._parts(w.detach())
        return sign_planes(v, alpha, beta)


class AdaBinActivation(Quantizer):
    """Forward: q(x) = alpha sign((x - beta) / alpha) + beta, with alpha (at first 1) and beta (at first 0) learned.

    Gradient: ApproxSign's with respect to (x - beta) / alpha, and the chain rule to x, alpha and beta.
    Tu et al., "AdaBin", ECCV 2022, "gradient-based optimization" of activations. `form`:

    - "paper" (default): as above.
    - "released" (the authors' code): alpha (sign((x - beta) / alpha) + beta).

    The offset costs one map of sums that does not depend on the input: nothing where it fits an integer threshold.

    >>> quantizer = AdaBinActivation()
    >>> with torch.no_grad():
    ...     _ = quantizer.alpha.fill_(2.0), quantizer.beta.fill_(0.5)
    >>> x = torch.tensor([0.0, 0.5, 1.5], requires_grad=True)
    >>> y = quantizer(x)
    >>> y.tolist()
    [-1.5, 2.5, 2.5]
    >>> y.sum().backward()
    >>> x.grad.tolist(), quantizer.alpha.grad.item(), quantizer.beta.grad.item()
    ([1.5, 2.0, 1.0], 0.875, -1.5)
    """

    description = Description(
        group=BINARY_INPUTS,
        method="AdaBin",
        year=2022,
        forward="a sign((x - b)/a) + b, a and b learned",
        gradient="ApproxSign's at (x - b)/a",
        published="see `AdaBinWeight`",
        panel=Panel(learned={"alpha": 0.8, "beta": 0.4}, note=r"$\alpha$ = 0.8, $\beta$ = 0.4"),
        examples=(
            Example((-2, -2, -2, 2, 2, 2, 2, 2), (0, 1, 1.5, 2, 2, 1.5, 1, 0), learned={"alpha": 2.0, "beta": 0.0}),
            Example(
                (-0.5, -0.5, -0.5, -0.5, -0.5, 1.5, 1.5, 1.5),
                (0, 0, 0, 1, 1, 2, 1, 0),
                learned={"alpha": 1.0, "beta": 0.5},
            ),
        ),
    )

    elementwise = True
    _bits = 1

    def __init__(self, form: Literal["paper", "released"] = "paper"):
        super().__init__()
        if form not in ("paper", "released"):
            raise ValueError(f"form must be 'paper' or 'released', got {form!r}")
        self.form = form
        self.alpha = nn.Parameter(torch.tensor(1.0))
        self.beta = nn.Parameter(torch.tensor(0.0))

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the number whose sign counts, the distance and the center."""
        alpha, beta = self.alpha.to(x.dtype), self.beta.to(x.dtype)
        # An optimizer may bring alpha to 0, by which nothing can be divided.
        smallest = torch.finfo(x.dtype).tiny ** 0.5
        divisor = torch.where(alpha.abs() < smallest, smallest, alpha)
        return (x - beta) / divisor, alpha, beta if self.form == "paper" else alpha * beta

    def forward(self, x: Tensor) -> Tensor:
        v, alpha, offset = self._parts(x)
        fixed = v.detach()
        return straight_through(v, sign(fixed), triangle(fixed)) * alpha + offset

    def planes(self, x: Tensor) -> Planes:
        v, alpha, offset = self._parts(x.detach())
        return sign_planes(v, alpha.detach(), offset.detach())

    def extra_repr(self) -> str:
        return f"form={self.form!r}"
