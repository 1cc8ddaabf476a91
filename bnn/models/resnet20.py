"""ResNet-20 for 32x32 images with a shortcut around every convolution."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from bnn.layers import QuantConv2d
from bnn.models.first_layer import StemKind, first_layers
from bnn.models.options import LayerOptions, scaled
from bnn.pixels import Pixels


class ShortcutA(nn.Module):
    """Shortcut of type A: every `stride`-th pixel, and zero channels put around to make them more.

    He et al., "Deep Residual Learning", 2016, section 3.3. It has no parameters.
    Input (N, before, H, W), output (N, after, ceil(H / stride), ceil(W / stride)); the first of the new channels is
    half of those added, rounded down.
    """

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        if after < before:
            raise ValueError(f"a shortcut of type A adds channels, it cannot make {after} of {before}")
        self.pick = nn.MaxPool2d(1, stride)  # a window of one pixel: picks
        self.before = (after - before) // 2
        self.behind = after - before - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Return the shortcut's map."""
        return F.pad(self.pick(x), (0, 0, 0, 0, self.before, self.behind))


class ResNet20Block(nn.Module):
    """Two times quantize - 3x3 convolution - BN - add the block's input so far - activation.

    Input (N, before, H, W), output (N, after, H / stride, W / stride).
    """

    def __init__(
        self, before: int, after: int, stride: int, activation: Callable[[], nn.Module], options: LayerOptions
    ):
        super().__init__()
        self.conv1 = QuantConv2d(before, after, 3, stride, 1, bias=False, **options)
        self.norm1 = nn.BatchNorm2d(after)
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else ShortcutA(before, after, stride)
        self.activation1 = activation()
        self.conv2 = QuantConv2d(after, after, 3, 1, 1, bias=False, **options)
        self.norm2 = nn.BatchNorm2d(after)
        self.activation2 = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map."""
        x = self.activation1(self.norm1(self.conv1(x)) + self.shortcut(x))
        return self.activation2(self.norm2(self.conv2(x)) + x)


class ResNet20(nn.Module):
    """IR-Net's ResNet-20 for CIFAR-10; the first convolution and the linear layer in FP32.

    | layer                              | output for 32x32 | quantized |
    |------------------------------------|------------------|-----------|
    | 16C3 - BN - Hardtanh               | 16x32x32         |           |
    | 3 blocks of 2 x 16C3               | 16x32x32         | yes       |
    | 3 blocks of 2 x 32C3, /2           | 32x16x16         | yes       |
    | 3 blocks of 2 x 64C3, /2           | 64x8x8           | yes       |
    | global average - BN - 10           | 10               |           |

    Qin et al., "IR-Net", 2020, and htqin/IR-Net: a shortcut around every convolution, type A where the shape changes,
    Hardtanh behind each sum, batch norm before the linear layer. 0.27 M parameters: 269,850.

    Input (N, in_channels, H, W), 32x32 meant; output (N, num_classes).
    stem, pixels: see `bnn.models`.
    activation: factory of what follows each sum. width: factor on all inner numbers of channels. options: see
    LayerOptions.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        stem: StemKind = "fp32",
        pixels: Pixels | bool = False,
        activation: Callable[[], nn.Module] = nn.Hardtanh,
        width: float = 1.0,
        **options: Unpack[LayerOptions],
    ):
        super().__init__()
        self.input_shape = (in_channels, 32, 32)
        before = scaled(16, width)
        first = first_layers("conv1", in_channels, before, 3, stem, pixels, padding=1, bias=False)
        self.pixels = first.get("pixels", nn.Identity())
        self.conv1 = first["conv1"]
        self.norm1 = nn.BatchNorm2d(before)
        self.activation1 = activation()
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        for stage, channels in enumerate((16, 32, 64), start=1):
            after = scaled(channels, width)
            blocks = [ResNet20Block(before, after, 1 if stage == 1 else 2, activation, options)]
            blocks += [ResNet20Block(after, after, 1, activation, options) for _ in range(2)]
            stages[f"stage{stage}"] = nn.Sequential(*blocks)
            before = after
        self.stages = nn.Sequential(stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.norm2 = nn.BatchNorm1d(before)
        self.linear = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        x = self.activation1(self.norm1(self.conv1(self.pixels(x))))
        x = self.pool(self.stages(x))
        return self.linear(self.norm2(self.flatten(x)))
