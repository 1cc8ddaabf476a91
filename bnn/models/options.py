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


def bends(layer: QuantConv2d | QuantLinear) -> bool:
    """Return whether a layer's input quantizer can be the only nonlinearity of a block.

    Not where the input stays float, or the FP32 twin would be a linear map, nor where the levels cover whatever range
    the input has, as those of INT8 libraries do.
    """
    quantizer = layer.input_quantizer
    grid = quantizer.grid
    covers_all = quantizer.absmax is not None or (grid is not None and grid.has_zero_point)
    return quantizer.packable and not covers_all


def rectifier(layer: QuantConv2d | QuantLinear) -> nn.Module:
    """Return what stands before a layer: nothing where its input quantizer `bends`, elsewhere a ReLU."""
    return nn.Identity() if bends(layer) else nn.ReLU()


def scaled(channels: int, width: float) -> int:
    """Return a number of channels times a width, at least 1; ValueError if the width is not positive."""
    if not width > 0:
        raise ValueError(f"width must be positive, got {width!r}")
    return max(1, round(channels * width))
