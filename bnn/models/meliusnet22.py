"""MeliusNet-22: dense blocks that append channels, and improvement blocks that correct the last ones."""

from collections import OrderedDict
from typing import Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from bnn.layers import QuantConv2d
from bnn.models.binary_densenet28 import DenseLayer, dense_stages
from bnn.models.first_layer import StemKind, first_layers
from bnn.models.options import LayerOptions, rectifier, scaled
from bnn.models.stem import head
from bnn.pixels import Pixels

# Pairs of a dense and an improvement block in the four stages, and the channels of the 1x1 convolutions between them.
BLOCKS = (4, 5, 4, 4)
TRANSITIONS = (160, 224, 256)
GROWTH = 64


class ImprovementBlock(nn.Module):
    """BN - quantize - 3x3 convolution, whose output is added to the last `growth` channels of the input.

    Input and output (N, C, H, W), C at least growth.
    """

    def __init__(self, channels: int, growth: int, options: LayerOptions):
        super().__init__()
        self.untouched = channels - growth
        self.norm = nn.BatchNorm2d(channels)
        self.conv = QuantConv2d(channels, growth, 3, 1, 1, bias=False, **options)
        self.relu = rectifier(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input with its last channels improved."""
        return x + F.pad(self.conv(self.relu(self.norm(x))), (0, 0, 0, 0, self.untouched, 0))


class MeliusNet22(nn.Module):
    """MeliusNet-22: 17 pairs of a dense and an improvement block; stem, 1x1 and last layers in FP32.

    | layer                                                  | output for 224x224 | quantized |
    |--------------------------------------------------------|--------------------|-----------|
    | 32C3/2, 32C3 of 4 groups, 64C3 of 8 groups, each BN - ReLU; MP2 | 64x56x56  |           |
    | 4 pairs of blocks of 64C3                              | 320x56x56          | yes       |
    | BN - MP2 - ReLU - 160C1                                | 160x28x28          |           |
    | 5 pairs of blocks of 64C3                              | 480x28x28          | yes       |
    | BN - MP2 - ReLU - 224C1                                | 224x14x14          |           |
    | 4 pairs of blocks of 64C3                              | 480x14x14          | yes       |
    | BN - MP2 - ReLU - 256C1                                | 256x7x7            |           |
    | 4 pairs of blocks of 64C3                              | 512x7x7            | yes       |
    | BN - ReLU - global average - 1000                      | 1000               |           |

    Bethge et al., "MeliusNet: Can Binary Neural Networks Achieve MobileNet-level Accuracy?", 2020, section 3, and larq
    zoo's MeliusNet22: 6,944,584 parameters. 2.08e8 operations (binary ones / 64 and the others). In the paper: signs
    without scales, SteSign with clip 1.3. Where the input is not quantized a ReLU stands in the quantizer's place.

    Input (N, in_channels, H, W) with H and W multiples of 32, output (N, num_classes).
    stem, pixels: see `bnn.models`; of the first of the stem's three convolutions.
    width: factor on all inner numbers of channels; those of the stem stay multiples of its groups. options: see
    LayerOptions.
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
        super().__init__()
        self.input_shape = (in_channels, 224, 224)
        growth = scaled(GROWTH, width)
        narrow, channels = (8 * scaled(c // 8, width) for c in (32, 64))
        layers = first_layers("conv1", in_channels, narrow, 3, stem, pixels, stride=2, padding=1, bias=False)
        layers |= OrderedDict(
            norm1=nn.BatchNorm2d(narrow),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(narrow, narrow, 3, padding=1, groups=4, bias=False),
            norm2=nn.BatchNorm2d(narrow),
            relu2=nn.ReLU(),
            conv3=nn.Conv2d(narrow, channels, 3, padding=1, groups=8, bias=False),
            norm3=nn.BatchNorm2d(channels),
            relu3=nn.ReLU(),
            pool=nn.MaxPool2d(2),
        )
        self.stem = nn.Sequential(layers)
        transitions = [scaled(after, width) for after in TRANSITIONS]
        self.stages, channels = dense_stages(
            channels,
            BLOCKS,
            transitions,
            growth,
            lambda before: [DenseLayer(before, growth, options), ImprovementBlock(before + growth, growth, options)],
        )
        self.head = head(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        return self.head(self.stages(self.stem(x)))
