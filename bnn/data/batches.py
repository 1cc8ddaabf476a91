"""Batches in an order that depends on seed and epoch alone; those of images and sounds in memory."""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Examples(Protocol):
    """A split in memory: inputs (N, ...) of any dtype and labels int64 (N,)."""

    labels: Tensor

    @property
    def inputs(self) -> Tensor:
        """What becomes a network's input."""
        ...


class Loader:
    """An iterable of batches (inputs, labels) with a length, as Lightning takes it.

    The order of epoch e depends on (seed, e) only, so an interrupted run sees the batches it would have seen. Each
    iteration is one epoch further unless `set_epoch` says which. Processes that train together each take their `share`
    of the same batches. A subclass makes a batch of the indices of its examples, of which there are `count`.
    """

    def __init__(self, count: int, batch_size: int, shuffle: bool, seed: int, drop_last: bool = False):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._count = count
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._drop_last = drop_last
        self._epoch = 0
        self._rank, self._processes = 0, 1

    def to(self, device: torch.device | str) -> "Loader":
        """Let the batches be on a device; returns self."""
        raise NotImplementedError

    def _batch(self, index: Tensor, epoch: int, batch: int) -> tuple[Tensor, Tensor]:
        """Return the examples of some indices, batch number `batch` of an epoch."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is."""
        self._epoch = epoch

    def share(self, rank: int, processes: int) -> "Loader":
        """Let the batches be those of process number `rank` of so many: its part of every whole batch; returns self.

        All processes together see the batches that one sees alone, parts one after the other in the order of the ranks.
        Where a batch has too few examples for all, those without get its first, which `counts` does not count.
        """
        if not 0 <= rank < processes:
            raise ValueError(f"rank must be one of 0 .. {processes - 1}, got {rank}")
        self._rank, self._processes = rank, processes
        return self

    def counts(self, batch: int) -> tuple[int, int]:
        """Return the examples of batch number `batch` of an epoch: those of this process, and those of all."""
        together = min(self._batch_size, self._count - batch * self._batch_size)
        return together // self._processes + (self._rank < together % self._processes), together

    def __len__(self) -> int:
        whole, rest = divmod(self._count, self._batch_size)
        return whole + (rest > 0 and not self._drop_last)

    def _indices(self) -> tuple[int, list[Tensor]]:
        """Return the number of the epoch that begins, and the indices int64 of each of its batches."""
        epoch = self._epoch
        self._epoch += 1
        if self._shuffle:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            order = torch.randperm(self._count, generator=generator)
        else:
            order = torch.arange(self._count)
        return epoch, [self._own(index) for index in order.split(self._batch_size)[: len(self)]]

    def _own(self, index: Tensor) -> Tensor:
        part = index.tensor_split(self._processes)[self._rank]
        return part if len(part) else index[:1]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, batches = self._indices()
        for batch, index in enumerate(batches):
            yield self._batch(index, epoch, batch)


class Batches(Loader):
    """Batches (inputs float32 (B, ...), labels int64 (B,)) of examples that live on the device.

    normalize: inputs as they are kept -> floats. augment: floats -> floats, such as RandomCropFlip, or None. What it
    draws from PyTorch's generators depends on (seed, epoch, batch, rank) only, and nothing else that draws from them
    notices. finish: what is done last to the floats, or None; `Normalize.pixels` for networks that take pixels.
    """

    def __init__(
        self,
        split: Examples,
        normalize: Callable[[Tensor], Tensor],
        batch_size: int,
        shuffle: bool,
        seed: int,
        drop_last: bool = False,
        augment: Callable[[Tensor], Tensor] | None = None,
        finish: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__(len(split.labels), batch_size, shuffle, seed, drop_last)
        self._inputs, self._labels = split.inputs, split.labels
        self._normalize = normalize
        self._augment = augment
        self._finish = finish

    def to(self, device: torch.device | str) -> "Batches":
        """Move inputs and labels to a device; returns self."""
        self._inputs, self._labels = self._inputs.to(device), self._labels.to(device)
        return self

    def _batch(self, index: Tensor, epoch: int, batch: int) -> tuple[Tensor, Tensor]:
        index = index.to(self._labels.device)
        inputs = augmented(self._augment, self._normalize(self._inputs[index]), self._seed, epoch, batch, self._rank)
        return inputs if self._finish is None else self._finish(inputs), self._labels[index]


def augmented(
    augment: Callable[[Tensor], Tensor] | None, inputs: Tensor, seed: int, epoch: int, batch: int, rank: int = 0
) -> Tensor:
    """Return what `augment` makes of a batch; generators are seeded by the numbers, and set back."""
    if augment is None:
        return inputs
    sequence = np.random.SeedSequence((seed % 2**64, epoch, batch, *((rank,) if rank else ())))
    number = int(sequence.generate_state(1, np.uint64)[0])
    on_cuda = inputs.device.type == "cuda"
    with torch.random.fork_rng([inputs.device] if on_cuda else []):
        torch.default_generator.manual_seed(number)
        if on_cuda:
            torch.cuda.manual_seed(number)
        return augment(inputs)
