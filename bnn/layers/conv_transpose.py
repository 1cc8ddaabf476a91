"""Transposed convolution with quantized weights and inputs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn.layers.base import QuantizerFactory, QuantLayer
from bnn.layers.conv import Size
from bnn.quantizers.base import FullPrecision


class QuantConvTranspose2d(QuantLayer, nn.ConvTranspose2d):
    """nn.ConvTranspose2d whose weight and input pass through quantizers first; the weight parameter stays latent FP32.

    Input (N, C_in, H, W), output (N, C_out, H_out, W_out), float.

    The weight parameter has torch's shape (C_in, C_out / groups, kh, kw). Its quantizer sees it as filters, (C_out,
    C_in / groups, kh, kw), so that a scale "per channel" is one per output channel, as in every other layer.
    There is no pad_value: `padding` takes rows off the output and adds none to the input.

    weight_quantizer, input_quantizer: factories (a class or functools.partial), one instance is made for each layer.
    The other arguments are nn.ConvTranspose2d's. ValueError or TypeError on bad arguments.
    """

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
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,  # type: ignore[arg-type]
            stride,  # type: ignore[arg-type]
            padding,  # type: ignore[arg-type]
            output_padding,  # type: ignore[arg-type]
            groups,
            bias,
            dilation,  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
        )
        self._make_quantizers(weight_quantizer, input_quantizer, out_channels, in_channels, input_axis=1)
        self.input_scale = False

    forward = QuantLayer.forward  # type: ignore[assignment]

    def _swapped(self, weight: Tensor) -> Tensor:
        """Exchange the two channel axes within each group: torch's order to filters, and filters to torch's order."""
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:])
        return grouped.transpose(1, 2).reshape(-1, grouped.shape[1], *weight.shape[2:])

    def filters(self, weight: Tensor) -> Tensor:
        return self._swapped(weight)

    def from_filters(self, filters: Tensor) -> Tensor:
        return self._swapped(filters)

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4:
            raise ValueError(f"QuantConvTranspose2d takes (N, C, H, W) inputs, got {tuple(x.shape)}")

    def _by_channel(self, values: Tensor) -> Tensor:
        return values.reshape(-1, 1, 1)

    def _operate(self, x: Tensor, weight: Tensor, bias: Tensor | None, pad: float) -> Tensor:
        return F.conv_transpose2d(
            x,
            self.from_filters(weight),
            bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            self.output_padding,
            self.groups,
            self.dilation,
        )
