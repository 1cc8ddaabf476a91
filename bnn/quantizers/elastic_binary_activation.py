"""Binary activations with a learned threshold and size, {-a, a} or {0, a}: BiT."""

from typing import Any

import torch
from torch import Tensor, nn

from bnn.planes import Planes, Term, code_bits, sign_planes
from bnn.quantizers.data_initialized import DataInitialized, mean_over_processes
from bnn.quantizers.description import BINARY_INPUTS, Description, Example, Panel
from bnn.quantizers.masks import as_numbers
from bnn.quantizers.straight_through import sign


def _levels(ratio: Tensor, signed: bool) -> Tensor:
    return sign(ratio) if signed else ratio.clamp(0, 1).round_().add_(0.0)  # planes know no -0.0


class _Elastic(torch.autograd.Function):
    """levels * alpha. alpha and beta have no axes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, beta: Tensor, signed: bool, factor: float) -> Tensor:
        ctx.save_for_backward(x, alpha, beta)
        ctx.signed, ctx.factor = signed, factor
        return _levels((x - beta).div_(alpha), signed).mul_(alpha)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (g,) = gradients
        x, alpha, beta = ctx.saved_tensors
        ratio = (x - beta).div_(alpha)
        change = _levels(ratio, ctx.signed)
        inside = as_numbers(ratio.abs() <= 1 if ctx.signed else (ratio >= 0) & (ratio < 1), x.dtype)
        to_x = g * inside
        if not ctx.signed:
            change.sub_(inside.mul_(ratio.clamp_(0, 1)))
        return to_x, (g * change).sum() * ctx.factor, -to_x.sum() * ctx.factor, None, None


class ElasticBinaryActivation(DataInitialized):
    """Binary activations with a learned size alpha and threshold beta, one each for the layer.

    Forward, with x' = (x - beta) / alpha:

    - signed (default), for inputs of both signs: q(x) = alpha sign(x').
    - otherwise, for inputs >= 0 such as those after a ReLU or a softmax: q(x) = alpha round(clip(x', 0, 1)), in
      {0, alpha}; halves are rounded to even.

    Gradient to x: 1 if |x'| <= 1, or if 0 <= x' < 1; else 0. Gradient to beta: minus that, summed. Gradient to alpha:
    sign(x'), or round(x') - x' inside, 0 below and 1 above, summed. Both sums are multiplied by 1 / sqrt(N) with N
    features to a sample, as LSQ's. alpha begins at mean|x|, or 2 mean|x|, of the first batch of training, beta at 0.
    Liu et al., "BiT: Robustly Binarized Multi-distilled Transformer", NeurIPS 2022, "two-set binarization scheme" and
    "elastic binarization function". The first alpha, the factor 1 / sqrt(N) and the bound |x'| <= 1 are ours.

    >>> quantizer = ElasticBinaryActivation(signed=False).eval()
    >>> with torch.no_grad():
    ...     _ = quantizer.alpha.fill_(2.0)
    >>> x = torch.tensor([[-1.0, 0.5, 1.5, 3.0]], requires_grad=True)
    >>> y = quantizer(x)
    >>> y.tolist()
    [[0.0, 0.0, 2.0, 2.0]]
    >>> y.sum().backward()
    >>> x.grad.tolist(), quantizer.alpha.grad.item(), quantizer.beta.grad.item()
    ([[0.0, 1.0, 1.0, 0.0]], 0.5, -1.0)
    """

    description = Description(
        group=BINARY_INPUTS,
        method="BiT",
        year=2022,
        forward="a sign((x - b)/a), or a round(clip((x - b)/a, 0, 1)), a and b learned",
        gradient="1 if |x - b| <= a, or 0 <= x - b < a",
        panel=Panel(options={"signed": False}, learned={"alpha": 1.2, "beta": 0.2}, note="{0, a}, a = 1.2, b = 0.2"),
        examples=(
            Example((-1, -1, -1, -1, -1, 1, 1, 1), (0, 0, 1, 1, 1, 1, 1, 0), learned={"alpha": 1.0, "beta": 0.5}),
            Example((0, 0, 0, 0, 0, 0, 1, 1), (0, 0, 0, 1, 1, 1, 0, 0), options={"signed": False}),
        ),
    )

    elementwise = True
    _bits = 1

    def __init__(self, signed: bool = True):
        super().__init__()
        self.signed = signed
        self.alpha = nn.Parameter(torch.tensor(1.0))
        self.beta = nn.Parameter(torch.tensor(0.0))

    def initialize(self, x: Tensor) -> None:
        start = x.abs().mean() * (1 if self.signed else 2)
        # Nothing but zeros says nothing about the size.
        self.alpha.copy_(mean_over_processes(torch.where(start > 0, start, torch.ones_like(start))))

    def _parameters_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha as a positive number, whatever an optimizer made of the parameter, and beta."""
        return self.alpha.to(x.dtype).abs().clamp(min=torch.finfo(x.dtype).tiny), self.beta.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        self.initialize_once(x)
        alpha, beta = self._parameters_of(x)
        features = x[0].numel() if x.ndim > 1 and len(x) else x.numel()
        return _Elastic.apply(x, alpha, beta, self.signed, max(features, 1) ** -0.5)

    def planes(self, x: Tensor) -> Planes:
        x = x.detach()
        alpha, beta = (value.detach() for value in self._parameters_of(x))
        levels = _levels((x - beta) / alpha, self.signed)
        if self.signed:
            return sign_planes(levels, alpha)
        return Planes((Term(code_bits(levels, 1), False, (1,), alpha),))

    def extra_repr(self) -> str:
        return f"signed={self.signed}"
