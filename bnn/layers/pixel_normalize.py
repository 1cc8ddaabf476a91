"""Normalization of pixels as a part of the network, so that it is trained, converted and deployed with it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnn.quantizers.pixel_levels import LARGEST_PIXEL, check_statistics


class PixelNormalize(nn.Module):
    """(x / max_value - mean) / std of pixels (N, C, H, W), uint8 or floats of the same values; returns floats.

    mean, std: in units of max_value, a number or one for each channel. max_value: the pixel value that stands for 1.0.
    channels: of the images; spreads a single number over them. The values of a pixel are the floats that
    `bnn.data.Normalize` makes of it. ValueError on statistics that cannot be those of pixels.

    >>> PixelNormalize(mean=0.5, std=0.25)(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).tolist()
    [[[[-2.0, 2.0]]]]
    """

    def __init__(
        self,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        max_value: float = LARGEST_PIXEL,
        channels: int | None = None,
    ):
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.max_value: Tensor
        statistics = check_statistics(mean, std, max_value, channels)
        count = max(map(len, statistics)) if channels is None else channels
        for name, numbers in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, numbers.to(torch.float32).expand(count).clone())
        self.register_buffer("max_value", torch.tensor(float(max_value)))

    def forward(self, x: Tensor) -> Tensor:
        """Return normalized images; floats keep their dtype, bytes become that of the statistics."""
        x = x.to(self.mean.dtype) if x.dtype == torch.uint8 else x
        sides = (-1, *[1] * (x.ndim - 2))
        return (x / self.max_value - self.mean.reshape(sides)) / self.std.reshape(sides)

    def extra_repr(self) -> str:
        numbers = ", ".join(f"{name}={getattr(self, name).tolist()}" for name in ("mean", "std"))
        return f"{numbers}, max_value={float(self.max_value):g}"
