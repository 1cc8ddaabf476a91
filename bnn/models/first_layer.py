"""The first convolution of a model: in FP32, or of 8-bit weights on the bytes of pixels."""

from collections import OrderedDict
from typing import Any, Literal

from torch import nn

from bnn.layers import PixelNormalize, QuantConv2d
from bnn.pixels import Pixels, eight_bits, pixel_levels

StemKind = Literal["fp32", "int8"]


def as_pixels(stem: StemKind, pixels: Pixels | bool) -> Pixels | None:
    """Return how a model normalizes its pixels, None if it takes normalized images; ValueError on unknown options.

    A model with the stem "int8" always takes pixels.
    """
    if stem not in ("fp32", "int8"):
        raise ValueError(f"stem must be 'fp32' or 'int8', got {stem!r}")
    if isinstance(pixels, Pixels):
        return pixels
    if not isinstance(pixels, bool):
        raise ValueError(f"pixels must be bnn.Pixels(mean, std), True or False, got {pixels!r}")
    return Pixels() if pixels or stem == "int8" else None


def normalization(in_channels: int, stem: StemKind, pixels: Pixels | bool) -> OrderedDict[str, nn.Module]:
    """Return "pixels", what normalizes pixels before a first layer of floats; nothing where no pixels meet floats."""
    found = as_pixels(stem, pixels)
    if found is None or stem == "int8":
        return OrderedDict()
    return OrderedDict(pixels=PixelNormalize(found.mean, found.std, found.max_value, in_channels))


def first_layers(
    name: str,
    in_channels: int,
    channels: int,
    kernel: int | tuple[int, int],
    stem: StemKind,
    pixels: Pixels | bool,
    **sides: Any,
) -> OrderedDict[str, nn.Module]:
    """Return the first convolution under its name, with what normalizes pixels before it.

    stem: "fp32"; or "int8", 8-bit weights on the 256 levels of pixels. pixels: see `as_pixels`. sides: stride, padding
    and bias, as of nn.Conv2d.
    """
    layers = normalization(in_channels, stem, pixels)
    found = as_pixels(stem, pixels)
    if stem == "int8":
        assert found is not None
        sides |= {"weight_quantizer": eight_bits(), "input_quantizer": pixel_levels(found)}
        layers[name] = QuantConv2d(in_channels, channels, kernel, **sides)
    else:
        layers[name] = nn.Conv2d(in_channels, channels, kernel, **sides)
    return layers
