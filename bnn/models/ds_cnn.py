"""DS-CNN: the keyword spotter of MLPerf Tiny, on maps of mel features."""

from typing import Unpack

from torch import nn

from bnn.layers import QuantConv2d
from bnn.models.first_layer import StemKind, first_layers
from bnn.models.options import LayerOptions, rectifier, scaled
from bnn.pixels import Pixels


class DSCNN(nn.Sequential):
    """Depthwise separable convolutions on 49 frames of 10 features; the first convolution and the linear layer in FP32.

    | layer                     | output for 49x10 | quantized                       |
    |---------------------------|------------------|---------------------------------|
    | 64C10x4/2 - BN [- ReLU]   | 64x25x5          |                                 |
    | 4 x (64C3 depthwise - BN [- ReLU], 64C1 - BN [- ReLU]) | 64x25x5 | yes (depthwise: quantize_depthwise) |
    | global average - 12       | 12               |                                 |

    Zhang et al., "Hello Edge", 2017 (DS-CNN S), as Banbury et al., "MLPerf Tiny Benchmark", 2021, section 4, and
    mlcommons/tiny have it. 23,756 parameters, with the running statistics of batch norm the reference's 24,908;
    2.66 M multiply-accumulates. A ReLU stands where the next input is not quantized. The reference pads the first map
    with four rows above and five below; here with five on both sides.

    Input (N, in_channels, frames, features), output (N, num_classes).
    stem, pixels: see `bnn.models`; "pixels" are features as bytes.
    quantize_depthwise: also the depthwise convolutions, whose filters have nine weights each.
    dropout: shares of the numbers dropped after the first layer and of the maps dropped before the average (the
        reference: 0.2 and 0.4); 0 by default.
    width: factor on all inner numbers of channels. options: see LayerOptions.
    """

    def __init__(
        self,
        num_classes: int = 12,
        in_channels: int = 1,
        *,
        stem: StemKind = "fp32",
        pixels: Pixels | bool = False,
        quantize_depthwise: bool = True,
        dropout: tuple[float, float] = (0.0, 0.0),
        width: float = 1.0,
        **options: Unpack[LayerOptions],
    ):
        channels = scaled(64, width)
        own: LayerOptions = options if quantize_depthwise else {}
        layers = first_layers("conv1", in_channels, channels, (10, 4), stem, pixels, stride=2, padding=(5, 1))
        layers["norm1"] = nn.BatchNorm2d(channels)
        for index in range(2, 10, 2):
            depthwise = QuantConv2d(channels, channels, 3, padding=1, groups=channels, **own)
            pointwise = QuantConv2d(channels, channels, 1, **options)
            layers[f"relu{index - 1}"] = rectifier(depthwise)
            if index == 2 and dropout[0]:
                layers["dropout1"] = nn.Dropout(dropout[0])
            layers[f"conv{index}"] = depthwise
            layers[f"norm{index}"] = nn.BatchNorm2d(channels)
            layers[f"relu{index}"] = rectifier(pointwise)
            layers[f"conv{index + 1}"] = pointwise
            layers[f"norm{index + 1}"] = nn.BatchNorm2d(channels)
        layers["relu9"] = nn.ReLU()
        if dropout[1]:
            layers["dropout9"] = nn.Dropout(dropout[1])
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["linear"] = nn.Linear(channels, num_classes)
        super().__init__(layers)
        self.input_shape = (in_channels, 49, 10)
