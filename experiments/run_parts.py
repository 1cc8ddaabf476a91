"""What a training run is made of, built from its config: data, network, classifier, Trainer's arguments."""

import copy
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.command_help import CONFIGS
from experiments.config_values import ConfigError, check_numbers, whole_number
from experiments.layer_costs import training_images
from experiments.layer_widths import set_widths
from experiments.published_numbers import check_published
from experiments.targets import build, check
from experiments.teacher import build_teacher


@dataclass(frozen=True)
class Parts:
    """All that `bnn.training.train` takes of a config.

    costs: the network's bnn.summary. teacher: what a result says of the teacher that the classifier has. processes: how
    many train together. pruning: a bnn.pruning.Pruning or None.
    """

    data: Any
    network: Any
    costs: Any
    classifier: Any
    augment: Callable[[Any], Any] | None
    trainer: dict[str, Any]
    schedules: list[Any]
    teacher: dict[str, Any] | None
    processes: int
    pruning: Any


# What the inputs of a kind of data are called.
NOUNS = {"images": "images", "audio": "sounds", "text": "tokens"}


def summary_of(network: Any, data: Any) -> Any:
    """Return bnn.summary of a network for one input of a data set."""
    import bnn

    return bnn.summary(network, data.blank() if data.kind == "text" else data.input_shape)


def check_values(config: DictConfig) -> None:
    """Make the seed, epochs and batch size whole numbers, of text too; ConfigError names what cannot be used."""
    _check_quantizer(config)
    check_published(config)
    whole_number(config, "seed", 0, 2**32 - 1)
    whole_number(config, "epochs", 1)
    whole_number(config, "batch_size", 1)
    if (lock := OmegaConf.select(config, "lock", default="wait")) not in ("wait", "refuse"):
        raise ConfigError(f"lock is wait or refuse, got {lock!r}")
    if OmegaConf.select(config, "doctor.every") is not None:
        whole_number(config, "doctor.every", 1)
    check_numbers(config)


def _check_quantizer(config: DictConfig) -> None:
    quantizer = OmegaConf.select(config, "quantizer")
    needed = OmegaConf.load(CONFIGS / "quantizer" / "fp32.yaml")
    if not isinstance(quantizer, DictConfig):
        raise ConfigError(f"quantizer is {quantizer!r}; it is a file of configs/quantizer, such as quantizer=xnor")
    missing = [str(name) for name in needed if name not in quantizer and name != "widths"]
    if missing:
        raise ConfigError(
            f"the quantizer's config lacks {', '.join(missing)}: begin its file with `defaults: [fp32]`, which "
            "brings them (FP32 weights and inputs), and give it a name and a label of its own"
        )
    for key in ("weight", "input"):
        node = quantizer[key]
        if not isinstance(node, DictConfig) or "_target_" not in node or not node.get("_partial_", False):
            raise ConfigError(
                f"quantizer.{key} must name a quantizer's class and say that each layer makes its own: "
                f"{{_target_: module.Class, _partial_: true}}; got {node}"
            )
        check(node, f"quantizer.{key}")


def _check_outputs(network: Any, teacher: Any, data: Any, config: DictConfig) -> None:
    """Raise ConfigError if a network has fewer outputs than the data has classes, or the loss does not take them."""
    import torch

    from bnn.training import check_teacher

    probe = copy.deepcopy(network).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of quantizers that wait for training
        outputs = probe(data.blank()).shape[-1]
    if outputs < data.num_classes:
        option = "model.num_classes" if "num_classes" in config.model else "+model.num_classes"
        raise ConfigError(
            f"{config.model._target_} has {outputs} outputs, {data.name} has {data.num_classes} classes: give "
            f"{option}={data.num_classes}"
        )
    loss = build(config, "loss")
    try:
        check_teacher(loss, teacher, probe, data.blank())
        if teacher is None:
            loss(torch.zeros(1, outputs), torch.zeros(1, dtype=torch.int64))
    except (RuntimeError, TypeError, IndexError) as error:
        raise ConfigError(
            f"{config.loss._target_} is no loss of logits (N, classes) and labels (N,): {error}"
        ) from error


