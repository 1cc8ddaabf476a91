"""Recordings and labels in memory: three splits of sounds of one length, and what changes them in training."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from bnn.data.batches import Batches
from bnn.data.labelled import Labelled
from bnn.data.normalize import channel_statistics, check_labels
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
        check_labels(self.labels, self.sounds)

    @property
    def inputs(self) -> Tensor:
        """The sounds."""
        return self.sounds


@dataclass(frozen=True)
class AudioData(Labelled):
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
    max_value = FULL_SCALE

    @property
    def input_shape(self) -> tuple[int, int]:
        """(channels, samples) of one sound."""
        channels, samples = self.train.sounds.shape[1:]
        return channels, samples

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        return channel_statistics(self.train.sounds, self.max_value)

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
