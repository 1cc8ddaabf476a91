"""Images and labels in memory: three splits, and the statistics of the training split."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnn.data.batches import Batches
from bnn.data.training_data import Kind, SplitName


@dataclass(frozen=True)
class Split:
    """images: uint8 (N, C, H, W). labels: int64 (N,). ValueError on anything else."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be uint8 (N, C, H, W), got {self.images.dtype} {tuple(self.images.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must be int64 ({len(self.images)},), got {self.labels.dtype} {tuple(self.labels.shape)}"
            )

    @property
    def inputs(self) -> Tensor:
        """The images."""
        return self.images

    def taken(self, index: Tensor) -> "Split":
        """Return the images of some indices."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class ImageData:
    """A data set with fixed splits. The test split is never used to choose anything.

    max_value: the pixel value that stands for 1.0 (255, or 16 for the digits). classes: their names, or none.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    max_value: int = 255
    classes: tuple[str, ...] = ()

    kind: ClassVar[Kind] = "images"
    evaluation_batch: ClassVar[int] = 500

    def count(self, split: SplitName) -> int:
        """Return the number of images of a split."""
        return len(getattr(self, split).labels)

    def batches(
        self,
        split: SplitName,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        augment: Callable[[Tensor], Tensor] | None = None,
        pixels: bool = False,
    ) -> Batches:
        """Return batches of normalized images, or of the nearest pixels as floats; see `TrainingData`."""
        normalize = self.normalizer()
        finish = normalize.pixels if pixels else None
        return Batches(getattr(self, split), normalize, batch_size, shuffle, seed, augment=augment, finish=finish)

    def blank(self) -> Tensor:
        """Return one image of zeros, float32 (1, C, H, W)."""
        return torch.zeros(1, *self.input_shape)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def mean(self) -> Tensor:
        """Mean of each channel over the training split, in [0, 1], float32 (C,)."""
        return self._statistics()[0]

    @property
    def std(self) -> Tensor:
        """Standard deviation of each channel over the training split, float32 (C,)."""
        return self._statistics()[1]

    def _statistics(self) -> tuple[Tensor, Tensor]:
        pixels = self.train.images.transpose(0, 1).flatten(1).double() / self.max_value
        return pixels.mean(1).float(), pixels.std(1, correction=0).float()

    def normalizer(self) -> "Normalize":
        """Return the map from pixels to floats with mean 0 and deviation 1 over the training split."""
        return Normalize(self.mean, self.std, self.max_value)


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
