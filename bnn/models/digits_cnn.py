"""A small CNN for 8x8 images in XNOR-Net's block order."""

from collections import OrderedDict
from typing import Any

from torch import nn

from bnn.layers import QuantConv2d, QuantLinear
from bnn.layers.base import QuantizerFactory
from bnn.models.first_layer import StemKind, first_layers
from bnn.pixels import Pixels
from bnn.quantizers import FullPrecision


class DigitsCNN(nn.Sequential):
    """32C3 - 64C3-P - 64C3-P - 128 - 10 for 8x8 images; the first convolution and the last linear layer in FP32.

    Blocks are BN - quantize - layer - ReLU - pool (XNOR-Net, section 3.2, figure 3). With FullPrecision quantizers it
    is its own FP32 twin.

    Input (N, in_channels, 8, 8), output (N, num_classes). width: channels of the first convolution.
    stem, pixels: see `bnn.models`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        width: int = 32,
        *,
        stem: StemKind = "fp32",
        pixels: Pixels | bool = False,
        weight_quantizer: QuantizerFactory = FullPrecision,
        input_quantizer: QuantizerFactory = FullPrecision,
        input_scale: bool = False,
    ):
        quantizers: dict[str, Any] = {
            "weight_quantizer": weight_quantizer,
            "input_quantizer": input_quantizer,
            "input_scale": input_scale,
        }
        first = first_layers("conv1", in_channels, width, 3, stem, pixels, padding=1, bias=False)
        super().__init__(
            first
            | OrderedDict(
                norm1=nn.BatchNorm2d(width),
                conv2=QuantConv2d(width, 2 * width, 3, padding=1, **quantizers),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                norm2=nn.BatchNorm2d(2 * width),
                conv3=QuantConv2d(2 * width, 2 * width, 3, padding=1, **quantizers),
                relu3=nn.ReLU(),
                pool3=nn.MaxPool2d(2),
                norm3=nn.BatchNorm2d(2 * width),
                flatten=nn.Flatten(),
                linear4=QuantLinear(8 * width, 4 * width, **quantizers),
                relu4=nn.ReLU(),
                norm4=nn.BatchNorm1d(4 * width),
                linear5=nn.Linear(4 * width, num_classes),
            )
        )
        self.input_shape = (in_channels, 8, 8)
