"""Integers of images and sounds to floats of mean 0 and deviation 1, and the statistics that this takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bnn.data.errors import DataError

# (mean, deviation) of the channels, of pixels in [0, 1].
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def channel_statistics(x: Tensor, max_value: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, float32 (C,), of x / max_value by channel; x: integers (N, C, ...)."""
    shares = x.transpose(0, 1).flatten(1).double() / max_value
    return shares.mean(1).float(), shares.std(1, correction=0).float()


def given_statistics(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> Statistics | None:
    """Return the options data.mean and data.std as statistics, None if neither is given; DataError if they are none."""
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise DataError("data.mean and data.std go together: give both, a number for each channel")
    found = []
    for name, values in (("mean", mean), ("std", std)):
        numbers = tuple(float(value) for value in values)
        if len(numbers) != channels or not all(map(math.isfinite, numbers)) or (name == "std" and min(numbers) <= 0):
            kind = "numbers above 0" if name == "std" else "numbers"
            raise DataError(f"data.{name} must be {channels} {kind}, one for each channel, got {list(values)}")
        found.append(numbers)
    return found[0], found[1]


def check_labels(labels: Tensor, examples: Tensor) -> None:
    """ValueError unless labels are int64, one for each example."""
    if labels.dtype != torch.int64 or labels.shape != examples.shape[:1]:
        raise ValueError(f"labels must be int64 ({len(examples)},), got {labels.dtype} {tuple(labels.shape)}")


@dataclass(frozen=True)
class Normalize:
    """Integers (N, C, ...) -> float32: (x / max_value - mean) / std by channel; `pixels` leads back to pixels."""

    mean: Tensor
    std: Tensor
    max_value: int

    def __call__(self, images: Tensor) -> Tensor:
        mean, std = self._statistics(images)
        return (images.float() / self.max_value - mean) / std

    def pixels(self, normalized: Tensor) -> Tensor:
        """Return the pixels, float32 whole numbers 0 .. 255, that are nearest to normalized floats (N, C, H, W)."""
        mean, std = self._statistics(normalized)
        return ((normalized * std + mean) * self.max_value).round().clamp(0, 255)

    def _statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (t.to(images.device).reshape(-1, *[1] * (images.ndim - 2)) for t in (self.mean, self.std))
        return mean, std
