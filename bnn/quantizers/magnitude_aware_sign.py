"""Binary weights with a fixed scale for the gradient: Bi-Real Net's magnitude-aware sign."""

from typing import Literal

from torch import Tensor

from bnn.planes import Planes, sign_planes
from bnn.quantizers.base import Quantizer
from bnn.quantizers.description import BINARY_WEIGHTS, Description, Example
from bnn.quantizers.filters import like_filters, mean_magnitude
from bnn.quantizers.straight_through import sign, straight_through


class MagnitudeAwareSign(Quantizer):
    """Forward: q(W) = alpha sign(W), alpha = mean|W| of each filter (axis 0). Gradient: alpha if |W| <= 1, else 0.

    Liu et al., "Bi-Real Net", ECCV 2018, "magnitude-aware gradient": the forward is XnorWeight's, but alpha counts
    as constant, so that the step follows the magnitude of the weights. The paper prints |W| < 1, by which a latent that
    was clipped to 1 could never come back. `gradient`:

    - "paper" (default): as above.
    - "released" (the authors' PyTorch code, and ReActNet's): 1 if |W| <= 1, else 0.

    >>> import torch
    >>> w = torch.tensor([[0.5, -1.5, 4.0]], requires_grad=True)
    >>> q = MagnitudeAwareSign()(w)
    >>> q.tolist()
    [[2.0, -2.0, 2.0]]
    >>> q.sum().backward()
    >>> w.grad.tolist()
    [[2.0, 0.0, 0.0]]
    """

    description = Description(
        group=BINARY_WEIGHTS,
        method="Bi-Real Net",
        year=2018,
        forward="alpha sign(W)",
        gradient="alpha if |W| <= 1, or 1 there (released code)",
        storage="mean|W| a filter, constant",
        published="IN R18 1/1 56.4",
        examples=(
            Example(
                (-0.875, -0.875, -0.875, 0.875, 0.875, 0.875, 0.875, 0.875),
                (0, 0.875, 0.875, 0.875, 0.875, 0.875, 0.875, 0),
            ),
            Example(
                (-0.875, -0.875, -0.875, 0.875, 0.875, 0.875, 0.875, 0.875),
                (0, 1, 1, 1, 1, 1, 1, 0),
                options={"gradient": "released"},
            ),
        ),
    )

    def __init__(self, gradient: Literal["paper", "released"] = "paper"):
        super().__init__()
        if gradient not in ("paper", "released"):
            raise ValueError(f"gradient must be 'paper' or 'released', got {gradient!r}")
        self.gradient = gradient

    def forward(self, w: Tensor) -> Tensor:
        fixed = w.detach()
        alpha, inside = like_filters(mean_magnitude(fixed), w), fixed.abs() <= 1
        if self.gradient == "released":
            return straight_through(w, sign(fixed) * alpha, inside)
        return straight_through(w, sign(fixed), inside) * alpha

    def planes(self, w: Tensor) -> Planes:
        return sign_planes(w, mean_magnitude(w.detach()))

    def extra_repr(self) -> str:
        return f"gradient={self.gradient!r}"
