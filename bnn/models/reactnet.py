"""ReActNet-A: a binary MobileNet."""

from collections import OrderedDict
from typing import Unpack

import torch
from torch import Tensor, nn

from bnn.layers import QuantConv2d, RPReLU
from bnn.models.first_layer import StemKind, first_layers
from bnn.models.options import LayerOptions, scaled
from bnn.models.stem import head
from bnn.pixels import Pixels

# Output channels of the blocks; a block whose number differs from the one before has stride 2, but for the first.
CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)


class ReActBlock(nn.Module):
    """quantize - 3x3 conv - BN - add - RPReLU, then quantize - 1x1 conv - BN - add - RPReLU.

    Where the size changes the first shortcut is 2x2 average pooling. Where channels double, the second shortcut is the
    map twice: the authors' two 1x1 convolutions beside each other are one with twice the filters here.
    Input (N, before, H, W), output (N, after, H / stride, W / stride), after = before or 2 * before.
    """

    def __init__(self, before: int, after: int, stride: int, options: LayerOptions):
        super().__init__()
        if after not in (before, 2 * before):
            raise ValueError(f"a block keeps or doubles its channels, it cannot make {after} of {before}")
        self.doubles = after != before
        self.conv1 = QuantConv2d(before, before, 3, stride, 1, bias=False, **options)
        self.norm1 = nn.BatchNorm2d(before)
        self.shortcut1 = nn.AvgPool2d(2, 2) if stride == 2 else nn.Identity()
        self.activation1 = RPReLU(before)
        self.conv2 = QuantConv2d(before, after, 1, bias=False, **options)
        self.norm2 = nn.BatchNorm2d(after)
        self.activation2 = RPReLU(after)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map."""
        x = self.activation1(self.norm1(self.conv1(x)) + self.shortcut1(x))
        shortcut = torch.cat((x, x), 1) if self.doubles else x
        return self.activation2(self.norm2(self.conv2(x)) + shortcut)


class ReActNetA(nn.Module):
    """ReActNet-A: MobileNetV1's shape with plain binary convolutions, a shortcut around each, and RPReLU.

    | layer                                 | output for 224x224 | quantized |
    |---------------------------------------|--------------------|-----------|
    | 32C3/2 - BN                           | 32x112x112         |           |
    | block 64                              | 64x112x112         | yes       |
    | blocks 128/2, 128                     | 128x56x56          | yes       |
    | blocks 256/2, 256                     | 256x28x28          | yes       |
    | blocks 512/2, 512, 512, 512, 512, 512 | 512x14x14          | yes       |
    | blocks 1024/2, 1024                   | 1024x7x7           | yes       |
    | global average - 1000                 | 1000               |           |

    Liu et al., "ReActNet", ECCV 2020, section 4.1, figure 3, and the authors' code. 0.87e8 operations (binary ones / 64
    and the others). In the paper: input_quantizer=RSign and weights with a scale a filter; teacher and schedule are
    the training's.

    Input (N, in_channels, H, W), H and W multiples of 32; output (N, num_classes).
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
        super().__init__()
        self.input_shape = (in_channels, 224, 224)
        first = before = scaled(32, width)
        layers = first_layers("conv", in_channels, before, 3, stem, pixels, stride=2, padding=1, bias=False)
        self.stem = nn.Sequential(layers | OrderedDict(norm=nn.BatchNorm2d(before)))
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        for index, channels in enumerate(CHANNELS, start=1):
            after = first * (channels // 32)
            stride = 2 if after != before and index > 1 else 1
            blocks[f"block{index}"] = ReActBlock(before, after, stride, options)
            before = after
        self.blocks = nn.Sequential(blocks)
        self.head = head(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        return self.head(self.blocks(self.stem(x)))
