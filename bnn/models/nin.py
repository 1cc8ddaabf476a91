"""Network in Network for 32x32 images, as re-implementations of XNOR-Net train it."""

from collections import OrderedDict
from functools import partial
from typing import Unpack

from torch import nn

from bnn.layers import DroppedInput, QuantConv2d
from bnn.models.first_layer import StemKind, first_layers
from bnn.models.options import LayerOptions, scaled
from bnn.pixels import Pixels
from bnn.quantizers import FullPrecision

# jiecaoyu/XNOR-Net-PyTorch, CIFAR_10.
BN_EPS = 1e-4


class NIN(nn.Sequential):
    """Network in Network with binary inner layers for CIFAR-10, blocks BN - quantize - conv - ReLU.

    | layer                 | output for 32x32 | quantized |
    |-----------------------|------------------|-----------|
    | 192C5 - BN - ReLU     | 192x32x32        |           |
    | 160C1, 96C1 - MP3/2   | 96x16x16         | yes       |
    | 192C5, 192C1, 192C1 - AP3/2 | 192x8x8    | yes       |
    | 192C3, 192C1          | 192x8x8          | yes       |
    | BN - 10C1 - ReLU - global average | 10   |           |

    Lin et al., "Network In Network", 2014; block order of Rastegari et al., "XNOR-Net", 2016, section 3.2; layers,
    eps and the place of dropout from jiecaoyu/XNOR-Net-PyTorch. 966,986 weights and biases of convolutions.

    Input (N, in_channels, H, W) with H and W from 16, 32 meant; output (N, num_classes).
    stem, pixels: see `bnn.models`.
    dropout: share of quantized inputs dropped before the second and the third spatial convolution.
    width: factor on all inner numbers of channels. options: see LayerOptions.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        stem: StemKind = "fp32",
        pixels: Pixels | bool = False,
        dropout: float = 0.5,
        width: float = 1.0,
        **options: Unpack[LayerOptions],
    ):
        c96, c160, c192 = (scaled(c, width) for c in (96, 160, 192))
        dropped = partial(DroppedInput, options.get("input_quantizer", FullPrecision), p=dropout)
        layers = first_layers("conv1", in_channels, c192, 5, stem, pixels, padding=2)
        layers |= OrderedDict(norm1=nn.BatchNorm2d(c192, eps=BN_EPS, affine=False), relu1=nn.ReLU())

        def block(index: int, before: int, after: int, kernel: int, drops: bool = False) -> None:
            own: LayerOptions = {**options, "input_quantizer": dropped} if drops else options
            layers[f"norm{index}"] = nn.BatchNorm2d(before, eps=BN_EPS)
            layers[f"conv{index}"] = QuantConv2d(before, after, kernel, padding=kernel // 2, **own)
            layers[f"relu{index}"] = nn.ReLU()

        block(2, c192, c160, 1)
        block(3, c160, c96, 1)
        layers["pool3"] = nn.MaxPool2d(3, 2, 1)
        block(4, c96, c192, 5, drops=dropout > 0)
        block(5, c192, c192, 1)
        block(6, c192, c192, 1)
        layers["pool6"] = nn.AvgPool2d(3, 2, 1)
        block(7, c192, c192, 3, drops=dropout > 0)
        block(8, c192, c192, 1)
        layers["norm9"] = nn.BatchNorm2d(c192, eps=BN_EPS, affine=False)
        layers["conv9"] = nn.Conv2d(c192, num_classes, 1)
        layers["relu9"] = nn.ReLU()
        layers["pool9"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        super().__init__(layers)
        self.input_shape = (in_channels, 32, 32)
