"""The networks that the ladder takes: trained here, given with their weights, or of random weights."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose
from omegaconf import DictConfig, OmegaConf

from experiments.config_values import ConfigError
from experiments.hydra_versions import instantiate
from experiments.ladder_rungs import Rung, quantized_without_training, untrained
from experiments.layer_costs import training_images
from experiments.sweep_plan import Job


@dataclass
class Subject:
    """One FP32 network and what it is measured on.

    inputs: batches; labels: (N,) of all of them, None for random inputs. images: batches for calibration. trained: the
    network of a rung that was trained further; RunError if there is none.
    """

    seed: int
    network: Any
    inputs: list[np.ndarray]
    labels: np.ndarray | None
    images: list[Any]
    trained: Callable[[Rung], Any]

    def on(self, rung: Rung, config: DictConfig) -> Any:
        """Return the network of a rung, in evaluation mode."""
        if rung.quantizer is not None:
            return self.trained(rung)
        if rung.ptq is None:
            return self.network
        ends = config.ends if rung.name == "int4" else None
        return quantized_without_training(self.network, rung, self.images, config.observer, ends)


def untrained_subject(config: DictConfig) -> Subject:
    """Return a network of random weights and random images; ConfigError if its input's shape is not said."""
    import torch

    import bnn

    torch.manual_seed(0)
    network = instantiate(config.model, _convert_="object").eval()
    shape = config.input_shape or getattr(network, "input_shape", None)
    if shape is None:
        raise ConfigError(f"{type(network).__name__} does not say what it takes: give input_shape=[C,H,W]")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(config.batches * config.batch_size, *shape, generator=generator).split(config.batch_size)
    inputs = torch.randn(config.images, *shape, generator=generator).split(config.batch_size)
    bnn.calibration.reestimate_batch_norm(network, images[:1])

    def trained(rung: Rung) -> Any:
        quantizer = compose("train", [f"quantizer={rung.quantizer}"]).quantizer
        factories = {key: instantiate(quantizer[key], _convert_="object") for key in ("weight", "input")}
        return untrained(network, rung, images, factories)

    return Subject(0, network, [x.numpy() for x in inputs], None, list(images), trained)


def pretrained_subject(config: DictConfig) -> Subject:
    """Return a network with the weights of a file, or those that `model` brings along, and the images of a data set.

    RunError if the weights are not those of the network, ConfigError if it has no answer for each class.
    """
    import torch

    from bnn.training import load_weights

    torch.manual_seed(0)
    network = instantiate(config.model, _convert_="object").eval()
    if config.weights is not None:
        load_weights(network, Path(config.weights).expanduser())
    data, inputs, labels, images = examples(network, config.data, config)
    try:
        with torch.inference_mode():
            answered = tuple(network(images[0][:2]).shape)
    except RuntimeError as error:
        raise ConfigError(f"the network does not take {data.name}'s {tuple(images[0].shape[1:])}: {error}") from error
    if len(answered) != 2 or answered[1] < data.num_classes:
        raise ConfigError(
            f"the network answers {answered} for 2 inputs, but {data.name} has {data.num_classes} classes"
        )

    def trained(rung: Rung) -> Any:
        raise AssertionError(f"the rung {rung.name} is trained further")

    return Subject(0, network, inputs, labels, images, trained)


def examples(
    network: Any, of_data: DictConfig, config: DictConfig
) -> tuple[Any, list[np.ndarray], np.ndarray, list[Any]]:
    """Return a data set, the inputs of a split in batches, their labels (N,), and batches for calibration.

    of_data: its config; config: the ladder's. ConfigError for a data set of texts.
    """
    if config.data_root is not None:
        of_data = copy.deepcopy(of_data)
        OmegaConf.update(of_data, "root", config.data_root, force_add=True)
    data = instantiate(of_data)
    if data.kind == "text":
        raise ConfigError("the ladder takes classifiers: a language model has no accuracy of a split here")
    found = list(data.batches(config.split, min(config.batch_size, data.evaluation_batch)))
    labels = np.concatenate([labels.numpy() for _, labels in found])
    images = training_images(network, data, config.batches, config.batch_size)
    return data, [x.numpy() for x, _ in found], labels, images


def trained_subject(job: Job, jobs: list[Job], config: DictConfig) -> Subject:
    """Return the network of an FP32 run and those that were trained from it."""
    from bnn.training import RunError
    from experiments.runs import load_run

    run, network = load_run(job.folder)
    _, inputs, labels, images = examples(network, run.data, config)

    def trained(rung: Rung) -> Any:
        (of_rung,) = (other for other in jobs if (other.cell, other.seed) == (rung.name, job.seed))
        if not of_rung.ended():
            raise RunError(f"{of_rung.folder} has not ended: {of_rung.command}")
        return load_run(of_rung.folder)[1]

    return Subject(job.seed, network, inputs, labels, images, trained)
