"""Bi-Real Net with 18 layers."""

from collections import OrderedDict
from typing import Unpack

from torch import Tensor, nn

from bnn.layers import QuantConv2d
from bnn.models.first_layer import StemKind
from bnn.models.options import LayerOptions, rectifier, scaled
from bnn.models.stem import Layout, head, input_shape, layout_and_stem, stem_layers
from bnn.pixels import Pixels


class BiRealBlock(nn.Module):
    """quantize - 3x3 convolution - BN, and a shortcut around them that stays real.

    Where the shape changes the shortcut is 2x2 average pooling, 1x1 convolution in FP32 and BN.
    Input (N, before, H, W), output (N, after, H / stride, W / stride).
    """

    def __init__(self, before: int, after: int, stride: int, options: LayerOptions):
        super().__init__()
        conv = QuantConv2d(before, after, 3, stride, 1, bias=False, **options)
        self.relu = rectifier(conv)
        self.conv = conv
        self.norm = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if before != after or stride != 1:
            pool = nn.AvgPool2d(2, stride) if stride != 1 else nn.Identity()
            self.shortcut = nn.Sequential(pool, nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Return norm(conv(x)) + shortcut(x)."""
        return self.norm(self.conv(self.relu(x))) + self.shortcut(x)


def bireal_stages(before: int, width: float, options: LayerOptions) -> tuple[nn.Sequential, int]:
    """Return four stages of four blocks each, 64 to 512 channels times `width`, and their output channels.

    before: channels of the input. Each stage but the first halves height and width.
    """
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for stage, channels in enumerate((64, 128, 256, 512), start=1):
        after = scaled(channels, width)
        blocks = [BiRealBlock(before, after, 1 if stage == 1 else 2, options)]
        blocks += [BiRealBlock(after, after, 1, options) for _ in range(3)]
        stages[f"stage{stage}"] = nn.Sequential(*blocks)
        before = after
    return nn.Sequential(stages), before


class BiRealNet18(nn.Module):
    """Bi-Real Net-18: ResNet-18 with a shortcut around every 3x3 convolution; first, last and 1x1 layers in FP32.

    | layer                      | output for 224x224 (stem "imagenet") | for 32x32 ("cifar") | quantized     |
    |----------------------------|--------------------------------------|---------------------|---------------|
    | 64C7/2 - BN - MP3/2, or 64C3 - BN | 64x56x56                      | 64x32x32            |               |
    | 4 blocks of 64C3           | 64x56x56                             | 64x32x32            | yes           |
    | 4 blocks of 128C3, /2      | 128x28x28                            | 128x16x16           | all but 128C1 |
    | 4 blocks of 256C3, /2      | 256x14x14                            | 256x8x8             | all but 256C1 |
    | 4 blocks of 512C3, /2      | 512x7x7                              | 512x4x4             | all but 512C1 |
    | global average - 1000      | 1000                                 | 10                  |               |

    Liu et al., "Bi-Real Net", 2018, sections 3.1 and 3.3 and the authors' PyTorch code. 11,689,512 parameters, those
    of ResNet-18. In the paper's own training: input_quantizer=ApproxSign and magnitude-aware weights.
    Where the input is not quantized (the FP32 twin, BWN) a ReLU stands in the quantizer's place.

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
        stem: StemKind | Layout = "fp32",
        pixels: Pixels | bool = False,
        width: float = 1.0,
        **options: Unpack[LayerOptions],
    ):
        super().__init__()
        layout, stem = layout_and_stem(layout, stem)
        self.input_shape = input_shape(layout, in_channels)
        before = scaled(64, width)
        self.stem = stem_layers(layout, in_channels, before, False, stem, pixels)
        self.stages, before = bireal_stages(before, width, options)
        self.head = head(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        return self.head(self.stages(self.stem(x)))
