"""The float layers at both ends of the residual networks."""

from collections import OrderedDict
from typing import Literal

from torch import nn

Stem = Literal["imagenet", "cifar"]


def stem(kind: Stem, in_channels: int, channels: int, relu: bool) -> nn.Sequential:
    """Return the first layers in FP32, each with BN and, where `relu`, a ReLU behind; ValueError on an unknown kind.

    "imagenet": 7x7 convolution of stride 2, 3x3 max pooling of stride 2: a quarter of the size. "cifar": 3x3
    convolution, the size stays.
    """
    if kind not in ("imagenet", "cifar"):
        raise ValueError(f"stem must be 'imagenet' or 'cifar', got {kind!r}")
    large = kind == "imagenet"
    kernel, stride, padding = (7, 2, 3) if large else (3, 1, 1)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=False), norm=nn.BatchNorm2d(channels)
    )
    if relu:
        layers["relu"] = nn.ReLU()
    if large:
        layers["pool"] = nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(layers)


def input_shape(kind: Stem, in_channels: int) -> tuple[int, int, int]:
    """Return the shape of the images that a stem is meant for."""
    size = 224 if kind == "imagenet" else 32
    return in_channels, size, size


def head(channels: int, num_classes: int) -> nn.Sequential:
    """Return global average pooling and the classifier in FP32."""
    return nn.Sequential(
        OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(channels, num_classes))
    )
