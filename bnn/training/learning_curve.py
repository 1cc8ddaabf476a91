"""The learning curve as a CSV file, one row an epoch; an interrupted run goes on below its own rows."""

import csv
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from bnn.training.files import whole_file

COLUMNS = ("epoch", "train_loss", "train_accuracy", "validation_accuracy", "lr")
# A column more where there is such a metric: of language models.
BITS = "validation_bits"


def last_value(file: Path, column: str) -> float:
    """Return a column's value of the last epoch in a learning curve's file."""
    with file.open(newline="") as rows:
        return float(list(csv.DictReader(rows))[-1][column])


def epochs_in(file: Path) -> int:
    """Return the number of epochs in a learning curve's file; 0 if there is none."""
    if not file.exists():
        return 0
    with file.open(newline="") as rows:
        return len(list(csv.DictReader(rows)))


class LearningCurve(Checkpoint):
    """Appends to `file` after each epoch: loss, accuracies in [0, 1], learning rate of the first parameter group.

    Of a language model also the bits a token.
    An epoch without validation has an empty validation_accuracy; of several in one epoch the last counts.
    It is a Checkpoint because Lightning calls those last, when the module has logged its epoch.
    """

    def __init__(self, file: Path):
        self._file = file
        self._rows: list[dict[str, str]] = []
        self._rate = ""
        self._validated = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows = []
        if self._file.exists():
            with self._file.open(newline="") as file:
                self._rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < trainer.current_epoch]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rate = f"{trainer.optimizers[0].param_groups[0]['lr']:.6g}"
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning keeps the metrics of an earlier epoch's validation.
        names = (*COLUMNS, BITS)
        fresh = names if self._validated else [name for name in names if not name.startswith("validation_")]
        measured = {name: f"{float(value):.6g}" for name, value in trainer.callback_metrics.items() if name in fresh}
        self._rows.append({"epoch": str(trainer.current_epoch), "lr": self._rate, **measured})
        if not trainer.is_global_zero:
            return
        with whole_file(self._file) as file:
            more = [BITS] if any(BITS in row for row in self._rows) else []
            writer = csv.DictWriter(file, [*COLUMNS, *more], restval="")
            writer.writeheader()
            writer.writerows(self._rows)
