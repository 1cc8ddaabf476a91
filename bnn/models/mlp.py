"""The multilayer perceptron of BinaryConnect and BinaryNet for MNIST."""

from functools import partial
from typing import Unpack

from torch import nn

from bnn.layers import DroppedInput, QuantConv2d, QuantLinear
from bnn.models.first_layer import StemKind, as_pixels, normalization
from bnn.models.options import LinearOptions, scaled
from bnn.pixels import Pixels, eight_bits, pixel_levels
from bnn.quantizers import FullPrecision

# BinaryNet's code, MNIST.
BN_EPS = 1e-4


class MLP(nn.Sequential):
    """Hidden linear layers of one width, each followed by BN - Hardtanh, and a linear layer followed by BN.

    | layer            | output for 28x28 | quantized                    |
    |------------------|------------------|------------------------------|
    | 4096             | 4096             | weights, with quantize_ends  |
    | 4096, 4096       | 4096             | yes                          |
    | 10               | 10               | yes, with quantize_ends      |

    Courbariaux et al., "Binarized Neural Networks", 2016, section 3.1 and the authors' Theano code: 3 hidden layers of
    4096 units; their Torch7 code has hidden=2048. 36,818,954 weights and biases, with hidden=2048
    10,020,874.

    The first linear layer is written as a convolution whose kernel is the whole image: the same weights.

    Input (N, in_channels, size, size), output (N, num_classes).
    size: height and width of the images. hidden, layers: units of a hidden layer, and how many there are.
    dropout: share of quantized inputs dropped before every layer but the first (the authors' code: 0.5).
    quantize_ends: quantize the first layer's weights (its input stays float, or pixels with the stem "int8") and the
        last layer as well, as BinaryNet does.
    stem, pixels: see `bnn.models`.
    width: factor on `hidden`. options: see LinearOptions.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        *,
        size: int = 28,
        hidden: int = 4096,
        layers: int = 3,
        dropout: float = 0.0,
        stem: StemKind = "fp32",
        pixels: Pixels | bool = False,
        quantize_ends: bool = False,
        width: float = 1.0,
        **options: Unpack[LinearOptions],
    ):
        if layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers}")
        units = scaled(hidden, width)
        found = as_pixels(stem, pixels)
        first: LinearOptions = {}
        if stem == "int8" and found is not None:
            first = {"weight_quantizer": eight_bits(), "input_quantizer": pixel_levels(found)}
        if quantize_ends:
            first["weight_quantizer"] = options.get("weight_quantizer", FullPrecision)
        input_quantizer = options.get("input_quantizer", FullPrecision)
        dropped = partial(DroppedInput, input_quantizer, p=dropout) if dropout else input_quantizer
        options = {**options, "input_quantizer": dropped}
        last: LinearOptions = options if quantize_ends else {}
        if dropout and not quantize_ends:
            last = {"input_quantizer": partial(DroppedInput, FullPrecision, p=dropout)}
        modules = normalization(in_channels, stem, pixels)
        modules["linear1"] = QuantConv2d(in_channels, units, size, **first)
        modules["flatten"] = nn.Flatten()
        for index in range(1, layers + 1):
            if index > 1:
                modules[f"linear{index}"] = QuantLinear(units, units, **options)
            modules[f"norm{index}"] = nn.BatchNorm1d(units, eps=BN_EPS)
            modules[f"hardtanh{index}"] = nn.Hardtanh()
        modules[f"linear{layers + 1}"] = QuantLinear(units, num_classes, **last)
        modules[f"norm{layers + 1}"] = nn.BatchNorm1d(num_classes, eps=BN_EPS)
        super().__init__(modules)
        self.input_shape = (in_channels, size, size)
