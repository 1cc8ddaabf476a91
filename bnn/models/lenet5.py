"""LeNet-5 in XNOR-Net's block order, for 28x28 images."""

from collections import OrderedDict
from typing import Any

from torch import nn

from bnn.layers import QuantConv2d, QuantLinear
from bnn.layers.base import QuantizerFactory
from bnn.models.first_layer import StemKind, first_layers
from bnn.pixels import Pixels
from bnn.quantizers import FullPrecision

# jiecaoyu/XNOR-Net-PyTorch, MNIST.
BN_EPS = 1e-4


class LeNet5(nn.Sequential):
    """LeNet-5 as the XNOR-Net re-implementation trains it on MNIST: 20C5-P-50C5-P-500-10.

    Blocks are BN - quantize - layer - ReLU - pool (XNOR-Net, section 3.2, figure 3); the first convolution and the
    last linear layer stay in FP32. With FullPrecision quantizers it is its own FP32 twin.

    Input (N, in_channels, 28, 28), output (N, num_classes). stem, pixels: see `bnn.models`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
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
        first = first_layers("conv1", in_channels, 20, 5, stem, pixels)
        super().__init__(
            first
            | OrderedDict(
                norm1=nn.BatchNorm2d(20, eps=BN_EPS),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                norm2=nn.BatchNorm2d(20, eps=BN_EPS),
                conv2=QuantConv2d(20, 50, 5, **quantizers),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                norm3=nn.BatchNorm2d(50, eps=BN_EPS),
                flatten=nn.Flatten(),
                linear3=QuantLinear(50 * 4 * 4, 500, **quantizers),
                relu3=nn.ReLU(),
                linear4=nn.Linear(500, num_classes),
            )
        )
        self.input_shape = (in_channels, 28, 28)
