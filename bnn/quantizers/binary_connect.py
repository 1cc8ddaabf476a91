"""Binary weights, rounded or drawn: BinaryConnect."""

from typing import Literal

import torch
from torch import Tensor

from bnn.planes import Planes, sign_planes
from bnn.quantizers.base import Quantizer
from bnn.quantizers.description import BINARY_WEIGHTS, Description, Example
from bnn.quantizers.stochastic_sign import random_sign
from bnn.quantizers.straight_through import sign, straight_through


class BinaryConnect(Quantizer):
    """Forward: q(W) = sign(W), or in stochastic training +1 with probability clip((W + 1) / 2, 0, 1), else -1.

    Gradient: 1 (dC/dW = dC/dq); the latents are clipped to [-1, 1] after each step (`bnn.latent`).
    Courbariaux et al., "BinaryConnect", NeurIPS 2015, sections 2.2 to 2.6, equations 1 to 3.

    stochastic: draw the signs in training. Small latents then are a coin toss, so they must travel far: the authors
        multiply their learning rate by sqrt((fan_in + fan_out) / 1.5).
    evaluation: "signs" (default), or "latents": evaluate with the real W, as the paper does for the stochastic variant.
        Its network then has no bits; but while latents are far from +-1, their signs are another network than the one
        that was trained with signs drawn around them.

    >>> w = torch.tensor([[-2.0, -0.0, 0.5]], requires_grad=True)
    >>> q = BinaryConnect()(w)
    >>> q.tolist()
    [[-1.0, 1.0, 1.0]]
    >>> q.sum().backward()
    >>> w.grad.tolist()
    [[1.0, 1.0, 1.0]]
    """

    description = Description(
        group=BINARY_WEIGHTS,
        method="BinaryConnect",
        year=2015,
        forward="sign(W), or drawn in training",
        gradient="1",
        storage="1",
        published="C10 VGG 1/32 91.73 (drawn)",
        examples=(Example((-1, -1, -1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 1, 1, 1)),),
    )

    elementwise = True

    def __init__(self, stochastic: bool = False, evaluation: Literal["signs", "latents"] = "signs"):
        super().__init__()
        if evaluation not in ("signs", "latents"):
            raise ValueError(f"evaluation must be 'signs' or 'latents', got {evaluation!r}")
        self.stochastic = stochastic
        self.evaluation = evaluation

    @property
    def packable(self) -> bool:  # type: ignore[override]
        """Whether the values are signs: not in an evaluation with latents."""
        return self.training or self.evaluation == "signs"

    def forward(self, w: Tensor) -> Tensor:
        if not self.packable:
            return w
        fixed = w.detach()
        return straight_through(w, random_sign(fixed) if self.stochastic and self.training else sign(fixed))

    def planes(self, w: Tensor) -> Planes:
        if not self.packable:
            return super().planes(w)
        return sign_planes(w, torch.ones((), dtype=w.dtype, device=w.device))

    @property
    def bits(self) -> int:
        """1, or 32 in an evaluation with latents."""
        return 1 if self.packable else 32

    def extra_repr(self) -> str:
        return f"stochastic={self.stochastic}, evaluation={self.evaluation!r}"
