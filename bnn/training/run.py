"""One run: data and network in, checkpoints, learning curve and one result out. Interrupted runs go on."""

import contextlib
import pickle
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import seed_everything as lightning_seed_everything
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, Timer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bnn.data import TrainingData
from bnn.pixels import takes_pixels
from bnn.pruning import Pruning, merged_masks
from bnn.training.classifier import Classifier
from bnn.training.files import whole_path
from bnn.training.learning_curve import LearningCurve, epochs_in, last_value
from bnn.training.processes import EndsAtOnce
from bnn.training.prunes import Prunes, check_pruning
from bnn.training.trainer_arguments import make_trainer
from bnn.training.weight_average import WeightAverage

CURVE = "metrics.csv"
CHECKPOINT = Path("checkpoints") / "last.ckpt"
BEST_CHECKPOINT = CHECKPOINT.with_name("best.ckpt")


# What torch.load raises of a file that is none of its own.
_DAMAGED = (
    *(OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, AssertionError),
    pickle.UnpicklingError,
)


class RunError(RuntimeError):
    """A run folder that cannot be used: no checkpoint, a damaged one, or one of another network."""


class ClassifierFactory(Protocol):
    """Makes a Classifier around a network: `functools.partial(Classifier, optimizer=...)`."""

    def __call__(self, network: nn.Module) -> Classifier: ...


# What can end training before the last epoch, as Outcome.stopped_by says it.
TIME, STEPS, TRIAL, EARLY = "trainer.max_time", "trainer.max_steps", "trainer.fast_dev_run", "early stopping"


@dataclass(frozen=True)
class Outcome:
    """What a run did and measured, all parts of an interrupted one together.

    Accuracies in [0, 1] are those of the last weights, over so many examples of the validation and test splits. epochs:
    rows of the learning curve; an epoch that max_steps cut short counts. steps: of the optimizer. seconds: of training.
    stopped_by: None if all epochs ran in full, else TIME, STEPS, TRIAL or EARLY (any callback). validation_bits,
    test_bits: of a language model, the mean of -log2 of the probability that it gives to the next token. interruptions:
    how often training went on from a checkpoint. processes: that trained together, at last.
    """

    train_accuracy: float
    validation_accuracy: float
    test_accuracy: float
    epochs: int
    seconds: float
    steps: int
    stopped_by: str | None
    validation_examples: int
    test_examples: int
    validation_bits: float | None = None
    test_bits: float | None = None
    interruptions: int = 0
    processes: int = 1


class _Clock:
    """Training seconds over all parts of an interrupted run."""

    def __init__(self) -> None:
        self.before = 0.0
        self._start = time.perf_counter()

    def seconds(self) -> float:
        return self.before + time.perf_counter() - self._start


class _TimeLimit(Timer):
    """Lightning's max_time for this start alone, so that the next one goes on; the epoch is run to its end."""

    def __init__(self, duration: Any):
        super().__init__(duration, interval="epoch", verbose=False)

    @property
    def is_over(self) -> bool:
        """Whether the time is up; training has ended."""
        left = self.time_remaining()
        return left is not None and left <= 0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


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

    def __init__(self, folder: Path, clock: _Clock, keep_best: bool):
        self._file, self._best_file = folder / CHECKPOINT, folder / BEST_CHECKPOINT
        self._clock = clock
        self._keep_best, self._best = keep_best, -1.0
        self.interruptions = 0
        self._validated = self._loaded = False

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._clock.seconds(), "best": self._best, "interruptions": self.interruptions}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._clock.before = float(state_dict["seconds"])
        self._best = float(state_dict.get("best", -1.0))
        self.interruptions = int(state_dict.get("interruptions", 0))
        self._loaded = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.interruptions += self._loaded  # a run that had ended does not come here

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The best first: killed between the two, the epoch is repeated and both are written as they would have been.
        accuracy = float(trainer.callback_metrics.get("validation_accuracy", -1.0))
        if self._keep_best and self._validated and accuracy > self._best:
            self._best = accuracy
            self._save(trainer, self._best_file)
        self._validated = False
        self._save(trainer, self._file)

    def _save(self, trainer: Trainer, file: Path) -> None:
        if not trainer.is_global_zero:
            trainer.save_checkpoint(file, weights_only=False)  # takes part; the first process alone writes
            return
        with whole_path(file) as temporary:
            trainer.save_checkpoint(temporary, weights_only=False)


def _take_time_limit(arguments: dict[str, Any]) -> _TimeLimit:
    """Take max_time out of a Trainer's arguments; ValueError if it is no duration."""
    try:
        return _TimeLimit(arguments.pop("max_time", None))
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ValueError(f"trainer.max_time: {error}") from error


