"""What the models share: the options of their quantized layers, and what stands in a quantizer's place without one."""

from typing import TypedDict

from torch import nn

from bnn.layers import QuantConv2d, QuantLinear
from bnn.layers.base import QuantizerFactory


class LinearOptions(TypedDict, total=False):
    """What a model hands to each of its quantized layers; an option left out has the layer's own default.

    weight_quantizer, input_quantizer: factories (FullPrecision by default: the FP32 twin of the model).
    input_scale: multiply outputs by XNOR-Net's K of the input.
    """

    weight_quantizer: QuantizerFactory
    input_quantizer: QuantizerFactory
    input_scale: bool


class LayerOptions(LinearOptions, total=False):
    """LinearOptions and what convolutions take beside.

    pad_value: what lies outside the maps of quantized convolutions: 0, +1 or -1.
    """

    pad_value: float


def for_linear(options: LayerOptions) -> LinearOptions:
    """Return the options without those of convolutions alone."""
    return {key: value for key, value in options.items() if key != "pad_value"}  # type: ignore[return-value]


def rectifier(layer: QuantConv2d | QuantLinear) -> nn.Module:
    """Return what stands before a layer whose input quantizer is the block's only nonlinearity.

    Nothing where the input is quantized; a ReLU where it stays float, or the FP32 twin would be a linear map.
    """
    return nn.Identity() if layer.input_quantizer.packable else nn.ReLU()


def scaled(channels: int, width: float) -> int:
    """Return a number of channels times a width, at least 1; ValueError if the width is not positive."""
    if not width > 0:
        raise ValueError(f"width must be positive, got {width!r}")
    return max(1, round(channels * width))
