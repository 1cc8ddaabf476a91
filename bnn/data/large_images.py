"""Images that stay in their files: decoded, cut and scaled for each batch by processes beside the training."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bnn.data.batches import Loader, augmented
from bnn.data.errors import DataError
from bnn.data.image_files import opened
from bnn.data.labelled import Labelled
from bnn.data.mixing import InTurn, RandomResizedCrop
from bnn.data.normalize import Statistics, channel_statistics
from bnn.data.training_data import Kind, SplitName

if TYPE_CHECKING:
    from PIL import Image

# Training images whose mean and deviation stand for those of all.
SAMPLE = 1000


class ImageSplit(Protocol):
    """Labelled images that are decoded when they are asked for: FileSplit, RowSplit."""

    @property
    def labels(self) -> Tensor:
        """int64 (N,)."""
        ...

    def opened(self, index: int, channels: int) -> "Image.Image":
        """Return a Pillow image of 1 (grey) or 3 channels; DataError names one that cannot be read."""
        ...


@dataclass(frozen=True)
class FileSplit:
    """files: of the images. labels: int64 (N,)."""

    files: Sequence[Path]
    labels: Tensor

    def taken(self, index: Tensor) -> "FileSplit":
        """Return the images of some indices."""
        return FileSplit([self.files[int(at)] for at in index], self.labels[index])

    def opened(self, index: int, channels: int) -> "Image.Image":
        """Return an image, see `image_files.opened`."""
        return opened(self.files[index], channels)


@dataclass(frozen=True)
class ImageFiles(Labelled):
    """Images of any sizes in files, with fixed splits. The test split is never used to choose anything.

    size: pixels of a side as the network takes them. resize: to what the shorter side is scaled before the middle is
    cut out, in evaluation and in training without a RandomResizedCrop. channels: 1 (grey) or 3. num_workers: processes
    that decode; 0 decodes in the training's own. statistics: (mean, deviation) of the channels in [0, 1], or None:
    those of SAMPLE training images. What a batch holds depends on (seed, epoch) alone, not on the workers.
    """

    name: str
    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    num_classes: int
    size: int
    resize: int
    channels: int = 3
    num_workers: int = 0
    classes: tuple[str, ...] = ()
    statistics: Statistics | None = None

    kind: ClassVar[Kind] = "images"
    evaluation_batch: ClassVar[int] = 100
    max_value = 255

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("resize", self.size), ("num_workers", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise DataError(f"data.{name} must be a whole number of at least {least}, got {value!r}")
        if self.channels not in (1, 3):
            raise DataError(f"data.channels must be 1 (grey) or 3 (colour), got {self.channels!r}")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.channels, self.size, self.size

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        if self.statistics is not None:
            return torch.tensor(self.statistics[0]), torch.tensor(self.statistics[1])
        total = len(self.train.labels)
        pixels = self.pictures(np.linspace(0, total - 1, min(total, SAMPLE)).astype(int))
        return channel_statistics(torch.from_numpy(pixels), self.max_value)

    def pictures(self, index: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return some training images as evaluation would see them, uint8 (N, C, H, W)."""
        made = _Decoded(self, self.train, None, 0)
        return np.stack([made[0, int(at)][0].numpy() for at in index])

    def batches(
        self,
        split: SplitName,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        augment: Callable[[Tensor], Tensor] | None = None,
        pixels: bool = False,
    ) -> "FileBatches":
        """Return batches of normalized images, or of the nearest pixels as floats; see `TrainingData`.

        A RandomResizedCrop, or one that an InTurn begins with, cuts its parts out of the whole images as they are
        decoded; other changes are made to batches on the device.
        """
        return FileBatches(self, getattr(self, split), batch_size, shuffle, seed, augment, pixels)


class FileBatches(Loader):
    """Batches of `ImageFiles`."""

    def __init__(
        self,
        data: ImageFiles,
        split: ImageSplit,
        batch_size: int,
        shuffle: bool,
        seed: int,
        augment: Callable[[Tensor], Tensor] | None,
        pixels: bool,
    ):
        super().__init__(len(split.labels), batch_size, shuffle, seed)
        crop, self._augment = _parted(augment)
        self._images = _Decoded(data, split, crop, seed)
        self._workers = data.num_workers
        self._normalize = data.normalizer()
        self._finish = self._normalize.pixels if pixels else None
        self._device = torch.device("cpu")

    def to(self, device: torch.device | str) -> "FileBatches":
        """Move the batches to a device as they are made; returns self."""
        self._device = torch.device(device)
        return self

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, batches = self._indices()
        wanted: Any = [[(epoch, int(at)) for at in index] for index in batches]
        # A generator of its own: the loader draws a number, which must not be one of the training's.
        loader = DataLoader(self._images, batch_sampler=wanted, num_workers=self._workers, generator=torch.Generator())
        for batch, (images, labels) in enumerate(loader):
            normalized = self._normalize(images.to(self._device))
            inputs = augmented(self._augment, normalized, self._seed, epoch, batch, self._rank)
            yield inputs if self._finish is None else self._finish(inputs), labels.to(self._device)


def _parted(
    augment: Callable[[Tensor], Tensor] | None,
) -> tuple[RandomResizedCrop | None, Callable[[Tensor], Tensor] | None]:
    """Return what is done to whole images and what to batches."""
    if isinstance(augment, RandomResizedCrop):
        return augment, None
    if isinstance(augment, InTurn) and isinstance(augment.changes[0], RandomResizedCrop):
        rest = augment.changes[1:]
        return augment.changes[0], InTurn(rest) if rest else None
    return None, augment


class _Decoded(Dataset[tuple[Tensor, int]]):
    """Images (uint8 (C, size, size), label) by (epoch, index)."""

    def __init__(self, data: ImageFiles, split: ImageSplit, crop: RandomResizedCrop | None, seed: int):
        self._split = split
        self._size, self._resize, self._channels = data.size, data.resize, data.channels
        self._crop = crop
        self._seed = seed % 2**64

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        from PIL import Image, ImageOps

        epoch, index = key
        image = self._split.opened(index, self._channels)
        side = self._size
        if self._crop is None:
            scale = self._resize / min(image.size)
            width, height = (max(side, round(scale * old)) for old in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            left, top = (width - side) // 2, (height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        else:
            generator = np.random.default_rng((self._seed, epoch, index))
            box, mirrored = self._crop.part_of(image.height, image.width, generator)
            image = image.resize((side, side), Image.Resampling.BILINEAR, box)
            image = ImageOps.mirror(image) if mirrored else image
        pixels = np.array(image, np.uint8).reshape(side, side, self._channels).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(pixels)), int(self._split.labels[index])
