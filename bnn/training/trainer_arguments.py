"""Arguments of Lightning's Trainer that users give beside ours: each is passed on, or refused by name."""

import difflib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

# Ours to set, and what to use instead.
_REFUSED = {
    "max_epochs": "use epochs",
    "overfit_batches": "use limit_train_batches: images come in batches, not through a sampler that could be exchanged",
    "barebones": "turn off single things: enable_progress_bar=false, doctor.every=null",
    "enable_autolog_hparams": "give a logger its options",
    "model_registry": "packed files and checkpoints lie in the folder of the run",
}

_LEFT_OUT = {
    "limit_train_batches": "train on",
    "limit_val_batches": "measure at the end; check_val_every_n_epoch=${epochs} validates after the last epoch alone",
    "limit_test_batches": "measure at the end",
    "max_steps": "do",
}


def make_trainer(
    given: dict[str, Any], epochs: int, folder: Path, callbacks: Sequence[Callback], last: Sequence[Callback]
) -> Trainer:
    """Return a Trainer that leaves its files in `folder`; ValueError names what cannot be given.

    Each of several processes has one. given: the user's arguments. callbacks, last: ours, called before and after those
    of `given`. logger=True is Lightning's CSVLogger in `folder`/lightning_logs.
    """
    known = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    for name in given:
        if name in _REFUSED:
            raise ValueError(f"trainer.{name} cannot be given: {_REFUSED[name]}")
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            guess = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"Lightning's Trainer has no argument {name!r}.{guess} It takes {', '.join(sorted(known))}"
            )
    if given.get("enable_checkpointing") is False:
        raise ValueError("trainer.enable_checkpointing=false cannot be given: the weights of a run are its checkpoint")
    arguments: dict[str, Any] = {
        "accelerator": "auto",
        "devices": 1,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # batches are shared by bnn.data
        "default_root_dir": folder,
        **given,
    }
    logger = arguments.pop("logger", None) or False
    if logger is True:
        logger = CSVLogger(folder)
    loggers = logger if isinstance(logger, list | tuple) else [logger] if logger else []
    if not all(isinstance(entry, Logger) for entry in loggers):
        raise ValueError(
            f"trainer.logger is true, a Lightning logger or a list of them (_target_: ...), got {logger!r}"
        )
    if logger and "log_every_n_steps" not in arguments:
        arguments["log_every_n_steps"] = 1  # epochs may be shorter than Lightning's 50, of which it warns
    extra = arguments.pop("callbacks", None) or []
    extra = list(extra) if isinstance(extra, list | tuple) else [extra]
    wrong = [callback for callback in extra if not isinstance(callback, Callback)]
    if wrong:
        raise ValueError(f"trainer.callbacks are Lightning callbacks (_target_: ...), got {wrong[0]!r}")
    if _needs_plain_progress(arguments) and not any(isinstance(callback, ProgressBar) for callback in extra):
        extra.append(TQDMProgressBar())
    if "plugins" not in arguments and (arguments["devices"], arguments.get("num_nodes", 1)) != (1, 1):
        # Of Slurm's own processes there is one: those that train together are its children, or torchrun's.
        environments = TorchElasticEnvironment, LightningEnvironment
        arguments["plugins"] = [next(each() for each in environments if each.detect())]
    try:
        trainer = Trainer(max_epochs=epochs, logger=logger, callbacks=[*callbacks, *extra, *last], **arguments)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"trainer: {error}") from error
    if trainer.world_size > 1:
        _check_processes(trainer, arguments)
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "max_steps"):
        if getattr(trainer, name) == 0:
            raise ValueError(f"trainer.{name}=0 leaves nothing to {_LEFT_OUT[name]}")
    return trainer


def _check_processes(trainer: Trainer, arguments: dict[str, Any]) -> None:
    """ValueError unless several processes train by DDP, each started as a program of its own."""
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy) or not isinstance(strategy.launcher, _SubprocessScriptLauncher):
        raise ValueError(
            f"trainer.strategy={arguments.get('strategy')} cannot be given: {trainer.world_size} processes train one "
            "network by trainer.strategy=ddp"
        )
    if arguments.get("sync_batchnorm") and strategy.root_device.type == "cpu":
        raise ValueError(
            "trainer.sync_batchnorm=true needs graphics cards; on the CPU batch norm sees each process's images by "
            "themselves"
        )


def _needs_plain_progress(arguments: dict[str, Any]) -> bool:
    """Return whether a progress bar is wanted where Lightning's usual one, drawn by rich, cannot be encoded."""
    if arguments.get("enable_progress_bar") is False:
        return False
    try:
        "\u2022\u2501\u257a".encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return True
    return False
