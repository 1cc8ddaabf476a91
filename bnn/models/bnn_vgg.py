"""The VGG-like network of BinaryConnect and BinaryNet for 32x32 images."""

from typing import Unpack

from torch import nn

from bnn.layers import QuantConv2d, QuantLinear
from bnn.models.first_layer import StemKind, as_pixels, normalization
from bnn.models.options import LayerOptions, for_linear, scaled
from bnn.pixels import Pixels, eight_bits, pixel_levels
from bnn.quantizers import FullPrecision

# BinaryNet's code, CIFAR-10.
BN_EPS = 1e-4


class BNNVGG(nn.Sequential):
    """Six 3x3 convolutions and three linear layers: 2x128C3-MP2-2x256C3-MP2-2x512C3-MP2-2x1024-10.

    | layer               | output for 32x32 | quantized                         |
    |---------------------|------------------|-----------------------------------|
    | 128C3               | 128x32x32        | weights, with quantize_ends       |
    | 128C3 - MP2         | 128x16x16        | yes                               |
    | 256C3, 256C3 - MP2  | 256x8x8          | yes                               |
    | 512C3, 512C3 - MP2  | 512x4x4          | yes                               |
    | 1024, 1024          | 1024             | yes                               |
    | 10                  | 10               | yes, with quantize_ends           |

    Each layer is followed by [pool -] BN - Hardtanh, the last by BN alone. Courbariaux et al., "Binarized Neural
    Networks", 2016, section 3.3 and the authors' code. 14.03 M parameters.

    Input (N, in_channels, 32, 32), output (N, num_classes).
    quantize_ends: quantize the first layer's weights (its input stays float, or pixels with the stem "int8") and the
        last layer as well, as BinaryNet does; without it both stay FP32, as in XNOR-Net and after it.
    stem, pixels: see `bnn.models`.
    width: factor on all inner numbers of channels. options: see LayerOptions.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        stem: StemKind = "fp32",
        pixels: Pixels | bool = False,
        quantize_ends: bool = False,
        width: float = 1.0,
        **options: Unpack[LayerOptions],
    ):
        found = as_pixels(stem, pixels)
        first: LayerOptions = {}
        if stem == "int8" and found is not None:
            first = {"weight_quantizer": eight_bits(), "input_quantizer": pixel_levels(found)}
        if quantize_ends:
            first["weight_quantizer"] = options.get("weight_quantizer", FullPrecision)
        plain: LayerOptions = {}
        layers = normalization(in_channels, stem, pixels)
        before = in_channels
        for index, channels in enumerate((128, 128, 256, 256, 512, 512), start=1):
            after = scaled(channels, width)
            layers[f"conv{index}"] = QuantConv2d(before, after, 3, padding=1, **(options if index > 1 else first))
            if index % 2 == 0:
                layers[f"pool{index}"] = nn.MaxPool2d(2)
            layers[f"norm{index}"] = nn.BatchNorm2d(after, eps=BN_EPS)
            layers[f"hardtanh{index}"] = nn.Hardtanh()
            before = after
        layers["flatten"] = nn.Flatten()
        before *= 4 * 4
        for index in (7, 8):
            after = scaled(1024, width)
            layers[f"linear{index}"] = QuantLinear(before, after, **for_linear(options))
            layers[f"norm{index}"] = nn.BatchNorm1d(after, eps=BN_EPS)
            layers[f"hardtanh{index}"] = nn.Hardtanh()
            before = after
        layers["linear9"] = QuantLinear(before, num_classes, **for_linear(options if quantize_ends else plain))
        layers["norm9"] = nn.BatchNorm1d(num_classes, eps=BN_EPS)
        super().__init__(layers)
        self.input_shape = (in_channels, 32, 32)
