"""Batches of images that live on the device as one uint8 tensor and become floats batch by batch."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bnn.data.image_data import Split


class Batches:
    """An iterable of (images float32 (B, C, H, W), labels int64 (B,)) with a length, as Lightning takes it.

    The order of epoch e depends on (seed, e) only, so an interrupted run sees the batches it would have seen. Each
    iteration is one epoch further unless `set_epoch` says which.

    normalize: uint8 images -> floats. augment: floats -> floats, or None.
    """

    def __init__(
        self,
        split: Split,
        normalize: Callable[[Tensor], Tensor],
        batch_size: int,
        shuffle: bool,
        seed: int,
        drop_last: bool = False,
        augment: Callable[[Tensor], Tensor] | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._images, self._labels = split.images, split.labels
        self._normalize = normalize
        self._augment = augment
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._drop_last = drop_last
        self._epoch = 0

    def to(self, device: torch.device | str) -> "Batches":
        """Move images and labels to a device; returns self."""
        self._images, self._labels = self._images.to(device), self._labels.to(device)
        return self

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is."""
        self._epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self._labels), self._batch_size)
        return whole + (rest > 0 and not self._drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self._labels)
        if self._shuffle:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
            order = torch.randperm(count, generator=generator)
        else:
            order = torch.arange(count)
        self._epoch += 1
        order = order.to(self._labels.device)
        for start in range(0, len(self) * self._batch_size, self._batch_size):
            index = order[start : start + self._batch_size]
            images = self._normalize(self._images[index])
            yield (images if self._augment is None else self._augment(images)), self._labels[index]
