"""AlexNet in XNOR-Net's block order, for 224x224 images."""

from typing import Literal, Unpack

from torch import nn

from bnn.layers import QuantConv2d
from bnn.models.first_layer import StemKind, first_layers
from bnn.models.options import LayerOptions, rectifier, scaled
from bnn.pixels import Pixels


class AlexNet(nn.Sequential):
    """XNOR-Net's AlexNet: BN - quantize - conv - pool blocks; first and last layer in FP32; linear layers are convs.

    | layer                   | output for 224x224 | quantized |
    |-------------------------|--------------------|-----------|
    | 96C11/4 - BN - ReLU - MP3/2 | 96x27x27       |           |
    | 256C5 - MP3/2           | 256x13x13          | yes       |
    | 384C3                   | 384x13x13          | yes       |
    | 384C3                   | 384x13x13          | yes       |
    | 256C3 - MP3/2           | 256x6x6            | yes       |
    | 4096C6                  | 4096x1x1           | yes       |
    | 4096C1                  | 4096x1x1           | yes       |
    | BN - ReLU - 1000C1      | 1000               |           |

    Rastegari et al., "XNOR-Net", 2016, section 4.3 and the authors' alexnetxnor (no ReLU behind binary convolutions).
    62,378,344 weights and biases of convolutions. Its batch norms are affine: that code passes `false` where Torch's
    module takes the momentum, so the default, affine, stayed. Where the input is not quantized (the FP32 twin, BWN) a
    ReLU stands in the quantizer's place.

    order: "bacp" is the table: BN - activation - convolution - pool. "cbap" is the usual order, with which table 3b of
        the paper loses 14 points: convolution - BN - activation - pool, each BN behind its convolution. As pooling's
        largest sign is the sign of the largest value, pooling stands before the quantizer there too, which is the
        same map; its gradient goes to the largest value, not to the first of equal signs.

    Input (N, in_channels, 224, 224) (up to 227 the maps are the same), output (N, num_classes).
    stem, pixels: see `bnn.models`.
    width: factor on all inner numbers of channels. options: see LayerOptions.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        order: Literal["bacp", "cbap"] = "bacp",
        stem: StemKind = "fp32",
        pixels: Pixels | bool = False,
        width: float = 1.0,
        **options: Unpack[LayerOptions],
    ):
        if order not in ("bacp", "cbap"):
            raise ValueError(f'order must be "bacp" or "cbap", got {order!r}')
        usual = order == "cbap"
        # channels, kernel, padding, pooled
        blocks = [(256, 5, 2, True), (384, 3, 1, False), (384, 3, 1, False), (256, 3, 1, True), (4096, 6, 0, False),
                  (4096, 1, 0, False)]  # fmt: skip
        before = scaled(96, width)
        layers = first_layers("conv1", in_channels, before, 11, stem, pixels, stride=4, padding=2)
        layers["norm1"] = nn.BatchNorm2d(before, eps=1e-5)
        if not usual:
            layers["relu1"] = nn.ReLU()
        layers["pool1"] = nn.MaxPool2d(3, 2)
        for index, (channels, kernel, padding, pooled) in enumerate(blocks, start=2):
            after = scaled(channels, width)
            conv = QuantConv2d(before, after, kernel, padding=padding, **options)
            if not usual:
                layers[f"norm{index}"] = nn.BatchNorm2d(before, eps=1e-4)
            layers[f"relu{index}"] = rectifier(conv)
            layers[f"conv{index}"] = conv
            if usual:
                layers[f"norm{index}"] = nn.BatchNorm2d(after, eps=1e-4)
            if pooled:
                layers[f"pool{index}"] = nn.MaxPool2d(3, 2)
            before = after
        if not usual:
            layers["norm8"] = nn.BatchNorm2d(before, eps=1e-3)
        layers["relu8"] = nn.ReLU()
        layers["conv8"] = nn.Conv2d(before, num_classes, 1)
        layers["flatten"] = nn.Flatten()
        super().__init__(layers)
        self.input_shape = (in_channels, 224, 224)
