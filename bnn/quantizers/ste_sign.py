"""Sign with the clipped straight-through estimator: BinaryNet's binarization of weights and activations."""

from typing import Literal

import torch
from torch import Tensor

from bnn.planes import Planes, sign_planes
from bnn.quantizers.base import Quantizer
from bnn.quantizers.description import BINARY_INPUTS, Description, Example
from bnn.quantizers.straight_through import sign, straight_through


class SteSign(Quantizer):
    """Forward: q(x) = +1 if x >= 0, else -1. Gradient: 1 if |x| <= clip, else 0 (clip None: always 1).

    Courbariaux et al., "Binarized Neural Networks", 2016, equations 1 and 4.

    clip: the bound of the estimator, > 0, or None.
    boundary: whether |x| = clip itself passes the gradient: "closed" (default; as the paper prints it) or "open" (the
        XNOR-Net authors' Torch code, where the gradient is 0 for |x| >= 1).

    >>> quantizer = SteSign()
    >>> x = torch.tensor([-1.5, -1.0, -0.0, 0.0, 0.4, 1.0, 1.5], requires_grad=True)
    >>> y = quantizer(x)
    >>> y.tolist()
    [-1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    """

    description = Description(
        group=BINARY_INPUTS,
        method="BNN",
        year=2016,
        forward="sign(x)",
        gradient="1 if |x| <= clip (or <: `boundary`)",
        published="C10 VGG 1/1 88.60",
        examples=(
            Example((-1, -1, -1, 1, 1, 1, 1, 1), (0, 1, 1, 1, 1, 1, 1, 0)),
            Example((-1, -1, -1, 1, 1, 1, 1, 1), (0, 0, 1, 1, 1, 1, 0, 0), options={"boundary": "open"}),
            Example((-1, -1, -1, 1, 1, 1, 1, 1), (0, 0, 1, 1, 1, 1, 0, 0), options={"clip": 0.5}),
            Example((-1, -1, -1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 1, 1, 1), options={"clip": None}),
        ),
    )

    elementwise = True

    def __init__(self, clip: float | None = 1.0, boundary: Literal["closed", "open"] = "closed"):
        super().__init__()
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be positive or None, got {clip!r}")
        if boundary not in ("closed", "open"):
            raise ValueError(f"boundary must be 'closed' or 'open', got {boundary!r}")
        self.clip = clip
        self.boundary = boundary

    def forward(self, x: Tensor) -> Tensor:
        if self.clip is None:
            return straight_through(x, sign(x))
        size = x.detach().abs()
        return straight_through(x, sign(x), size <= self.clip if self.boundary == "closed" else size < self.clip)

    def planes(self, x: Tensor) -> Planes:
        return sign_planes(x, torch.ones((), dtype=x.dtype, device=x.device))

    def extra_repr(self) -> str:
        return f"clip={self.clip}" + ("" if self.boundary == "closed" else f", boundary={self.boundary!r}")