def check_trainer(trainer: dict[str, Any], epochs: int, batch_size: int, folder: Path) -> int:
    """Return the number of processes that train together; nothing is written.

    ValueError, naming it, on an argument of the Trainer that `train` cannot use.
    """
    arguments = dict(trainer)
    _take_time_limit(arguments)
    processes = make_trainer(arguments, epochs, folder, (), ()).world_size
    _check_share(batch_size, processes)
    return processes


def _check_share(batch_size: int, processes: int) -> None:
    if batch_size < processes:
        raise ValueError(
            f"batch_size={batch_size} is the images of a batch of all processes together, and there are {processes}: "
            "give a larger batch or fewer devices"
        )


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch; a network made afterwards has the weights of this seed."""
    lightning_seed_everything(seed, verbose=False)


@_without_lightnings_own_warnings()
def train(
    classifier: ClassifierFactory,
    network: nn.Module,
    data: TrainingData,
    folder: Path,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    augment: Callable[[Tensor], Tensor] | None = None,
    trainer: dict[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    ema: float | None = None,
    keep_best: bool = False,
    pruning: Pruning | None = None,
) -> Outcome:
    """Train a network, or go on from the checkpoint in `folder`, and measure it on validation and test data.

    The weights of the last epoch are measured: nothing is chosen by the validation set, nothing ever by the test set.
    augment: changes normalized training images (B, C, H, W), such as bnn.data.RandomCropFlip; a network that takes
    pixels (`bnn.takes_pixels`) is given the nearest pixels of what it makes, as floats. trainer: more arguments
    of Lightning's Trainer, loggers and callbacks among them. callbacks: more callbacks, such as Scheduling.
    ema: decay of the exponential moving average of weights that is evaluated and kept (WeightAverage), None: they are
    those of the last step. keep_best: write BEST_CHECKPOINT too, of the first epoch with the best validation accuracy.
    pruning: masks weights or channels as training goes on; the masks are in the checkpoint, and at last permanent.
    The network holds the trained weights afterwards. One in evaluation mode is set to training mode; parts of a network
    in training mode that are in evaluation mode stay so, frozen statistics of batch norm for instance.
    trainer["max_time"] counts from this start: a run that it ended goes on at the next. With fast_dev_run nothing is
    kept. With several devices, in processes that Lightning's DDP or torchrun starts, batch_size is that of all: each
    takes its share of every batch, and the first alone writes.
    RunError if the checkpoint in `folder` is damaged or does not fit the network; ValueError for arguments that cannot
    be used; DivergenceError if the loss is no finite number any more at the end of an epoch.
    """
    for name, number, least in (("epochs", epochs, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{name} must be at least {least}, a whole number; got {number!r}")
    seed_everything(seed)
    folder.mkdir(parents=True, exist_ok=True)
    clock = _Clock()
    arguments = dict(trainer or {})
    limit = _take_time_limit(arguments)
    checkpoint = _LastCheckpoint(folder, clock, keep_best)
    kept = [] if arguments.get("fast_dev_run") else [checkpoint]
    average = [] if ema is None else [WeightAverage(ema)]
    prunes = [] if pruning is None else [Prunes(pruning)]
    before, after = [EndsAtOnce(), *average, *prunes, *callbacks, limit], [LearningCurve(folder / CURVE), *kept]
    lightning_trainer = make_trainer(arguments, epochs, folder, before, after)
    _check_share(batch_size, lightning_trainer.world_size)
    device = lightning_trainer.strategy.root_device
    pixels = takes_pixels(network)
    train_batches = data.batches("train", batch_size, shuffle=True, seed=seed, augment=augment, pixels=pixels)
    validation, test = (data.batches(split, data.evaluation_batch, pixels=pixels) for split in ("validation", "test"))
    for batches in (train_batches, validation, test):
        batches.to(device).share(lightning_trainer.global_rank, lightning_trainer.world_size)
    if not network.training:  # as load_network leaves it; Lightning would train it so
        network.train()
    if pruning is not None:
        check_pruning(pruning, epochs)
        pruning.begin(network)
    module = classifier(network)
    last = folder / CHECKPOINT
    goes_on = bool(kept) and last.exists()
    if goes_on and ("averaging_state" in read_checkpoint(folder)) != bool(average):
        which = "no average" if average else "the average"
        raise RunError(f"{last} holds {which} of weights: it is of a run with another ema; choose another run_dir")
    interrupt_handler = signal.getsignal(signal.SIGINT)
    try:
        lightning_trainer.fit(module, train_batches, validation, ckpt_path=last if goes_on else None, weights_only=True)
    except SystemExit:
        # Lightning ends the process on Ctrl-C, and leaves it deaf to the next one.
        signal.signal(signal.SIGINT, interrupt_handler)
        if lightning_trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {error}") from error
    except RuntimeError as error:
        if str(error).startswith("Early stopping conditioned on metric"):
            raise ValueError(f"trainer.callbacks: {error}") from error
        if "loading state_dict" in str(error) or "Missing key" in str(error):
            raise RunError(f"{last} is of another network; choose another run_dir or remove it: {error}") from error
        raise
    seconds = clock.seconds()
    measured = dict(lightning_trainer.validate(module, validation, verbose=False)[0])
    validation_batches = int(sum(lightning_trainer.num_val_batches))
    measured |= lightning_trainer.test(module, test, verbose=False)[0]
    test_batches = int(sum(lightning_trainer.num_test_batches))
    if lightning_trainer.received_sigterm:  # during an evaluation Lightning notes the signal and goes on
        raise SystemExit(128 + signal.SIGTERM)
    if pruning is not None:
        pruning.end(network)
    curve = folder / CURVE  # which the first process alone writes
    mine = (last_value(curve, "train_accuracy"), epochs_in(curve)) if lightning_trainer.is_global_zero else (0.0, 0)
    train_accuracy, epochs_done = lightning_trainer.strategy.broadcast(mine)
    return Outcome(
        train_accuracy,
        measured["validation_accuracy"],
        measured["test_accuracy"],
        epochs_done,
        seconds,
        lightning_trainer.global_step,
        _stopped_by(lightning_trainer, limit, epochs),
        min(data.count("validation"), validation_batches * data.evaluation_batch),
        min(data.count("test"), test_batches * data.evaluation_batch),
        measured.get("validation_bits"),
        measured.get("test_bits"),
        checkpoint.interruptions,
        lightning_trainer.world_size,
    )


def _stopped_by(trainer: Any, limit: _TimeLimit, epochs: int) -> str | None:
    """Return what ended training before all epochs had run in full, or None."""
    if trainer.fast_dev_run:
        return TRIAL
    batches = trainer.fit_loop.epoch_loop.batch_progress.total.completed
    if batches >= epochs * max(1, trainer.num_training_batches):
        return None
    if -1 < trainer.max_steps <= trainer.global_step:
        return STEPS
    early = [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]
    return TIME if limit.is_over and not any(callback.stopped_epoch for callback in early) else EARLY


def read_checkpoint(folder: Path, name: Path = CHECKPOINT) -> dict[str, Any]:
    """Return what a run's checkpoint holds, on the CPU; RunError if there is none or it is damaged."""
    path = folder / name
    if not path.exists():
        raise RunError(f"{folder} holds no {name}: is it the folder of a finished run?")
    damaged = f"{path} is damaged; remove it, and the same command of experiments.train starts from the beginning"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except _DAMAGED as error:
        raise RunError(f"{damaged}: {str(error).partition(chr(10))[0]}") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise RunError(f"{damaged}: it holds no weights")
    return content


