"""Images and labels in memory: three splits, and the statistics of the training split."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from bnn.data.batches import Batches
from bnn.data.labelled import Labelled
from bnn.data.normalize import Statistics, channel_statistics, check_labels
from bnn.data.training_data import Kind, SplitName


@dataclass(frozen=True)
class Split:
    """images: uint8 (N, C, H, W). labels: int64 (N,). ValueError on anything else."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be uint8 (N, C, H, W), got {self.images.dtype} {tuple(self.images.shape)}")
        check_labels(self.labels, self.images)

    @property
    def inputs(self) -> Tensor:
        """The images."""
        return self.images

    def taken(self, index: Tensor) -> "Split":
        """Return the images of some indices."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class ImageData(Labelled):
    """A data set with fixed splits. The test split is never used to choose anything.

    max_value: the pixel value that stands for 1.0 (255, or 16 for the digits). classes: their names, or none.
    statistics: (mean, deviation) of the channels in [0, 1], or None: those of the training images.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    max_value: int = 255
    classes: tuple[str, ...] = ()
    statistics: Statistics | None = None

    kind: ClassVar[Kind] = "images"
    evaluation_batch: ClassVar[int] = 500

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

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        if self.statistics is not None:
            return torch.tensor(self.statistics[0]), torch.tensor(self.statistics[1])
        return channel_statistics(self.train.images, self.max_value)
