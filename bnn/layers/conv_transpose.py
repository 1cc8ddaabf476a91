"""Transposed convolutions over one, two and three axes with quantized weights and inputs."""

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn.layers.base import QuantizerFactory, QuantLayer
from bnn.layers.conv import Size
from bnn.quantizers.base import FullPrecision


class QuantConvTransposeNd(QuantLayer):
    """What the quantized transposed convolutions share, whatever their number of axes; comes before torch's class.

    The weight parameter stays latent FP32 and passes through its quantizer, as does the input, in every forward. It has
    torch's shape (C_in, C_out / groups, *kernel). Its quantizer sees it as filters, (C_out, C_in / groups, *kernel), so
    that a scale "per channel" is one per output channel, as in every other layer.
    There is no pad_value: `padding` takes rows off the output and adds none to the input.

    weight_quantizer, input_quantizer: factories (a class or functools.partial), one instance is made for each layer.
    The other arguments are those of torch's class. ValueError or TypeError on bad arguments.
    """

    axes: ClassVar[int]
    convolve: ClassVar[Callable[..., Tensor]]

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        *,
        weight_quantizer: QuantizerFactory = FullPrecision,
        input_quantizer: QuantizerFactory = FullPrecision,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(  # type: ignore[call-arg]
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
            device=device, dtype=dtype,
        )  # fmt: skip
        self._make_quantizers(weight_quantizer, input_quantizer, out_channels, in_channels, input_axis=1)
        self.input_scale = False

    def _swapped(self, weight: Tensor) -> Tensor:
        """Exchange the two channel axes within each group: torch's order to filters, and filters to torch's order."""
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:])
        return grouped.transpose(1, 2).reshape(-1, grouped.shape[1], *weight.shape[2:])

    def filters(self, weight: Tensor) -> Tensor:
        return self._swapped(weight)

    def from_filters(self, filters: Tensor) -> Tensor:
        return self._swapped(filters)

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != self.axes + 2:
            raise ValueError(f"{type(self).__name__} takes (N, C, {self.axes} axes) inputs, got {tuple(x.shape)}")

    def _by_channel(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * self.axes)

    def _operate(self, x: Tensor, weight: Tensor, bias: Tensor | None, pad: float) -> Tensor:
        return type(self).convolve(
            x, self.from_filters(weight), bias, self.stride, self.padding, self.output_padding, self.groups,
            self.dilation,
        )  # fmt: skip


class QuantConvTranspose1d(QuantConvTransposeNd, nn.ConvTranspose1d):  # type: ignore[misc]
    """nn.ConvTranspose1d with quantized weight and input. Input (N, C_in, L), output (N, C_out, L_out), float.

    The arguments are described at QuantConvTransposeNd.
    """

    axes = 1
    convolve = staticmethod(F.conv_transpose1d)
    forward = QuantLayer.forward  # type: ignore[assignment]


class QuantConvTranspose2d(QuantConvTransposeNd, nn.ConvTranspose2d):  # type: ignore[misc]
    """nn.ConvTranspose2d with quantized weight and input. Input (N, C_in, H, W), output (N, C_out, H_out, W_out).

    The arguments are described at QuantConvTransposeNd.
    """

    axes = 2
    convolve = staticmethod(F.conv_transpose2d)
    forward = QuantLayer.forward  # type: ignore[assignment]


class QuantConvTranspose3d(QuantConvTransposeNd, nn.ConvTranspose3d):  # type: ignore[misc]
    """nn.ConvTranspose3d with quantized weight and input. Input (N, C_in, D, H, W), output alike, float.

    The arguments are described at QuantConvTransposeNd.
    """

    axes = 3
    convolve = staticmethod(F.conv_transpose3d)
    forward = QuantLayer.forward  # type: ignore[assignment]
