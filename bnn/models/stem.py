"""The layers at both ends of the residual networks, which are no binary ones."""

from collections import OrderedDict
from typing import Literal

from torch import nn

from bnn.models.first_layer import StemKind, first_layers
from bnn.pixels import Pixels

Layout = Literal["imagenet", "cifar"]


def layout_and_stem(layout: Layout, stem: StemKind | Layout) -> tuple[Layout, StemKind]:
    """Return both; ValueError on an unknown layout. `stem` was the name of the layout once, and may still say it."""
    if stem == "imagenet" or stem == "cifar":
        layout, stem = stem, "fp32"
    if layout not in ("imagenet", "cifar"):
        raise ValueError(f"layout must be 'imagenet' or 'cifar', got {layout!r}")
    return layout, stem


def stem_layers(
    layout: Layout, in_channels: int, channels: int, relu: bool, stem: StemKind, pixels: Pixels | bool
) -> nn.Sequential:
    """Return the first layers: a convolution with BN and, where `relu`, a ReLU behind.

    "imagenet": 7x7 convolution of stride 2, 3x3 max pooling of stride 2: a quarter of the size. "cifar": 3x3
    convolution, the size stays. stem, pixels: of the convolution, see `first_layers`.
    """
    large = layout == "imagenet"
    kernel, stride, padding = (7, 2, 3) if large else (3, 1, 1)
    sides = {"stride": stride, "padding": padding, "bias": False}
    layers = first_layers("conv", in_channels, channels, kernel, stem, pixels, **sides)
    layers["norm"] = nn.BatchNorm2d(channels)
    if relu:
        layers["relu"] = nn.ReLU()
    if large:
        layers["pool"] = nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(layers)


def input_shape(layout: Layout, in_channels: int) -> tuple[int, int, int]:
    """Return the shape of the images that a layout is meant for."""
    size = 224 if layout == "imagenet" else 32
    return in_channels, size, size


def head(channels: int, num_classes: int) -> nn.Sequential:
    """Return global average pooling and the classifier in FP32."""
    return nn.Sequential(
        OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(channels, num_classes))
    )
