"""QuickNet: larq's binary network for fast inference."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Unpack

from torch import Tensor, nn

from bnn.layers import QuantConv2d
from bnn.models.first_layer import StemKind, first_layers
from bnn.models.options import LayerOptions, scaled
from bnn.models.stem import head
from bnn.pixels import Pixels


class QuickNetBlock(nn.Module):
    """quantize - 3x3 convolution - ReLU - BN, and a shortcut around them. Input and output (N, C, H, W)."""

    def __init__(self, channels: int, options: LayerOptions):
        super().__init__()
        self.conv = QuantConv2d(channels, channels, 3, 1, 1, bias=False, **options)
        self.relu = nn.ReLU()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return norm(relu(conv(x))) + x."""
        return self.norm(self.relu(self.conv(x))) + x


def _transition(before: int, after: int) -> list[nn.Module]:
    """Return what halves a map between stages: ReLU - max pooling - blur of stride 2 - 1x1 convolution - BN.

    The blur, a 3x3 filter [1 2 1] x [1 2 1] / 16, is two average poolings of 2x2 behind each other.
    """
    return [
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.AvgPool2d(2, 1, 1),
        nn.AvgPool2d(2, 2),
        nn.Conv2d(before, after, 1, bias=False),
        nn.BatchNorm2d(after),
    ]


class QuickNet(nn.Module):
    """QuickNet: 16 residual convolutions; stem, 1x1 and last layers in FP32.

    | layer                                  | output for 224x224 | quantized |
    |----------------------------------------|--------------------|-----------|
    | 16C3/2 - BN - ReLU, 16C3/2 depthwise - BN, 64C1 - BN | 64x56x56 |       |
    | 4 blocks of 64C3                       | 64x56x56           | yes       |
    | ReLU - MP2/1 - blur/2 - 128C1 - BN     | 128x28x28          |           |
    | 4 blocks of 128C3                      | 128x28x28          | yes       |
    | ReLU - MP2/1 - blur/2 - 256C1 - BN     | 256x14x14          |           |
    | 4 blocks of 256C3                      | 256x14x14          | yes       |
    | ReLU - MP2/1 - blur/2 - 512C1 - BN     | 512x7x7            |           |
    | 4 blocks of 512C3                      | 512x7x7            | yes       |
    | ReLU - global average - 1000           | 1000               |           |

    Bannink et al., "Larq Compute Engine", 2021, section 5, and larq zoo 2: its count of 13,234,088 parameters holds
    the 4,032 constants of the blurs and 32 statistics of the norm without parameters. There: signs without scales,
    SteSign with clip 1.25, maps padded with +1 (the default of `pad_value` here). QuickNetSmall has
    channels=(32, 64, 256, 512), QuickNetLarge blocks=(6, 8, 12, 6).

    Input (N, in_channels, H, W) with H and W multiples of 32, output (N, num_classes).
    blocks, channels: of each stage. stem, pixels: see `bnn.models`; of the first of the stem's three convolutions.
    width: factor on all inner numbers of channels. options: see LayerOptions.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        blocks: Sequence[int] = (4, 4, 4, 4),
        channels: Sequence[int] = (64, 128, 256, 512),
        stem: StemKind = "fp32",
        pixels: Pixels | bool = False,
        width: float = 1.0,
        **options: Unpack[LayerOptions],
    ):
        super().__init__()
        if len(blocks) != len(channels):
            raise ValueError(f"blocks and channels must be of one length, got {len(blocks)} and {len(channels)} stages")
        self.input_shape = (in_channels, 224, 224)
        options = {"pad_value": 1, **options}
        widths = [scaled(c, width) for c in channels]
        narrow = max(1, widths[0] // 4)
        layers = first_layers("conv1", in_channels, narrow, 3, stem, pixels, stride=2, padding=1, bias=False)
        layers |= OrderedDict(
            norm1=nn.BatchNorm2d(narrow),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(narrow, narrow, 3, 2, 1, groups=narrow, bias=False),
            norm2=nn.BatchNorm2d(narrow, affine=False),
            conv3=nn.Conv2d(narrow, widths[0], 1, bias=False),
            norm3=nn.BatchNorm2d(widths[0]),
        )
        self.stem = nn.Sequential(layers)
        stages: list[nn.Module] = []
        before = widths[0]
        for stage, (count, after) in enumerate(zip(blocks, widths, strict=True)):
            if stage > 0:
                stages += _transition(before, after)
            stages += [QuickNetBlock(after, options) for _ in range(count)]
            before = after
        self.stages = nn.Sequential(*stages)
        self.relu = nn.ReLU()
        self.head = head(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        return self.head(self.relu(self.stages(self.stem(x))))
