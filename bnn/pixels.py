"""Networks that take pixels: what the pixels are, and which networks take them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from bnn.layers.base import QuantizerFactory
from bnn.layers.pixel_normalize import PixelNormalize
from bnn.quantizers.lsq import LsqWeight
from bnn.quantizers.pixel_levels import LARGEST_PIXEL, PixelLevels, check_statistics


@dataclass(frozen=True)
class Pixels:
    """How pixels are normalized: (x / max_value - mean) / std.

    mean, std: shares of max_value, a number or one for each channel. max_value: the pixel value that stands for 1.0.
    By default pixels 0 .. 255 become numbers in [0, 1]. ValueError on what cannot be the statistics of pixels.
    """

    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    max_value: float = LARGEST_PIXEL

    def __post_init__(self) -> None:
        check_statistics(self.mean, self.std, self.max_value, None)


def pixel_levels(pixels: Pixels) -> QuantizerFactory:
    """Return the input quantizer of a first layer on the levels of pixels."""
    return partial(PixelLevels, mean=pixels.mean, std=pixels.std, max_value=pixels.max_value)


def eight_bits() -> QuantizerFactory:
    """Return the weight quantizer of such a layer: 8 bits, a learned step for each filter."""
    return partial(LsqWeight, bits=8, per_channel=True)


def _readers(network: nn.Module) -> list[PixelNormalize | PixelLevels]:
    return [module for module in network.modules() if isinstance(module, PixelNormalize | PixelLevels)]


def takes_pixels(network: nn.Module) -> bool:
    """Whether a network takes pixels, uint8 or floats of the same values, and normalizes them itself."""
    return bool(_readers(network))


@torch.no_grad()
def set_pixels(network: nn.Module, pixels: Pixels) -> None:
    """Let a network that takes pixels normalize them in this way; ValueError if it takes none, or other channels.

    The statistics are buffers of the network, so its state_dict holds them.
    """
    readers = _readers(network)
    if not readers:
        raise ValueError(f"{type(network).__name__} takes no pixels: it has neither PixelNormalize nor PixelLevels")
    for reader in readers:
        held = reader.mean if isinstance(reader, PixelNormalize) else reader.zero_points
        fresh = type(reader)(pixels.mean, pixels.std, pixels.max_value, len(held))
        for name, buffer in fresh.named_buffers():
            own = reader.get_buffer(name)
            setattr(reader, name, buffer.to(own.device, own.dtype))
