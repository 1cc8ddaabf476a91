"""ResNetE-18: a binary ResNet-18 without scales, as simple as it trains well."""

from typing import Unpack

from torch import Tensor, nn

from bnn.models.birealnet18 import bireal_stages
from bnn.models.first_layer import StemKind
from bnn.models.options import LayerOptions, scaled
from bnn.models.stem import Layout, head, input_shape, stem_layers
from bnn.pixels import Pixels


class ResNetE18(nn.Module):
    """ResNetE-18: a shortcut around every 3x3 convolution; first, last and 1x1 layers in FP32.

    | layer                             | output for 224x224 (layout "imagenet") | for 32x32 ("cifar") | quantized     |
    |-----------------------------------|----------------------------------------|---------------------|---------------|
    | 64C7/2 - BN - ReLU - MP3/2 - BN, or 64C3 | 64x56x56                        | 64x32x32            |               |
    | 4 blocks of 64C3                  | 64x56x56                               | 64x32x32            | yes           |
    | 4 blocks of 128C3, /2             | 128x28x28                              | 128x16x16           | all but 128C1 |
    | 4 blocks of 256C3, /2             | 256x14x14                              | 256x8x8             | all but 256C1 |
    | 4 blocks of 512C3, /2             | 512x7x7                                | 512x4x4             | all but 512C1 |
    | ReLU - global average - 1000      | 1000                                   | 10                  |               |

    Bethge et al., "Back to Simplicity: How to Train Accurate BNNs from Scratch?", 2019, section 3, and larq zoo's
    BinaryResNetE18, which counts 11,699,368 parameters with the running statistics of batch norm. In the paper: signs
    without scales, input_quantizer and weight_quantizer SteSign with clip 1.25 (larq zoo) or 1.3.
    Where the input is not quantized a ReLU stands in the quantizer's place.

    Input (N, in_channels, H, W) with even maps before each stage, output (N, num_classes).
    layout: "imagenet" or "cifar". stem, pixels: see `bnn.models`.
    width: factor on all inner numbers of channels. options: see LayerOptions.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        layout: Layout = "imagenet",
        stem: StemKind = "fp32",
        pixels: Pixels | bool = False,
        width: float = 1.0,
        **options: Unpack[LayerOptions],
    ):
        super().__init__()
        self.input_shape = input_shape(layout, in_channels)
        before = scaled(64, width)
        self.stem = stem_layers(layout, in_channels, before, layout == "imagenet", stem, pixels)
        if layout == "imagenet":
            self.stem.add_module("norm2", nn.BatchNorm2d(before))
        self.stages, before = bireal_stages(before, width, options)
        self.relu = nn.ReLU()
        self.head = head(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        return self.head(self.relu(self.stages(self.stem(x))))
