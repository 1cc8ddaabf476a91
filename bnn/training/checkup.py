"""The doctor as a Lightning callback: measures during training, writes records and findings into the run's folder."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from bnn.doctor import Doctor, Finding, findings, mean_record, records_of, report, watched_layers
from bnn.training.divergence import DivergenceError
from bnn.training.files import whole_file
from bnn.training.processes import gathered

REPORT = "doctor.json"


class Checkup(Callback):
    """Watches the `network` of the Lightning module at every `every`-th step and writes `folder`/doctor.json.

    The file is written after every epoch, and when training diverges, whose error then has the findings; a run that
    goes on keeps its records. Of processes that train together they are the means, and the first writes. latent_clip:
    see Doctor. classes: number of classes, so that a network which only guesses is found. A network without quantized
    layers is not watched, and leaves no file.
    """

    def __init__(self, folder: Path, every: int, latent_clip: float | None = None, classes: int | None = None):
        if every < 1:
            raise ValueError(f"doctor.every must be at least 1, got {every}")
        self._file = folder / REPORT
        self._every = every
        self._latent_clip = latent_clip
        self._classes = classes
        self._doctor: Doctor | None = None
        self._begun: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network: Any = pl_module.network
        self._begun = None
        self._doctor = Doctor(network, self._every, self._latent_clip) if watched_layers(network) else None
        if self._doctor is None:
            return
        if trainer.global_step and self._file.exists():
            before = records_of(json.loads(self._file.read_text()))
            self._doctor.records = [record for record in before if record.step < trainer.global_step]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # A step over several batches (accumulate_grad_batches) begins with the first of them.
        if self._doctor is not None and self._begun is None:
            self._begun = trainer.global_step
            self._doctor.begin(self._begun)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._doctor is not None and self._begun is not None and trainer.global_step > self._begun:
            last = self._doctor.records[-1] if self._doctor.records else None
            self._begun = None
            self._doctor.end(outputs["loss"].detach())
            records = self._doctor.records
            if records and records[-1] is not last:
                records[-1] = mean_record(gathered(records[-1]))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._write()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, DivergenceError) and trainer.is_global_zero:
            exception.findings = tuple(f"{finding}; {finding.advice}" for finding in self._write())

    def _write(self) -> list[Finding]:
        """Write the file; returns the findings in it."""
        if self._doctor is None:
            return []
        found = findings(self._doctor.records, self._classes)
        content = report(self._doctor.records, found, self._every)
        with whole_file(self._file) as file:
            file.write(json.dumps(content, indent=1, allow_nan=False) + "\n")
        return found
