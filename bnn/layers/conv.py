"""Convolution with quantized weights and inputs."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn.layers.base import QuantizerFactory, QuantLayer, check_pad_value, make_quantizer
from bnn.quantizers.base import FullPrecision


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _same_padding(kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    if stride != (1, 1):
        raise ValueError(f"padding='same' needs stride 1, got {stride}")
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if any(r % 2 for r in reach):
        raise ValueError(
            f"padding='same' would be lopsided for kernel {kernel} and dilation {dilation}; pad explicitly"
        )
    return reach[0] // 2, reach[1] // 2


class QuantConv2d(QuantLayer, nn.Conv2d):
    """nn.Conv2d whose weight and input pass through quantizers first; the weight parameter stays latent FP32.

    Input (N, C_in, H, W), output (N, C_out, H_out, W_out), float.

    weight_quantizer, input_quantizer: factories (a class or functools.partial), one instance is made for each layer.
    pad_value: what lies outside the map after quantization: 0 (PyTorch's and the XNOR-Net authors' behaviour), +1
        or -1; a value that the input quantizer does not have is refused in evaluation and conversion.
    input_scale: multiply the output by XNOR-Net's K, the mean of |x| over channels, box filtered over each window
        with zeros outside (Rastegari et al. 2016, section 3.2, equation 11); needs an input quantizer.
    The other arguments are nn.Conv2d's. ValueError or TypeError on bad arguments.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        weight_quantizer: QuantizerFactory = FullPrecision,
        input_quantizer: QuantizerFactory = FullPrecision,
        pad_value: float = 0.0,
        input_scale: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        if padding == "valid":
            padding = 0
        elif padding == "same":
            padding = _same_padding(_pair(kernel_size), _pair(stride), _pair(dilation))
        elif isinstance(padding, str):
            raise ValueError(f"padding must be numbers, 'same' or 'valid', got {padding!r}")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device=device, dtype=dtype
        )
        self.weight_quantizer = make_quantizer(weight_quantizer, "weight_quantizer")
        self.input_quantizer = make_quantizer(input_quantizer, "input_quantizer")
        self.pad_value = check_pad_value(pad_value)
        self.input_scale = input_scale
        self._check_input_scale()

    forward = QuantLayer.forward  # type: ignore[assignment]

    def _pad(self) -> float:
        return self.pad_value if any(self.padding) else 0.0

    def _operate(self, x: Tensor, weight: Tensor, bias: Tensor | None, pad: float) -> Tensor:
        padding = self.padding
        if pad != 0:
            y_side, x_side = (int(p) for p in self.padding)
            x = F.pad(x, (x_side, x_side, y_side, y_side), value=pad)
            padding = (0, 0)
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _input_scale(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        a = x.abs().reshape(n, self.groups, c // self.groups, h, w).mean(2)
        kh, kw = self.kernel_size
        box = torch.full((self.groups, 1, kh, kw), 1 / (kh * kw), dtype=x.dtype, device=x.device)
        k = F.conv2d(a, box, None, self.stride, self.padding, self.dilation, self.groups)
        return k.repeat_interleave(self.out_channels // self.groups, 1) if self.groups > 1 else k

    def extra_repr(self) -> str:
        text = super().extra_repr()
        text += f", pad_value={self.pad_value:g}" if self.pad_value else ""
        return text + (", input_scale=True" if self.input_scale else "")
