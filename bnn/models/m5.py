"""M5: 1-d convolutions on the samples of a sound."""

from collections import OrderedDict
from typing import Unpack

from torch import nn

from bnn.layers import QuantConv1d
from bnn.models.options import LayerOptions, scaled


class M5(nn.Sequential):
    """128C80/4-P4 - 128C3-P4 - 256C3-P4 - 512C3-P4 - average - linear, for raw sounds.

    Input (N, in_channels, samples), output (N, num_classes). Dai et al. 2016, "Very deep convolutional neural networks
    for raw waveforms", arXiv:1610.00087, table 1. The first convolution and the linear layer are FP32; the quantized
    blocks are BN - quantize - convolution - ReLU - pool (XNOR-Net, section 3.2). With FullPrecision quantizers it is
    its own FP32 twin. width: a factor of all channels. length: samples, for `input_shape` alone.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        width: float = 1.0,
        length: int = 8000,
        **quantizers: Unpack[LayerOptions],
    ):
        first, second, third = (scaled(channels, width) for channels in (128, 256, 512))
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv1d(in_channels, first, 80, stride=4, padding=38, bias=False),
            norm1=nn.BatchNorm1d(first),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool1d(4),
        )
        for number, (before, after) in enumerate(((first, first), (first, second), (second, third)), 2):
            layers |= {
                f"norm_in{number}": nn.BatchNorm1d(before),
                f"conv{number}": QuantConv1d(before, after, 3, padding=1, bias=False, **quantizers),
                f"relu{number}": nn.ReLU(),
                f"pool{number}": nn.MaxPool1d(4),
            }
        layers |= {
            "norm": nn.BatchNorm1d(third),
            "average": nn.AdaptiveAvgPool1d(1),
            "flatten": nn.Flatten(),
            "linear": nn.Linear(third, num_classes),
        }
        super().__init__(layers)
        self.input_shape = (in_channels, length)
