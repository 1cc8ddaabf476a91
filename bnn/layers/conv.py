"""Convolutions over one, two and three axes with quantized weights and inputs."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn.layers.base import QuantizerFactory, QuantLayer, check_pad_value
from bnn.quantizers.base import FullPrecision

Size = int | tuple[int, ...]


def _sizes(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(int(v) for v in value)


def _same_padding(kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    if any(s != 1 for s in stride):
        raise ValueError(f"padding='same' needs stride 1, got {stride}")
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if any(r % 2 for r in reach):
        raise ValueError(
            f"padding='same' would be lopsided for kernel {kernel} and dilation {dilation}; pad explicitly"
        )
    return tuple(r // 2 for r in reach)


class QuantConvNd(QuantLayer):
    """What the quantized convolutions share, whatever their number of axes; comes before torch's class.

    The weight parameter stays latent FP32 and passes through its quantizer, as does the input, in every forward.

    weight_quantizer, input_quantizer: factories (a class or functools.partial), one instance is made for each
        layer; those with a parameter `channels`, `channel_axis` or `fan_in` are told the layer's.
    pad_value: what lies outside the map after quantization: 0 (PyTorch's and the XNOR-Net authors' behaviour), +1
        or -1; a value that the input quantizer does not have is refused in evaluation and conversion.
    input_scale: multiply the output by XNOR-Net's K, the mean of |x| over channels, box filtered over each window
        with zeros outside (Rastegari et al. 2016, section 3.2, equation 11); needs an input quantizer.
    The other arguments are those of torch's class. ValueError or TypeError on bad arguments.
    """

    axes: ClassVar[int]
    convolve: ClassVar[Callable[..., Tensor]]

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    out_channels: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
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
            padding = _same_padding(*(_sizes(v, self.axes) for v in (kernel_size, stride, dilation)))
        elif isinstance(padding, str):
            raise ValueError(f"padding must be numbers, 'same' or 'valid', got {padding!r}")
        super().__init__(  # type: ignore[call-arg]
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device=device, dtype=dtype
        )
        self._make_quantizers(weight_quantizer, input_quantizer, out_channels, in_channels, input_axis=1)
        self.pad_value = check_pad_value(pad_value)
        self.input_scale = input_scale
        self._check_input_scale()

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != self.axes + 2:
            raise ValueError(f"{type(self).__name__} takes (N, C, {self.axes} axes) inputs, got {tuple(x.shape)}")

    def _by_channel(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * self.axes)

    def _pad(self) -> float:
        return self.pad_value if any(self.padding) else 0.0

    def _operate(self, x: Tensor, weight: Tensor, bias: Tensor | None, pad: float) -> Tensor:
        padding = self.padding
        if pad != 0:
            x = F.pad(x, [p for p in reversed(padding) for _ in range(2)], value=pad)
            padding = (0,) * self.axes
        return type(self).convolve(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _input_scale(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        a = x.abs().reshape(n, self.groups, c // self.groups, *x.shape[2:]).mean(2)
        box = torch.ones(self.groups, 1, *self.kernel_size, dtype=x.dtype, device=x.device)
        box /= box[0].numel()
        k = type(self).convolve(a, box, None, self.stride, self.padding, self.dilation, self.groups)
        return k.repeat_interleave(self.out_channels // self.groups, 1) if self.groups > 1 else k

    def extra_repr(self) -> str:
        text: str = super().extra_repr()  # type: ignore[misc]
        text += f", pad_value={self.pad_value:g}" if self.pad_value else ""
        return text + (", input_scale=True" if self.input_scale else "")


class QuantConv1d(QuantConvNd, nn.Conv1d):  # type: ignore[misc]
    """nn.Conv1d with quantized weight and input. Input (N, C_in, L), output (N, C_out, L_out), float.

    The arguments are described at QuantConvNd.
    """

    axes = 1
    convolve = staticmethod(F.conv1d)
    forward = QuantLayer.forward  # type: ignore[assignment]


class QuantConv2d(QuantConvNd, nn.Conv2d):  # type: ignore[misc]
    """nn.Conv2d with quantized weight and input. Input (N, C_in, H, W), output (N, C_out, H_out, W_out), float.

    The arguments are described at QuantConvNd.
    """

    axes = 2
    convolve = staticmethod(F.conv2d)
    forward = QuantLayer.forward  # type: ignore[assignment]


class QuantConv3d(QuantConvNd, nn.Conv3d):  # type: ignore[misc]
    """nn.Conv3d with quantized weight and input. Input (N, C_in, D, H, W), output (N, C_out, D_out, H_out, W_out).

    The arguments are described at QuantConvNd.
    """

    axes = 3
    convolve = staticmethod(F.conv3d)
    forward = QuantLayer.forward  # type: ignore[assignment]