def begin(network: Any, data: Any, config: DictConfig) -> None:
    """Give a network the weights of the run that `start` names and its quantizers their steps; ConfigError if not."""
    import bnn
    from bnn.training import begin_with
    from experiments.runs import find_run, load_run

    if config.start.weights not in ("last", "best"):
        raise ConfigError(f"start.weights is last or best, got {config.start.weights!r}")
    folder = find_run(Path(str(config.start.run)), config.seed)
    if not (folder / "result.json").exists():
        raise ConfigError(f"start.run={config.start.run} has not ended: train it first, with the command that began it")
    try:
        begin_with(network, load_run(folder, config.start.weights == "best")[1])
    except ValueError as error:
        raise ConfigError(f"start.run={config.start.run}: {error}") from error
    if config.start.observer is not None:
        images = training_images(network, data, whole_number(config, "start.batches", 1), config.batch_size)
        try:
            bnn.calibrate(network, images, config.start.observer)
        except ValueError as error:
            raise ConfigError(f"start.observer={config.start.observer}: {error}") from error


def build_parts(config: DictConfig) -> Parts:
    """Build everything that a run needs; ConfigError names the key of what cannot be built.

    The initial weights follow config.seed, whatever ran before in this process.
    """
    import bnn
    from bnn.training import WeightAverage, check_trainer, seed_everything

    for key in ("optimizer", "scheduler", "classifier"):
        check(config[key], key)
    data = build(config, "data")
    seed_everything(config.seed)
    network = build(config, "model")
    set_widths(network, config)
    if bnn.takes_pixels(network):
        if data.kind != "images":
            raise ConfigError(f"{config.model._target_} takes pixels, and {data.name} is {data.kind}")
        try:
            bnn.set_pixels(network, bnn.Pixels(data.mean.tolist(), data.std.tolist(), data.max_value))
        except ValueError as error:
            raise ConfigError(f"{config.model._target_} does not take {data.name}'s pixels: {error}") from error
    try:
        costs = summary_of(network, data)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{config.model._target_} does not take {data.name}'s {data.input_shape} {NOUNS[data.kind]}: {error}"
        ) from error
    if config.start.run is None and config.start.observer is not None:
        raise ConfigError("start.observer chooses steps for the weights of start.run=FOLDER, which is not given")
    if config.start.run is not None:
        begin(network, data, config)
    teacher, of_teacher = build_teacher(config) or (None, None)
    if teacher is not None and bnn.takes_pixels(teacher.network) != bnn.takes_pixels(network):
        raise ConfigError("the teacher and the network must take the same: both pixels (model.pixels=true), or neither")
    _check_outputs(network, teacher, data, config)
    classifier = build(config, "classifier")
    if teacher is not None:
        classifier = functools.partial(classifier, teacher=teacher)
    try:
        classifier(copy.deepcopy(network)).configure_optimizers()
    except (TypeError, ValueError, ZeroDivisionError, KeyError) as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ConfigError(f"optimizer, scheduler or classifier cannot be made: {kind}{error}") from error
    given: Any = OmegaConf.to_container(config.trainer, resolve=True) if config.trainer else {}
    trainer = {str(key): value for key, value in given.items()}
    for key in ("logger", "callbacks", "profiler", "plugins", "strategy"):
        if isinstance(trainer.get(key), dict | list):
            trainer[key] = build(config, f"trainer.{key}")
    if config.ema is not None:
        WeightAverage(config.ema)
    processes = check_trainer(trainer, config.epochs, config.batch_size, Path(config.run_dir))
    augment = build(config, "augment") if "augment" in config else None
    schedules = build(config, "schedules") or []
    pruning = build_pruning(network, config)
    return Parts(data, network, costs, classifier, augment, trainer, schedules, of_teacher, processes, pruning)


def build_pruning(network: Any, config: DictConfig) -> Any:
    """Return the Pruning of a config, None without one; ConfigError if the network cannot be pruned so."""
    from bnn.training import check_pruning

    if "pruning" not in config:
        return None
    pruning = build(config, "pruning")
    try:
        check_pruning(pruning, config.epochs)
        copy.deepcopy(pruning).begin(copy.deepcopy(network))
    except ValueError as error:
        raise ConfigError(f"pruning: {error}") from error
    return pruning


def trained(config: DictConfig, parts: Parts) -> Any:
    """Train what was built from a config, or go on with it, and return the Outcome; the folder is there and held."""
    from bnn.training import Checkup, Scheduling, train

    folder = Path(config.run_dir)
    callbacks: list[Any] = [Scheduling(parts.schedules)]
    if config.doctor.every is not None:
        callbacks.append(Checkup(folder, config.doctor.every, config.classifier.latent_clip, parts.data.num_classes))
    return train(
        parts.classifier,
        parts.network,
        parts.data,
        folder,
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=config.seed,
        augment=parts.augment,
        trainer=parts.trainer,
        callbacks=callbacks,
        ema=config.ema,
        keep_best=config.keep_best,
        pruning=parts.pruning,
    )
