"""Gradients of few bits: DoReFa-Net's third quantizer."""

from typing import Any

import torch
from torch import Tensor, nn

from bnn.planes import check_bits


class _QuantizedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        ctx.bits = bits
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (g,) = gradients
        n = 2**ctx.bits - 1
        largest = g.abs().amax(tuple(range(1, g.ndim)), keepdim=True).clamp(min=torch.finfo(g.dtype).tiny)
        noise = (torch.rand_like(g) - 0.5) / n
        levels = torch.round(n * (g / (2 * largest) + 0.5 + noise).clamp(0, 1))
        return 2 * largest * (levels / n - 0.5), None


class DoReFaGradient(nn.Module):
    """Forward: x, unchanged. Gradient: f_k(g) = 2 m [q_k(g / (2 m) + 1/2 + N) - 1/2], m = max|g| of a sample (axis 0).

    q_k(r) = round((2^k - 1) r) / (2^k - 1) of r clipped to [0, 1]; N = u / (2^k - 1) with u uniform in [-1/2, 1/2),
    so that the quantized gradient is right on average.
    Zhou et al., "DoReFa-Net", 2016, section 2.5, equation 12. Put it behind a layer whose gradient shall be quantized;
    it is no part of the network that is converted.

    bits: k, 1 .. 8.

    >>> x = torch.zeros(1, 3, requires_grad=True)
    >>> DoReFaGradient(bits=1)(x).backward(torch.tensor([[2.0, -2.0, 2.0]]))
    >>> x.grad.tolist()
    [[2.0, -2.0, 2.0]]
    """

    def __init__(self, bits: int):
        super().__init__()
        self.bits = check_bits(bits)

    def forward(self, x: Tensor) -> Tensor:
        return _QuantizedGradient.apply(x, self.bits)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"
