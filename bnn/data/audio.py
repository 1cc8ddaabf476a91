"""Recordings and labels in memory: three splits of sounds of one length, and what changes them in training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnn.data.batches import Batches
from bnn.data.image_data import Normalize
from bnn.data.training_data import Kind, SplitName

# What stands for 1.0 of samples of 16 bits.
FULL_SCALE = 32768


@dataclass(frozen=True)
class AudioSplit:
    """sounds: int16 (N, channels, samples). labels: int64 (N,). ValueError on anything else."""

    sounds: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.sounds.dtype != torch.int16 or self.sounds.ndim != 3:
            raise ValueError(f"sounds must be int16 (N, C, L), got {self.sounds.dtype} {tuple(self.sounds.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.sounds.shape[:1]:
            raise ValueError(
                f"labels must be int64 ({len(self.sounds)},), got {self.labels.dtype} {tuple(self.labels.shape)}"
            )

    @property
    def inputs(self) -> Tensor:
        """The sounds."""
        return self.sounds


@dataclass(frozen=True)
class AudioData:
    """Sounds with fixed splits, all of one length. The test split is never used to choose anything.

    rate: samples a second. classes: their names, or none.
    """

    name: str
    train: AudioSplit
    validation: AudioSplit
    test: AudioSplit
    num_classes: int
    rate: int
    classes: tuple[str, ...] = ()

    kind: ClassVar[Kind] = "audio"
    evaluation_batch: ClassVar[int] = 500

    @property
    def input_shape(self) -> tuple[int, int]:
        """(channels, samples) of one sound."""
        channels, samples = self.train.sounds.shape[1:]
        return channels, samples

    def count(self, split: SplitName) -> int:
        """Return the number of sounds of a split."""
        return len(getattr(self, split).labels)

    def blank(self) -> Tensor:
        """Return one silent sound, float32 (1, C, L)."""
        return torch.zeros(1, *self.input_shape)

    @property
    def mean(self) -> Tensor:
        """Mean of each channel over the training split, in [-1, 1], float32 (C,)."""
        return self._samples().mean(1).float()

    @property
    def std(self) -> Tensor:
        """Standard deviation of each channel over the training split, float32 (C,)."""
        return self._samples().std(1, correction=0).float()

    def _samples(self) -> Tensor:
        return self.train.sounds.transpose(0, 1).flatten(1).double() / FULL_SCALE

    def normalizer(self) -> Normalize:
        """Return the map from samples to floats with mean 0 and deviation 1 over the training split."""
        return Normalize(self.mean, self.std, FULL_SCALE)

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
        """Return batches of normalized sounds; see `TrainingData`. ValueError if they should be pixels."""
        if pixels:
            raise ValueError(f"{self.name} is sounds: it has no pixels")
        return Batches(getattr(self, split), self.normalizer(), batch_size, shuffle, seed, augment=augment)


@dataclass(frozen=True)
class RandomShift:
    """Move each sound earlier or later by up to `most` samples, and fill with 0; each draws its own shift.

    A call takes normalized floats (N, C, L) and returns new ones of the same shape.
    """

    most: int = 800

    def __post_init__(self) -> None:
        if isinstance(self.most, bool) or not isinstance(self.most, int) or self.most < 0:
            raise ValueError(f"most must be a number of samples of at least 0, got {self.most!r}")

    def __call__(self, sounds: Tensor) -> Tensor:
        if sounds.ndim != 3:
            raise ValueError(f"RandomShift moves sounds (N, C, L), got {tuple(sounds.shape)}")
        count, channels, length = sounds.shape
        shift = torch.randint(-self.most, self.most + 1, (count, 1, 1)).to(sounds.device)
        place = torch.arange(length, device=sounds.device) - shift
        moved = sounds.gather(2, place.clamp(0, length - 1).expand(-1, channels, -1))
        return moved.masked_fill((place < 0) | (place >= length), 0.0)
