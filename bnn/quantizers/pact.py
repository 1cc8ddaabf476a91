"""Activations clipped at a learned bound: PACT."""

from typing import Any

import torch
from torch import Tensor, nn

from bnn.planes import Planes, Term, check_bits, code_bits, powers_of_two
from bnn.quantizers.base import Quantizer, Uniform
from bnn.quantizers.description import FEW_BITS, Description, Example, Panel
from bnn.quantizers.grid import Grid
from bnn.quantizers.masks import masked


class _LearnedClip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward((x > 0) & (x < alpha), x >= alpha)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (g,) = gradients
        inside, above = ctx.saved_tensors
        return masked(g, inside), masked(g, above).sum(), None


class Pact(Quantizer):
    """k-bit activations. Forward: q(x) = round(clip(x, 0, alpha) n / alpha) alpha / n, n = 2^k - 1, with alpha learned.

    Gradient to x: 1 if 0 < x < alpha, else 0. Gradient to alpha: 1 if x >= alpha, else 0, summed.
    Choi et al., "PACT: Parameterized Clipping Activation for Quantized Neural Networks", 2018, section 3,
    equations 1 to 3. Halves are rounded to even. The paper adds an L2 penalty on alpha to the loss: weight decay of
    this parameter.

    bits: k, 1 .. 8. alpha: the bound at first, > 0; 10, as in the paper, lets almost everything pass.

    >>> quantizer = Pact(bits=2, alpha=3.0)
    >>> x = torch.tensor([-1.0, 0.0, 0.75, 2.0, 3.0, 4.0], requires_grad=True)
    >>> y = quantizer(x)
    >>> y.tolist()
    [0.0, 0.0, 1.0, 2.0, 3.0, 3.0]
    >>> y.sum().backward()
    >>> x.grad.tolist(), quantizer.alpha.grad.item()
    ([0.0, 0.0, 1.0, 1.0, 0.0, 0.0], 2.0)
    """

    description = Description(
        group=FEW_BITS,
        method="PACT",
        year=2018,
        forward="clip(x, 0, alpha) on 2^k levels, alpha learned",
        gradient="1 if 0 < x < alpha; to alpha 1 if x >= alpha",
        storage="{0,1}, scale alpha/(2^k-1)",
        published="IN R18 2/2 64.4, 4/4 69.2 (N2UQ's README)",
        panel=Panel(options={"alpha": 1.5, "bits": 2}, note=r"2 bits, $\alpha$ = 1.5"),
        examples=(
            Example(
                (0, 0, 0, 0, 0, 2 / 3, 1, 1), (0, 0, 0, 0, 0, 1, 0, 0), options={"bits": 2}, learned={"alpha": 1.0}
            ),
        ),
    )

    elementwise = True

    def __init__(self, bits: int, alpha: float = 10.0):
        super().__init__()
        self._bits = check_bits(bits)
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, got {alpha!r}")
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))

    def _alpha(self, x: Tensor) -> Tensor:
        """Return the bound as a positive number, whatever an optimizer made of the parameter."""
        return self.alpha.to(x.dtype).abs().clamp(min=torch.finfo(x.dtype).tiny)

    def _levels_and_scale(self, x: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        n = 2**self._bits - 1
        scale = alpha / n
        # clip after the division: alpha / scale may round to a little more than n. + 0.0: planes know no -0.0.
        return (x / scale).clamp_(0, n).round_().add_(0.0), scale

    @property
    def grid(self) -> Grid:
        """Levels 0 to n; alpha is n steps."""
        return Grid(0, 2**self._bits - 1)

    def set_grid(self, step: Tensor, zero_point: Tensor) -> None:
        self.alpha.detach().copy_((2**self._bits - 1) * step.reshape(()))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self._alpha(x)
        levels, scale = self._levels_and_scale(x.detach(), alpha.detach())
        return _LearnedClip.apply(x, alpha, levels * scale)

    @property
    def uniform(self) -> Uniform:
        """Division by the scale, which is computed as the quantizer computes it."""
        n = 2**self._bits - 1
        return Uniform(float(self._alpha(torch.zeros(1)).detach() / n), True, 0, n)

    def planes(self, x: Tensor) -> Planes:
        levels, scale = self._levels_and_scale(x.detach(), self._alpha(x).detach())
        return Planes((Term(code_bits(levels, self._bits), False, powers_of_two(self._bits), scale),))

    def extra_repr(self) -> str:
        return f"bits={self._bits}"
