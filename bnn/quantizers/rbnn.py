"""Weights rotated towards their signs before binarization: RBNN."""

import math

import torch
from torch import Tensor, nn

from bnn.planes import Planes, sign_planes
from bnn.quantizers.data_initialized import DataInitialized
from bnn.quantizers.description import BINARY_INPUTS, BINARY_WEIGHTS, Description, Example, Panel
from bnn.quantizers.filters import like_filters, mean_magnitude, parameter_per_channel, standardized
from bnn.quantizers.precision import without_autocast
from bnn.quantizers.sharpness import Sharpened
from bnn.quantizers.straight_through import sign, straight_through
from bnn.quantizers.surrogate_sign import SurrogateSign


def rbnn_slope(x: Tensor, t: float, k: float) -> Tensor:
    """Return k max(sqrt(2) t - t^2 |x|, 0): a triangle of width 2 sqrt(2) / t."""
    return k * (math.sqrt(2) * t - t * t * x.abs()).clamp(min=0)


class RbnnSign(Sharpened, SurrogateSign):
    """Forward: q(x) = +1 if x >= 0, else -1. Gradient: k max(sqrt(2) t - t^2 |x|, 0), k = max(1 / t, 1).

    Lin et al., "Rotated Binary Neural Network", NeurIPS 2020, "training-aware approximation":
    t rises exponentially from 1e-2 to 10 during training; a schedule sets the attribute `t`.

    >>> x = torch.tensor([-2.0, 0.0, 1.0], requires_grad=True)
    >>> y = RbnnSign(t=1.0)(x)
    >>> y.tolist()
    [-1.0, 1.0, 1.0]
    >>> y.sum().backward()
    >>> [round(g, 4) for g in x.grad.tolist()]
    [0.0, 1.4142, 0.4142]
    """

    description = Description(
        group=BINARY_INPUTS,
        method="RBNN",
        year=2020,
        forward="sign(x)",
        gradient="k max(sqrt(2) t - t^2 |x|, 0), t rises",
        published="see `RotatedWeight`",
        panel=Panel(schedule=("t", (0.5, 1, 3)), note="t = 0.5, 1, 3"),
        examples=(
            Example(
                (-1, -1, -1, 1, 1, 1, 1, 1),
                (0, 0.414214, 0.914214, 1.414214, 1.414214, 0.914214, 0.414214, 0),
                options={"t": 1.0},
            ),
        ),
    )

    def slope(self, x: Tensor) -> Tensor:
        return rbnn_slope(x, self.t, self.k)


def _two_factors(n: int) -> tuple[int, int]:
    """Return (a, b) with a b = n, a <= b, as close as they can be."""
    a = next(a for a in range(math.isqrt(n), 0, -1) if n % a == 0)
    return a, n // a


