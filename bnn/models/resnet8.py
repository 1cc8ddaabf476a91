"""ResNet-8: the image classifier of MLPerf Tiny."""

from typing import Unpack

from torch import Tensor, nn

from bnn.layers import QuantConv2d
from bnn.models.first_layer import StemKind, first_layers
from bnn.models.options import LayerOptions, rectifier, scaled
from bnn.models.stem import head
from bnn.pixels import Pixels


class ResNet8Block(nn.Module):
    """quantize - 3x3 convolution - BN - quantize - 3x3 convolution - BN, and a shortcut around both.

    Where the shape changes the shortcut is a 1x1 convolution without BN. Where the input is not quantized, a ReLU
    stands in the quantizer's place. Input (N, before, H, W), output (N, after, H / stride, W / stride).
    """

    def __init__(self, before: int, after: int, stride: int, quantize_shortcuts: bool, options: LayerOptions):
        super().__init__()
        self.conv1 = QuantConv2d(before, after, 3, stride, 1, **options)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = QuantConv2d(after, after, 3, 1, 1, **options)
        self.relu = rectifier(self.conv2)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if before != after or stride != 1:
            own: LayerOptions = options if quantize_shortcuts else {}
            self.shortcut = QuantConv2d(before, after, 1, stride, **own)
        self.activation = rectifier(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        """Return activation(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x))."""
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.activation(y + self.shortcut(x))


class ResNet8(nn.Module):
    """ResNet-8 for 32x32 images: three blocks of two convolutions; the first convolution and the linear layer in FP32.

    | layer                 | output for 32x32 | quantized |
    |-----------------------|------------------|-----------|
    | 16C3 - BN [- ReLU]    | 16x32x32         |           |
    | block of 2 x 16C3     | 16x32x32         | yes       |
    | block of 2 x 32C3, /2 | 32x16x16         | yes       |
    | block of 2 x 64C3, /2 | 64x8x8           | yes       |
    | global average - 10   | 10               |           |

    Banbury et al., "MLPerf Tiny Benchmark", 2021, section 4, and mlcommons/tiny. 78,186 parameters, with the running
    statistics of batch norm the reference's 78,666; 12.5 M multiply-accumulates. A ReLU stands where the next input is
    not quantized. The reference pads maps of stride 2 on one side only; here padding is the same on all sides.

    Input (N, in_channels, H, W), 32x32 meant; output (N, num_classes).
    stem, pixels: see `bnn.models`.
    quantize_shortcuts: also the two 1x1 convolutions of shortcuts.
    width: factor on all inner numbers of channels. options: see LayerOptions.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        stem: StemKind = "fp32",
        pixels: Pixels | bool = False,
        quantize_shortcuts: bool = True,
        width: float = 1.0,
        **options: Unpack[LayerOptions],
    ):
        super().__init__()
        self.input_shape = (in_channels, 32, 32)
        before = scaled(16, width)
        layers = first_layers("conv", in_channels, before, 3, stem, pixels, padding=1)
        layers["norm"] = nn.BatchNorm2d(before)
        blocks = []
        for channels in (16, 32, 64):
            after = scaled(channels, width)
            stride = 1 if channels == 16 else 2
            blocks.append(ResNet8Block(before, after, stride, quantize_shortcuts, options))
            before = after
        layers["activation"] = rectifier(blocks[0].conv1)
        self.stem = nn.Sequential(layers)
        self.blocks = nn.Sequential(*blocks)
        self.head = head(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        return self.head(self.blocks(self.stem(x)))