def load_weights(network: nn.Module, file: Path) -> nn.Module:
    """Load a file of weights into a network: a run's checkpoint, or a state dict that torch.save or safetensors wrote.

    Returns the network in evaluation mode. RunError if the file is no such file or of another network.
    """
    if not file.is_file():
        raise RunError(f"{file} is no file of weights")
    try:
        content = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except PermissionError:
        raise
    except (*_DAMAGED, SafetensorError) as error:
        raise RunError(f"{file} holds no weights: {str(error).partition(chr(10))[0]}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise RunError(f"{file} holds no weights: it is a {type(state).__name__}")
    if any(name.startswith("network.") for name in state):
        state = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
    try:
        network.load_state_dict(merged_masks(state))
    except RuntimeError as error:
        raise RunError(f"{file} does not fit {type(network).__name__}: {error}") from error
    return network.eval()


def load_network(network: nn.Module, folder: Path, name: Path = CHECKPOINT) -> nn.Module:
    """Load the trained weights of a run into a network of the same shape, in evaluation mode. RunError if it fails."""
    state = read_checkpoint(folder, name)["state_dict"]
    weights = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
    try:
        network.load_state_dict(merged_masks(weights))
    except RuntimeError as error:
        raise RunError(f"{folder / name} does not fit {type(network).__name__}: {error}") from error
    return network.eval()
