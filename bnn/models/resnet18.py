"""ResNet-18 in XNOR-Net's block order."""

from collections import OrderedDict
from typing import Unpack

from torch import Tensor, nn

from bnn.layers import QuantConv2d
from bnn.models.first_layer import StemKind
from bnn.models.options import LayerOptions, rectifier, scaled
from bnn.models.stem import Layout, head, input_shape, layout_and_stem, stem_layers
from bnn.pixels import Pixels


class _Unit(nn.Sequential):
    """BN - quantize - 3x3 or 1x1 convolution."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, options: LayerOptions):
        conv = QuantConv2d(before, after, kernel, stride, kernel // 2, bias=False, **options)
        super().__init__()
        self.norm = nn.BatchNorm2d(before)
        self.relu = rectifier(conv)
        self.conv = conv


class XnorBlock(nn.Module):
    """Two units BN - quantize - 3x3 convolution and a shortcut around both.

    Where the shape changes the shortcut is a 1x1 convolution (type B of He et al. 2016): quantized, as a unit of its
    own, or in FP32 with BN behind it. Input (N, before, H, W), output (N, after, H / stride, W / stride).
    """

    def __init__(self, before: int, after: int, stride: int, quantize_shortcuts: bool, options: LayerOptions):
        super().__init__()
        self.unit1 = _Unit(before, after, 3, stride, options)
        self.unit2 = _Unit(after, after, 3, 1, options)
        if before == after and stride == 1:
            self.shortcut: nn.Module = nn.Identity()
        elif quantize_shortcuts:
            self.shortcut = _Unit(before, after, 1, stride, options)
        else:
            conv = nn.Conv2d(before, after, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Return unit2(unit1(x)) + shortcut(x)."""
        return self.unit2(self.unit1(x)) + self.shortcut(x)


class ResNet18(nn.Module):
    """XNOR-Net's ResNet-18: pre-activation blocks BN - quantize - conv; the first and the last layer in FP32.

    | layer                        | output for 224x224 (layout "imagenet") | for 32x32 ("cifar") | quantized |
    |------------------------------|--------------------------------------|---------------------|-----------|
    | 64C7/2 - BN - ReLU - MP3/2, or 64C3 | 64x56x56                      | 64x32x32            |           |
    | 2 blocks of 2 x 64C3         | 64x56x56                             | 64x32x32            | yes       |
    | 2 blocks of 2 x 128C3, /2    | 128x28x28                            | 128x16x16           | yes       |
    | 2 blocks of 2 x 256C3, /2    | 256x14x14                            | 256x8x8             | yes       |
    | 2 blocks of 2 x 512C3, /2    | 512x7x7                              | 512x4x4             | yes       |
    | BN - ReLU - global average - 1000 | 1000                            | 10                  |           |

    Rastegari et al., "XNOR-Net", 2016, section 4.3: shortcuts of type B, every convolution but the first in the order
    BN - quantize - convolution (the authors published no code for it). Weights and biases of convolutions and linear
    layer are those of the usual ResNet-18, 11,679,912; batch norms stand before the convolutions and are fewer.
    Where the input is not quantized (the FP32 twin, BWN) a ReLU stands in the quantizer's place.

    Input (N, in_channels, H, W), output (N, num_classes).
    layout: "imagenet" or "cifar". stem, pixels: see `bnn.models`.
    quantize_shortcuts: also the three 1x1 convolutions of shortcuts (the paper excepts only the first and the last
        layer); False keeps them FP32, as later work does.
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
        quantize_shortcuts: bool = True,
        width: float = 1.0,
        **options: Unpack[LayerOptions],
    ):
        super().__init__()
        layout, stem = layout_and_stem(layout, stem)
        self.input_shape = input_shape(layout, in_channels)
        before = scaled(64, width)
        self.stem = stem_layers(layout, in_channels, before, True, stem, pixels)
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        for stage, channels in enumerate((64, 128, 256, 512), start=1):
            after = scaled(channels, width)
            first = XnorBlock(before, after, 1 if stage == 1 else 2, quantize_shortcuts, options)
            second = XnorBlock(after, after, 1, quantize_shortcuts, options)
            stages[f"stage{stage}"] = nn.Sequential(first, second)
            before = after
        self.stages = nn.Sequential(stages)
        self.norm = nn.BatchNorm2d(before)
        self.relu = nn.ReLU()
        self.head = head(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        return self.head(self.relu(self.norm(self.stages(self.stem(x)))))
