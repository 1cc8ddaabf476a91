"""Darknet's extraction network: what the XNOR-Net paper calls its GoogLeNet variant."""

from collections import OrderedDict
from typing import Unpack

from torch import nn

from bnn.layers import QuantConv2d
from bnn.models.first_layer import StemKind, first_layers
from bnn.models.options import LayerOptions, bends, scaled
from bnn.pixels import Pixels

# Channels and kernel of the convolutions of each stage; 2x2 max pooling stands between stages.
STAGES = (
    ((192, 3),),
    ((128, 1), (256, 3), (256, 1), (512, 3)),
    ((256, 1), (512, 3)) * 4 + ((512, 1), (1024, 3)),
    ((512, 1), (1024, 3)) * 2,
)
SLOPE = 0.1


class DarknetExtraction(nn.Sequential):
    """Darknet's extraction: 20 convolutions, 3x3 and 1x1 by turns, and a linear layer; first and last in FP32.

    | layer                                  | output for 224x224 | quantized |
    |----------------------------------------|--------------------|-----------|
    | 64C7/2 - BN - leaky ReLU - MP2         | 64x56x56           |           |
    | 192C3 - MP2                            | 192x28x28          | yes       |
    | 128C1, 256C3, 256C1, 512C3 - MP2       | 512x14x14          | yes       |
    | 4 x (256C1, 512C3), 512C1, 1024C3 - MP2 | 1024x7x7          | yes       |
    | 2 x (512C1, 1024C3)                    | 1024x7x7           | yes       |
    | BN - leaky ReLU - global average - 1000 | 1000              |           |

    Rastegari et al., "XNOR-Net", 2016, section 4.3, and Darknet's extraction.cfg, without branches. The paper trains it
    with binary weights. 23,419,048 weights, biases of the linear layer included; 4.21 G multiply-accumulates.
    As in XNOR-Net's other networks each quantized convolution stands in the order BN - quantize -
    convolution - pool; Darknet's file has no batch norm. Where the input is not quantized (the FP32 twin, BWN) its
    leaky ReLU of slope 0.1 stands in the quantizer's place.

    Input (N, in_channels, H, W) with H and W multiples of 32, output (N, num_classes).
    stem, pixels: see `bnn.models`.
    width: factor on all inner numbers of channels. options: see LayerOptions.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        stem: StemKind = "fp32",
        pixels: Pixels | bool = False,
        width: float = 1.0,
        **options: Unpack[LayerOptions],
    ):
        before = scaled(64, width)
        layers = first_layers("conv1", in_channels, before, 7, stem, pixels, stride=2, padding=3, bias=False)
        layers |= OrderedDict(norm1=nn.BatchNorm2d(before), leaky1=nn.LeakyReLU(SLOPE), pool1=nn.MaxPool2d(2))
        index = 2
        for stage, convolutions in enumerate(STAGES):
            for channels, kernel in convolutions:
                after = scaled(channels, width)
                conv = QuantConv2d(before, after, kernel, padding=kernel // 2, bias=False, **options)
                layers[f"norm{index}"] = nn.BatchNorm2d(before)
                layers[f"leaky{index}"] = nn.Identity() if bends(conv) else nn.LeakyReLU(SLOPE)
                layers[f"conv{index}"] = conv
                before = after
                index += 1
            if stage < len(STAGES) - 1:
                layers[f"pool{index - 1}"] = nn.MaxPool2d(2)
        layers[f"norm{index}"] = nn.BatchNorm2d(before)
        layers[f"leaky{index}"] = nn.LeakyReLU(SLOPE)
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["linear"] = nn.Linear(before, num_classes)
        super().__init__(layers)
        self.input_shape = (in_channels, 224, 224)
