"""BinaryDenseNet-28: maps are kept and added to, so that no real number is lost to a sign."""

from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from bnn.layers import QuantConv2d
from bnn.models.first_layer import StemKind
from bnn.models.options import LayerOptions, rectifier, scaled
from bnn.models.stem import Layout, head, input_shape, stem_layers
from bnn.pixels import Pixels

# Dense layers of the four stages, and the channels of the 1x1 convolutions between them: a 2.7th, 2.7th and 2.2nd of
# those before, in multiples of 32.
LAYERS = (6, 6, 6, 5)
TRANSITIONS = (160, 192, 256)
GROWTH = 64


class DenseLayer(nn.Module):
    """BN - quantize - 3x3 convolution, whose output is appended to the input as `growth` new channels.

    Input (N, C, H, W), output (N, C + growth, H, W).
    """

    def __init__(self, before: int, growth: int, options: LayerOptions):
        super().__init__()
        self.norm = nn.BatchNorm2d(before)
        self.conv = QuantConv2d(before, growth, 3, 1, 1, bias=False, **options)
        self.relu = rectifier(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input and the new channels."""
        return torch.cat((x, self.conv(self.relu(self.norm(x)))), 1)


def dense_stages(
    channels: int,
    counts: Sequence[int],
    transitions: Sequence[int],
    growth: int,
    layers: Callable[[int], list[nn.Module]],
) -> tuple[nn.Sequential, int]:
    """Return dense stages with BN - MP2 - ReLU - 1x1 convolution between them and BN - ReLU behind, and their channels.

    channels: of the input. counts: how often each stage adds `growth` channels, by the modules that `layers` makes for
    a number of channels. transitions: output channels of the 1x1 convolutions, one fewer than stages.
    """
    modules: list[nn.Module] = []
    for count, after in zip(counts, (*transitions, None), strict=True):
        for _ in range(count):
            modules += layers(channels)
            channels += growth
        modules.append(nn.BatchNorm2d(channels))
        if after is None:
            modules.append(nn.ReLU())
        else:
            modules += [nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(channels, after, 1, bias=False)]
            channels = after
    return nn.Sequential(*modules), channels


class BinaryDenseNet28(nn.Module):
    """BinaryDenseNet-28: 23 dense layers of 64 new channels; first, last and 1x1 layers in FP32.

    | layer                                  | output for 224x224 | quantized |
    |----------------------------------------|--------------------|-----------|
    | 64C7/2 - BN - ReLU - MP3/2             | 64x56x56           |           |
    | 6 dense layers of 64C3                 | 448x56x56          | yes       |
    | BN - MP2 - ReLU - 160C1                | 160x28x28          |           |
    | 6 dense layers of 64C3                 | 544x28x28          | yes       |
    | BN - MP2 - ReLU - 192C1                | 192x14x14          |           |
    | 6 dense layers of 64C3                 | 576x14x14          | yes       |
    | BN - MP2 - ReLU - 256C1                | 256x7x7            |           |
    | 5 dense layers of 64C3                 | 576x7x7            | yes       |
    | BN - ReLU - global average - 1000      | 1000               |           |

    Bethge et al., "Back to Simplicity: How to Train Accurate BNNs from Scratch?", 2019, section 4, and larq zoo's
    BinaryDenseNet28, which counts 5,150,504 parameters with the running statistics of batch norm. In the paper: signs
    without scales, SteSign with clip 1.3. Where the input is not quantized a ReLU stands in the quantizer's place.

    Input (N, in_channels, H, W) with H and W multiples of 32 (layout "cifar": of 8), output (N, num_classes).
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
        channels, growth = scaled(64, width), scaled(GROWTH, width)
        self.stem = stem_layers(layout, in_channels, channels, True, stem, pixels)
        transitions = [scaled(after, width) for after in TRANSITIONS]
        self.stages, channels = dense_stages(
            channels, LAYERS, transitions, growth, lambda before: [DenseLayer(before, growth, options)]
        )
        self.head = head(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        return self.head(self.stages(self.stem(x)))
