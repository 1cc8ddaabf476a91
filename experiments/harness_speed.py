"""Time training by the harness beside a bare PyTorch loop: python -m experiments.harness_speed [quantizer=NAME].

Both train the same network on the same batches, a step of each in turn, in one process; their weights must be equal in
the end, bit for bit. The ratio is the bare loop's time over the harness's: 1 if Lightning, the learning curve, the
checkpoints and the doctor cost nothing.
"""

import copy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from experiments import cli
from experiments.commands import key_of
from experiments.results import write_json

RATE, MOMENTUM, SEED = 0.01, 0.9, 0


def bare_steps(network: Any, data: Any, batch_size: int, config: DictConfig) -> Callable[[int, int], None]:
    """Return step(epoch, number): what one writes by hand, with the loss and the right answers summed up.

    The order of the images is that of the harness; the rest is this loop's own.
    """
    from bnn.latent import center_latent_weights, clip_latent_weights

    images, labels = data.train.images, data.train.labels
    mean, std = data.mean.reshape(1, -1, 1, 1), data.std.reshape(1, -1, 1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM)
    clip, centers = config.quantizer.latent_clip, config.quantizer.center_latents
    total, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    order = torch.zeros(0, dtype=torch.int64)

    def step(epoch: int, number: int) -> None:
        nonlocal total, right, order
        if number == 0:
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED * 1_000_003 + epoch))
        index = order[number * batch_size : (number + 1) * batch_size]
        x, y = (images[index].float() / 255 - mean) / std, labels[index]
        logits = network(x)
        loss = torch.nn.functional.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if centers:
            center_latent_weights(network)
        if clip is not None:
            clip_latent_weights(network, clip)
        total, right = total + loss.detach(), right + (logits.detach().argmax(1) == y).sum()

    return step


class _InTurn(Callback):
    """Lets the bare loop take its step before each step of the harness, and times both.

    A step of the harness lasts from the end of the bare one to the start of the next batch: hooks and loading too.
    """

    def __init__(self, bare: Callable[[int, int], None]):
        self._bare = bare
        self._since: float | None = None
        self.seconds: dict[str, list[float]] = {"bare": [], "harness": []}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self.seconds["harness"].append(now - self._since)
        start = time.perf_counter()
        self._bare(trainer.current_epoch, batch_idx)
        self._since = time.perf_counter()
        if batch_idx > 0:  # the first of an epoch draws the order
            self.seconds["bare"].append(self._since - start)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._since = None


def measure(config: DictConfig) -> dict[str, Any]:
    """Return {"bare_ms", "harness_ms", "ratio"}: best and median of both; RuntimeError if the weights differ."""
    from functools import partial

    from bnn.data.image_data import ImageData, Split
    from bnn.latent import center_latent_weights, clip_latent_weights
    from bnn.training import Checkup, Classifier, train
    from experiments.steps import make_network

    draws = torch.Generator().manual_seed(SEED)

    def split(count: int) -> Split:
        shape = (count, *config.input_shape)
        return Split(torch.randint(0, 256, shape, dtype=torch.uint8, generator=draws), torch.arange(count) % 10)

    data = ImageData("noise", split(config.steps * config.batch_size), split(10), split(10), 10)
    network = make_network(config)
    other = copy.deepcopy(network)
    if config.quantizer.center_latents:
        center_latent_weights(other)
    if config.quantizer.latent_clip is not None:
        clip_latent_weights(other, config.quantizer.latent_clip)  # as the harness does before the first step
    turns = _InTurn(bare_steps(other, data, config.batch_size, config))
    quantizer = config.quantizer
    classifier = partial(
        Classifier,
        optimizer=partial(torch.optim.SGD, lr=RATE, momentum=MOMENTUM),
        latent_clip=quantizer.latent_clip,
        center_latents=quantizer.center_latents,
    )
    with tempfile.TemporaryDirectory() as folder:
        watching = [] if config.doctor is None else [Checkup(Path(folder), config.doctor)]
        train(
            classifier, network, data, Path(folder), epochs=config.epochs, batch_size=config.batch_size, seed=SEED,
            trainer={"accelerator": "cpu", "enable_progress_bar": False}, callbacks=[turns, *watching],
        )  # fmt: skip
    for (name, value), mine in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
        if not torch.equal(value, mine):
            raise RuntimeError(f"the two loops did not do the same: {name} differs")
    found = {side: np.array(values) for side, values in turns.seconds.items()}
    milliseconds = {
        f"{side}_ms": {
            "best": round(1e3 * float(values.min()), 2),
            "median": round(1e3 * float(np.median(values)), 2),
            "mean": round(1e3 * float(values.mean()), 2),
            "steps": len(values),
        }
        for side, values in found.items()
    }
    ratio = {
        "best": round(float(found["bare"].min() / found["harness"].min()), 4),
        "median": round(float(np.median(found["bare"]) / np.median(found["harness"])), 4),
        "mean": round(float(found["bare"].mean() / found["harness"].mean()), 4),
    }
    return {**milliseconds, "ratio": ratio}


def _configs(config: DictConfig) -> list[DictConfig]:
    """Return the configs to measure: those of the quantizers in `also`, all else being equal, and the config itself."""
    given = [text for text in HydraConfig.get().overrides.task if key_of(text) != "quantizer"]
    return [*(compose("harness_speed", [*given, f"quantizer={name}"]) for name in config.also), config]


def task(config: DictConfig) -> None:
    """Measure, print, and write the file that is named."""
    from bnn.training import provenance
    from experiments.steps import described, on_threads

    threads = on_threads(config.threads)
    rows = []
    for one in _configs(config):
        found = measure(one)
        bare, harness, ratio = found["bare_ms"], found["harness_ms"], found["ratio"]
        print(
            f"{one.quantizer.name}: bare loop {bare['median']:.1f} ms a step, harness {harness['median']:.1f} ms, "
            f"equal weights; bare over harness {ratio['median']:.3f} (of means {ratio['mean']:.3f})"
        )
        rows.append({"quantizer": one.quantizer.name, **found})
    if config.output is not None:
        conditions = {key: value for key, value in described(config, threads).items() if key != "quantizer"}
        write_json(Path(config.output), {**conditions, "doctor": config.doctor, "rows": rows, **provenance()})
        print(f"written: {config.output}")


def main() -> None:
    """Entry point."""
    cli.run(task, "harness_speed", expected=(OSError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
