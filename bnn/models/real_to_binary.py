"""The Real-to-Binary network: a binary ResNet-18 whose convolutions are scaled by what their input tells."""

from collections import OrderedDict
from typing import Unpack

from torch import Tensor, nn

from bnn.layers import QuantConv2d
from bnn.models.first_layer import StemKind
from bnn.models.options import LayerOptions, bends, scaled
from bnn.models.stem import Layout, head, input_shape, stem_layers
from bnn.pixels import Pixels


class ChannelGate(nn.Module):
    """G(x) = sigmoid(W2 relu(W1 mean(x))), a scale for each output channel from the means of the input's channels.

    Martinez et al. 2020, section 4.3: squeeze and excitation with `reduction` r. Input (N, before, H, W), output
    (N, after, 1, 1).
    """

    def __init__(self, before: int, after: int, reduction: int):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.reduce = nn.Linear(before, max(1, before // reduction), bias=False)
        self.relu = nn.ReLU()
        self.expand = nn.Linear(max(1, before // reduction), after, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Return the scales."""
        scales = self.sigmoid(self.expand(self.relu(self.reduce(self.flatten(self.pool(x))))))
        return scales.unsqueeze(-1).unsqueeze(-1)


class RealToBinaryUnit(nn.Module):
    """BN - quantize - 3x3 convolution - times G of what the quantizer was given - PReLU, and a shortcut around them.

    Where the shape changes the shortcut is 2x2 average pooling, 1x1 convolution in FP32 and BN. Where the input is not
    quantized a tanh stands in the quantizer's place.
    Input (N, before, H, W), output (N, after, H / stride, W / stride).
    """

    def __init__(self, before: int, after: int, stride: int, reduction: int, options: LayerOptions):
        super().__init__()
        self.norm = nn.BatchNorm2d(before)
        self.conv = QuantConv2d(before, after, 3, stride, 1, bias=False, **options)
        self.tanh = nn.Identity() if bends(self.conv) else nn.Tanh()
        self.gate = ChannelGate(before, after, reduction)
        self.prelu = nn.PReLU(after)
        self.shortcut: nn.Module = nn.Identity()
        if before != after or stride != 1:
            pool = nn.AvgPool2d(2, stride) if stride != 1 else nn.Identity()
            self.shortcut = nn.Sequential(pool, nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's map."""
        normalized = self.norm(x)
        return self.prelu(self.conv(self.tanh(normalized)) * self.gate(normalized)) + self.shortcut(x)


class RealToBinaryNet(nn.Module):
    """Real-to-Binary ResNet-18: every 3x3 convolution has a shortcut and data-dependent scales.

    | layer                        | output for 224x224 (layout "imagenet") | for 32x32 ("cifar") | quantized     |
    |------------------------------|----------------------------------------|---------------------|---------------|
    | 64C7/2 - BN - PReLU - MP3/2, or 64C3 - BN - PReLU | 64x56x56          | 64x32x32            |               |
    | 2 blocks of 2 units of 64C3  | 64x56x56                               | 64x32x32            | yes           |
    | 2 blocks of 2 units of 128C3, /2 | 128x28x28                          | 128x16x16           | all but 128C1 |
    | 2 blocks of 2 units of 256C3, /2 | 256x14x14                          | 256x8x8             | all but 256C1 |
    | 2 blocks of 2 units of 512C3, /2 | 512x7x7                            | 512x4x4             | all but 512C1 |
    | global average - 1000        | 1000                                   | 10                  |               |

    Martinez et al., "Training Binary Neural Networks with Real-to-Binary Convolutions", ICLR 2020, sections 4.1 and
    4.3, and larq zoo's RealToBinaryNet, which counts 11,995,624 parameters with the running statistics of batch norm.
    The gates stay in FP32. The blocks, where attention maps are matched, are the modules "blocks.0" to "blocks.7".
    In the paper: signs without scales.

    Input (N, in_channels, H, W) with even maps before each stage, output (N, num_classes).
    layout: "imagenet" or "cifar". stem, pixels: see `bnn.models`.
    reduction: r of the gates. width: factor on all inner numbers of channels. options: see LayerOptions.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        layout: Layout = "imagenet",
        reduction: int = 8,
        stem: StemKind = "fp32",
        pixels: Pixels | bool = False,
        width: float = 1.0,
        **options: Unpack[LayerOptions],
    ):
        super().__init__()
        self.input_shape = input_shape(layout, in_channels)
        before = scaled(64, width)
        layers = OrderedDict(stem_layers(layout, in_channels, before, True, stem, pixels).named_children())
        layers["relu"] = nn.PReLU(before)
        self.stem = nn.Sequential(layers)
        blocks: list[nn.Module] = []
        for stage, channels in enumerate((64, 128, 256, 512)):
            after = scaled(channels, width)
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                first = RealToBinaryUnit(before, after, stride, reduction, options)
                second = RealToBinaryUnit(after, after, 1, reduction, options)
                blocks.append(nn.Sequential(OrderedDict(unit1=first, unit2=second)))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.head = head(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        return self.head(self.blocks(self.stem(x)))