class RotatedWeight(Sharpened, DataInitialized):
    """Forward: q(W) = alpha_c sign(V + |sin theta_c| (R1^T V R2 - V)), V = (W - mean W) / std W of each filter.

    Each filter's n weights stand as a matrix of a x b = n; R1 (a x a) and R2 (b x b) are rotations of the whole layer.
    alpha_c (at first mean|W|) and the angle theta_c (at first uniform in [0, pi / 2)) are learned.
    Gradient: RbnnSign's through the sign (k max(sqrt(2) t - t^2 |.|, 0)), then the chain rule; the rotated weights
    R1^T V R2 count as constant, as in the authors' code.
    Lin et al., "Rotated Binary Neural Network", NeurIPS 2020, "bi-rotation" and "adjustable rotation".

    The rotations are not learned by gradient: `align` turns them so that the rotated weights come closer to their own
    signs, by three rounds of signs, R1, R2, each the solution of an orthogonal Procrustes problem (one SVD of a x a,
    one of b x b). The paper does so at the beginning of each epoch: bnn.training calls `begin_epoch`. Rotating costs
    n (a + b) multiplications a filter in every training step, and nothing at inference: what is packed are signs.

    channels, fan_in: output channels and n; a layer tells them by itself. t: as for RbnnSign.

    >>> _ = torch.manual_seed(0)
    >>> quantizer = RotatedWeight(channels=2, fan_in=6)
    >>> w = torch.randn(2, 6, requires_grad=True)
    >>> q = quantizer(w)
    >>> torch.equal(q.abs(), w.detach().abs().mean(1, keepdim=True).expand(2, 6))
    True
    >>> q.sum().backward()
    >>> bool(w.grad.isfinite().all()), quantizer.alpha.grad.shape, quantizer.theta.grad.shape
    (True, torch.Size([2]), torch.Size([2]))
    """

    description = Description(
        group=BINARY_WEIGHTS,
        method="RBNN",
        year=2020,
        forward="alpha_c sign(V + |sin theta| (R V - V))",
        gradient="RbnnSign's",
        storage="learned a channel",
        published="C10 R20 86.5, VGG-small 91.3; IN R18 59.9 (1/1)",
        panel=Panel(options={"t": 1.0}, note="t = 1, a dot for each weight", training=True, dots=True),
        examples=(Example((-1, -1, -1, 1, 1, 1, 1, 1), None, learned={"theta": 0.0}),),
    )

    rounds = 3
    for_weights = True
    _bits = 1

    def __init__(self, channels: int, fan_in: int, t: float = 0.1):
        super().__init__(t)
        if fan_in < 1:
            raise ValueError(f"fan_in must be at least 1, got {fan_in!r}")
        self.alpha = parameter_per_channel(channels, 1.0)
        self.theta = nn.Parameter(torch.rand(channels) * (math.pi / 2))
        a, b = _two_factors(fan_in)
        self.rotation1: Tensor
        self.rotation2: Tensor
        self.register_buffer("rotation1", nn.init.orthogonal_(torch.empty(a, a)))
        self.register_buffer("rotation2", nn.init.orthogonal_(torch.empty(b, b)))

    def _matrices(self, v: Tensor) -> Tensor:
        return v.reshape(v.shape[0], len(self.rotation1), len(self.rotation2))

    def _rotate(self, matrices: Tensor) -> Tensor:
        dtype = matrices.dtype
        with without_autocast(matrices.device):  # signs near 0 would be others than those of the planes
            return self.rotation1.to(dtype).T @ matrices @ self.rotation2.to(dtype)

    @torch.no_grad()
    def align(self, w: Tensor) -> None:
        """Turn the rotations, in place, so that the rotated weights come closer to their own signs."""
        # At least float32: an SVD of fewer bits does not exist.
        dtype = torch.promote_types(w.dtype, torch.float32)
        # What is not finite has no direction; an SVD would fail on it, and the forward shows it anyway.
        x = self._matrices(standardized(w.detach().to(dtype))).nan_to_num(0, 0, 0)
        r1, r2 = self.rotation1.to(dtype), self.rotation2.to(dtype)
        with without_autocast(w.device):
            for _ in range(self.rounds):
                signs = sign(r1.T @ x @ r2)
                # The orthogonal R that maximizes trace(M R), M = U S V^T, is V U^T.
                u, _, vh = torch.linalg.svd((signs @ r2.T @ x.mT).sum(0))
                r1 = vh.T @ u.T
                u, _, vh = torch.linalg.svd((x.mT @ r1 @ signs).sum(0))
                r2 = u @ vh
        self.rotation1.copy_(r1)
        self.rotation2.copy_(r2)

    def begin_epoch(self, w: Tensor) -> None:
        self.align(w)

    def initialize(self, x: Tensor) -> None:
        self.alpha.copy_(mean_magnitude(x))
        self.align(x)

    def _turned(self, w: Tensor) -> Tensor:
        v = standardized(w)
        rotated = self._rotate(self._matrices(v.detach())).reshape(w.shape)
        return v + like_filters(torch.sin(self.theta.to(w.dtype)).abs(), w) * (rotated - v)

    def forward(self, w: Tensor) -> Tensor:
        self.initialize_once(w)
        turned = self._turned(w)
        fixed = turned.detach()
        signs = straight_through(turned, sign(fixed), rbnn_slope(fixed, self.t, self.k))
        return signs * like_filters(self.alpha.to(w.dtype), w)

    def planes(self, w: Tensor) -> Planes:
        with torch.no_grad():
            return sign_planes(self._turned(w), self.alpha.detach().to(w.dtype))

    def extra_repr(self) -> str:
        return f"channels={len(self.alpha)}, fan_in={len(self.rotation1) * len(self.rotation2)}, t={self.t:g}"
