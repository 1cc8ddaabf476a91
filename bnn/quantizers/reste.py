"""Sign with the gradient of a power function, which comes closer to the sign during training: ReSTE."""

from torch import Tensor

from bnn.planes import Planes, sign_planes
from bnn.quantizers.base import Quantizer
from bnn.quantizers.description import BINARY_INPUTS, BINARY_WEIGHTS, Description, Example, Panel
from bnn.quantizers.masks import as_numbers
from bnn.quantizers.straight_through import sign, straight_through
from bnn.quantizers.surrogate_sign import SurrogateSign

# Inputs smaller than this get the mean slope up to here: the derivative at 0 is infinite.
_INNER = 0.1
# Larger ones get none.
_OUTER = 1.5


def power_slope(x: Tensor, o: float) -> Tensor:
    """Return |x|^(1/o - 1) / o for 0.1 < |x| <= 1.5, 0.1^(1/o - 1) for smaller and 0 for larger |x|."""
    size = x.abs()
    slope = size.clamp(_INNER, _OUTER) ** (1 / o - 1) / o
    inner = as_numbers(size <= _INNER, x.dtype)
    middle = as_numbers(size <= _OUTER, x.dtype).sub_(inner)
    return slope.mul_(middle).add_(inner, alpha=_INNER ** (1 / o - 1))


class _Power:
    """Mixin of quantizers whose gradient has a root `o`, which a schedule raises."""

    o: float

    def __init__(self, o: float = 1.0):
        super().__init__()
        if not o >= 1:
            raise ValueError(f"o must be at least 1, got {o!r}")
        self.o = float(o)

    def extra_repr(self) -> str:
        """Return o as the module's repr shows it."""
        return f"o={self.o:g}"


class ResteSign(_Power, SurrogateSign):
    """Forward: q(x) = +1 if x >= 0, else -1. Gradient: |x|^(1/o - 1) / o, the derivative of sign(x) |x|^(1/o).

    At |x| <= 0.1 the gradient is 0.1^(1/o - 1), the mean slope between 0 and 0.1, and at |x| > 1.5 it is 0: so it stays
    bounded. o = 1 is the straight-through estimator, a large o is close to the sign itself.
    Wu et al., "Estimator Meets Equilibrium Perspective", ICCV 2023; the two bounds are those of the authors' code.
    There o rises during training, o = 1 + (o_end - 1) (1 - cos(pi e / (2 E))) in epoch e of E with o_end = 3: a
    schedule sets the attribute `o` (`bnn.training.CosineRise`).

    o: the root, >= 1.

    >>> import torch
    >>> quantizer = ResteSign(o=2.0)
    >>> x = torch.tensor([-2.0, -0.0, 0.25, 1.0], requires_grad=True)
    >>> y = quantizer(x)
    >>> y.tolist()
    [-1.0, 1.0, 1.0, 1.0]
    >>> y.sum().backward()
    >>> [round(g, 4) for g in x.grad.tolist()]
    [0.0, 3.1623, 1.0, 0.5]
    """

    description = Description(
        group=BINARY_INPUTS,
        method="ReSTE",
        year=2023,
        forward="sign(x)",
        gradient="|x|^(1/o - 1) / o if 0.1 < |x| <= 1.5, o rises",
        published="see `ResteWeight`",
        panel=Panel(schedule=("o", (1, 2, 3)), note="o = 1, 2, 3"),
        examples=(
            Example(
                (-1, -1, -1, 1, 1, 1, 1, 1),
                (0, 0.5, 0.70710678, 3.16227766, 3.16227766, 0.70710678, 0.5, 0),
                options={"o": 2.0},
            ),
            Example((-1, -1, -1, 1, 1, 1, 1, 1), (0, 1, 1, 1, 1, 1, 1, 0)),
        ),
    )

    def slope(self, x: Tensor) -> Tensor:
        return power_slope(x, self.o)


class ResteWeight(_Power, Quantizer):
    """Forward: q(W) = alpha sign(W), alpha = mean|W| over the layer. Gradient: ResteSign's times alpha, and alpha's.

    dC/dW_i = g_i alpha slope(W_i) + (1/n) sgn(W_i) sum_j g_j sign(W_j) with n weights in the layer and sgn(0) = 0.
    Wu et al., "Estimator Meets Equilibrium Perspective", ICCV 2023; the scale is that of the authors' code.

    o: the root, >= 1; see `ResteSign`.

    >>> import torch
    >>> w = torch.tensor([[0.25, -1.0]], requires_grad=True)
    >>> q = ResteWeight(o=2.0)(w)
    >>> q.tolist()
    [[0.625, -0.625]]
    >>> q.sum().backward()
    >>> w.grad.tolist()
    [[0.625, 0.3125]]
    """

    description = Description(
        group=BINARY_WEIGHTS,
        method="ReSTE",
        year=2023,
        forward="alpha sign(W)",
        gradient="alpha times ResteSign's, and that of alpha",
        storage="mean|W| a layer",
        published="C10 R20 86.75, R18 92.63, VGG-small 92.55; IN R18 60.88 (1/1)",
        panel=Panel(schedule=("o", (1, 2, 3)), note="o = 1, 2, 3"),
        examples=(
            Example(
                (-0.875, -0.875, -0.875, 0.875, 0.875, 0.875, 0.875, 0.875),
                (-0.25, 0.1875, 0.36871843, 2.76699295, 2.76699295, 0.86871843, 0.6875, 0.25),
                options={"o": 2.0},
            ),
        ),
    )

    _bits = 1

    def forward(self, w: Tensor) -> Tensor:
        fixed = w.detach()
        return straight_through(w, sign(fixed), power_slope(fixed, self.o)) * w.abs().mean()

    def planes(self, w: Tensor) -> Planes:
        w = w.detach()
        return sign_planes(w, w.abs().mean())
