"""Gradients of few bits: DoReFa-Net's third quantizer."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bnn.planes import check_bits
from bnn.quantizers.base import Quantizer


class _QuantizedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int, noise: bool) -> Tensor:
        ctx.bits, ctx.noise = bits, noise
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (g,) = gradients
        n = 2**ctx.bits - 1
        largest = g.abs().amax(tuple(range(1, g.ndim)), keepdim=True).clamp(min=torch.finfo(g.dtype).tiny)
        places = g / (2 * largest) + 0.5
        if ctx.noise:
            places = places + (torch.rand_like(g) - 0.5) / n
        return 2 * largest * (torch.round(n * places.clamp(0, 1)) / n - 0.5), None, None


class DoReFaGradient(nn.Module):
    """Forward: x, unchanged. Gradient: f_k(g) = 2 m [q_k(g / (2 m) + 1/2 + N) - 1/2], m = max|g| of a sample (axis 0).

    q_k(r) = round((2^k - 1) r) / (2^k - 1) of r clipped to [0, 1]; N = u / (2^k - 1) with u uniform in [-1/2, 1/2),
    so that the quantized gradient is right on average.
    Zhou et al., "DoReFa-Net", 2016, section 2.5, equation 12. Put it behind a layer whose gradient shall be quantized;
    it is no part of the network that is converted.

    bits: k, 1 .. 8. noise: whether N is added. One bit without it is max|g| sign(g), XNOR-Net's binary gradient (its
        section on training), but for gradients of 0, which halves rounded to even make negative.

    >>> x = torch.zeros(1, 3, requires_grad=True)
    >>> DoReFaGradient(bits=1)(x).backward(torch.tensor([[2.0, -2.0, 2.0]]))
    >>> x.grad.tolist()
    [[2.0, -2.0, 2.0]]
    """

    def __init__(self, bits: int, noise: bool = True):
        super().__init__()
        self.bits = check_bits(bits)
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        return _QuantizedGradient.apply(x, self.bits, self.noise)

    def after(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Be a forward hook of another module."""
        return self(output)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, noise={self.noise}"


def quantize_gradients(model: nn.Module, bits: int, noise: bool = True) -> list[RemovableHandle]:
    """Quantize the gradients that arrive at every quantized layer of a model, as DoReFa-Net trains with G bits.

    What a layer passes on, and the gradients of its weight and bias, then come from few bits. The first and last
    layers, where they are not quantized, keep theirs. Returns handles: handle.remove() undoes it. ValueError for a
    model without quantized layers.
    """
    layers = [module for module in model.modules() if isinstance(getattr(module, "weight_quantizer", None), Quantizer)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no quantized layers")
    gradient = DoReFaGradient(bits, noise)
    return [layer.register_forward_hook(gradient.after) for layer in layers]
