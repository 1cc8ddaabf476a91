"""VGG-small for 32x32 images: the network of LQ-Net, IR-Net and their successors on CIFAR-10."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Unpack

from torch import nn

from bnn.layers import QuantConv2d
from bnn.models.first_layer import StemKind, first_layers
from bnn.models.options import LayerOptions, scaled
from bnn.pixels import Pixels


class VGGSmall(nn.Sequential):
    """Six 3x3 convolutions and one linear layer; the first convolution and the linear layer in FP32.

    | layer               | output for 32x32 | quantized |
    |---------------------|------------------|-----------|
    | 128C3               | 128x32x32        |           |
    | 128C3 - MP2         | 128x16x16        | yes       |
    | 256C3, 256C3 - MP2  | 256x8x8          | yes       |
    | 512C3, 512C3 - MP2  | 512x4x4          | yes       |
    | 10                  | 10               |           |

    Each convolution is followed by [pool -] BN - activation. Not BinaryNet's network, which has three linear layers
    (BNNVGG). Zhang et al., "LQ-Nets", 2018; order and activation of Qin et al., "IR-Net", 2020 (htqin/IR-Net).
    4,656,522 weights and biases of convolutions and linear layer.

    Input (N, in_channels, 32, 32), output (N, num_classes).
    stem, pixels: see `bnn.models`.
    activation: factory of what follows batch norm: nn.Hardtanh (IR-Net's code) or nn.ReLU (DoReFa-like activations).
    width: factor on all inner numbers of channels. options: see LayerOptions.
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
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        before = in_channels
        for index, channels in enumerate((128, 128, 256, 256, 512, 512), start=1):
            after = scaled(channels, width)
            if index == 1:
                layers |= first_layers("conv1", before, after, 3, stem, pixels, padding=1, bias=False)
            else:
                layers[f"conv{index}"] = QuantConv2d(before, after, 3, padding=1, bias=False, **options)
            if index % 2 == 0:
                layers[f"pool{index}"] = nn.MaxPool2d(2)
            layers[f"norm{index}"] = nn.BatchNorm2d(after)
            layers[f"activation{index}"] = activation()
            before = after
        layers["flatten"] = nn.Flatten()
        layers["linear7"] = nn.Linear(before * 4 * 4, num_classes)
        super().__init__(layers)
        self.input_shape = (in_channels, 32, 32)
