"""Batches of images that live on the device as one uint8 tensor and become floats batch by batch."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from bnn.data.image_data import Split


class Batches:
    """An iterable of (images float32 (B, C, H, W), labels int64 (B,)) with a length, as Lightning takes it.

    The order of epoch e depends on (seed, e) only, so an interrupted run sees the batches it would have seen. Each
    iteration is one epoch further unless `set_epoch` says which.

    normalize: uint8 images -> floats. augment: floats -> floats, such as RandomCropFlip, or None. What it draws from
    PyTorch's generators depends on (seed, epoch, batch) only, and nothing else that draws from them notices.
    finish: what is done last to the floats, or None; `Normalize.pixels` for networks that take pixels.
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
        finish: Callable[[Tensor], Tensor] | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._images, self._labels = split.images, split.labels
        self._normalize = normalize
        self._augment = augment
        self._finish = finish
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
        epoch = self._epoch
        self._epoch += 1
        order = order.to(self._labels.device)
        for batch in range(len(self)):
            index = order[batch * self._batch_size : (batch + 1) * self._batch_size]
            images = self._augmented(self._normalize(self._images[index]), epoch, batch)
            yield images if self._finish is None else self._finish(images), self._labels[index]

    def _augmented(self, images: Tensor, epoch: int, batch: int) -> Tensor:
        if self._augment is None:
            return images
        sequence = np.random.SeedSequence((self._seed % 2**64, epoch, batch))
        number = int(sequence.generate_state(1, np.uint64)[0])
        on_cuda = images.device.type == "cuda"
        with torch.random.fork_rng([images.device] if on_cuda else []):
            torch.default_generator.manual_seed(number)
            if on_cuda:
                torch.cuda.manual_seed(number)
            return self._augment(images)
