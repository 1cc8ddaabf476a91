"""Processes that train one network together: what they add up, tell each other and draw. Alone, nothing happens."""

import signal
import sys
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn


def are_several() -> bool:
    """Return whether this process trains together with others."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def summed(values: Tensor) -> Tensor:
    """Return the sums over all processes of numbers that each has."""
    if not are_several():
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total


def anywhere(fact: bool) -> bool:
    """Return whether something holds in any of the processes, which ask at each step; CPU only."""
    return fact if not are_several() else bool(summed(torch.tensor(float(fact))) > 0)


def gathered(value: Any) -> list[Any]:
    """Return what each process has, in the order of their ranks; anything that can be pickled."""
    if not are_several():
        return [value]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


@torch.no_grad()
def take_buffers_of_the_first(network: nn.Module) -> None:
    """Give a network the buffers that it has in the first process, such as statistics of batch norm."""
    if are_several():
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)


class EndsAtOnce(Callback):
    """Ends a process of several by SIGTERM where it stands.

    Lightning would tell the others first, in between what they are telling each other, so that all wait for ever.
    """

    def _take_over(self, trainer: Trainer) -> None:
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # Lightning sets it back

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_over(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_over(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_over(trainer)


def seed_of(seed: int, rank: int) -> int:
    """Return the seed of the generators of process number `rank`; the first has that of the run."""
    return int(np.random.SeedSequence((seed, rank)).generate_state(1, np.uint64)[0]) if rank else seed
