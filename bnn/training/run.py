"""One run: data and network in, checkpoints, learning curve and one result out. Interrupted runs go on."""

import contextlib
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import seed_everything as lightning_seed_everything
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import nn

from bnn.data import Batches, ImageData
from bnn.training.classifier import Classifier
from bnn.training.files import whole_file
from bnn.training.learning_curve import LearningCurve, last_value

EVALUATION_BATCH = 500
CURVE = "metrics.csv"
CHECKPOINT = Path("checkpoints") / "last.ckpt"


class RunError(RuntimeError):
    """A run folder that cannot be used: no checkpoint, or one of another network."""


class ClassifierFactory(Protocol):
    """Makes a Classifier around a network: `functools.partial(Classifier, optimizer=...)`."""

    def __call__(self, network: nn.Module) -> Classifier: ...


@dataclass(frozen=True)
class Outcome:
    """What a run measured: accuracies in [0, 1] of the last epoch's weights, epochs, seconds of training."""

    train_accuracy: float
    validation_accuracy: float
    test_accuracy: float
    epochs: int
    seconds: float


class _Clock:
    """Training seconds over all parts of an interrupted run, kept beside the checkpoint."""

    def __init__(self, folder: Path):
        self._file = folder / "checkpoints" / "seconds"
        self._before = float(self._file.read_text()) if self._file.exists() else 0.0
        self._start = time.perf_counter()

    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._start

    def save(self) -> None:
        with whole_file(self._file) as file:
            file.write(f"{self.seconds():.3f}")


@contextlib.contextmanager
def _without_lightnings_own_warnings() -> Iterator[None]:
    """Hide a deprecation that Lightning 2.6 itself raises on PyTorch 2.13."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        yield


class _LastCheckpoint(Checkpoint):
    """Writes CHECKPOINT after every epoch, whole or not at all.

    Not Lightning's ModelCheckpoint: with save_top_k=0 that one saves its last checkpoint only when training ends.
    """

    def __init__(self, folder: Path, clock: _Clock):
        self._file = folder / CHECKPOINT
        self._clock = clock

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        temporary = self._file.with_suffix(".tmp")
        trainer.save_checkpoint(temporary, weights_only=False)
        temporary.replace(self._file)
        self._clock.save()


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch; a network made afterwards has the weights of this seed."""
    lightning_seed_everything(seed, verbose=False)


@_without_lightnings_own_warnings()
def train(
    classifier: ClassifierFactory,
    network: nn.Module,
    data: ImageData,
    folder: Path,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    trainer: dict[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Outcome:
    """Train a network, or go on from the checkpoint in `folder`, and measure it on validation and test data.

    The weights of the last epoch are measured: nothing is chosen by the validation set, nothing ever by the test set.
    trainer: more arguments of lightning's Trainer. callbacks: more of Lightning's callbacks, such as Scheduling.
    The network holds the trained weights afterwards. One in evaluation mode is set to training mode; parts of a network
    in training mode that are in evaluation mode stay so, frozen statistics of batch norm for instance.
    RunError if the checkpoint in `folder` does not fit the network.
    """
    seed_everything(seed)
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    folder.mkdir(parents=True, exist_ok=True)
    clock = _Clock(folder)
    arguments: dict[str, Any] = {"accelerator": "auto", "devices": 1, "enable_model_summary": False, **(trainer or {})}
    lightning_trainer = Trainer(
        max_epochs=epochs,
        logger=False,
        callbacks=[*callbacks, LearningCurve(folder / CURVE), _LastCheckpoint(folder, clock)],
        num_sanity_val_steps=0,
        **arguments,
    )
    device = lightning_trainer.strategy.root_device
    normalize = data.normalizer()
    train_batches = Batches(data.train, normalize, batch_size, shuffle=True, seed=seed).to(device)
    validation, test = (
        Batches(split, normalize, EVALUATION_BATCH, shuffle=False, seed=0).to(device)
        for split in (data.validation, data.test)
    )
    if not network.training:  # as load_network leaves it; Lightning would train it so
        network.train()
    module = classifier(network)
    last = folder / CHECKPOINT
    interrupt_handler = signal.getsignal(signal.SIGINT)
    try:
        lightning_trainer.fit(
            module, train_batches, validation, ckpt_path=last if last.exists() else None, weights_only=True
        )
    except SystemExit:
        # Lightning ends the process on Ctrl-C, and leaves it deaf to the next one.
        signal.signal(signal.SIGINT, interrupt_handler)
        if lightning_trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except RuntimeError as error:
        if "loading state_dict" in str(error) or "Missing key" in str(error):
            raise RunError(f"{last} is of another network; choose another run_dir or remove it: {error}") from error
        raise
    seconds = clock.seconds()
    measured = dict(lightning_trainer.validate(module, validation, verbose=False)[0])
    measured |= lightning_trainer.test(module, test, verbose=False)[0]
    if lightning_trainer.received_sigterm:  # during an evaluation Lightning notes the signal and goes on
        raise SystemExit(128 + signal.SIGTERM)
    return Outcome(
        last_value(folder / CURVE, "train_accuracy"),
        measured["validation_accuracy"],
        measured["test_accuracy"],
        epochs,
        seconds,
    )


def load_network(network: nn.Module, folder: Path) -> nn.Module:
    """Load the trained weights of a run into a network of the same shape, in evaluation mode. RunError if it fails."""
    path = folder / CHECKPOINT
    if not path.exists():
        raise RunError(f"{folder} holds no {CHECKPOINT}: is it the folder of a finished run?")
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    weights = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"{path} does not fit {type(network).__name__}: {error}") from error
    return network.eval()
