"""Pruning as a Lightning callback: masks are set at the start of epochs."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from bnn.pruning import Pruning


class Prunes(Callback):
    """Lets a Pruning that has begun set its masks; a run that goes on finds them in its checkpoint."""

    def __init__(self, pruning: Pruning):
        self._pruning = pruning

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network: Any = pl_module.network
        self._pruning.update(network, trainer.current_epoch)


def check_pruning(pruning: Pruning, epochs: int) -> None:
    """ValueError if training ends before everything is pruned."""
    if pruning.until >= epochs:
        raise ValueError(
            f"pruning begins at epoch {pruning.epoch} and is done at the start of epoch {pruning.until}, counted from "
            f"0, but there are {epochs} epochs: choose pruning.epoch and pruning.until below"
        )
