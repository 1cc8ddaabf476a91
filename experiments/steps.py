"""One training step of a network on random data, to be timed or weighed."""

from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig

from bnn.latent import center_latent_weights, clip_latent_weights
from bnn.machine import usable_cores
from bnn.optimizers import parameter_groups
from experiments.commands import this_command
from experiments.hydra_versions import instantiate

# Of products and convolutions on a CPU; parameters, quantizers and statistics stay in float32.
PRECISIONS: dict[str, torch.dtype | None] = {"32-true": None, "bf16-mixed": torch.bfloat16}


def make_network(config: DictConfig) -> Any:
    """Return the config's network with seeded weights, in training mode."""
    torch.manual_seed(0)
    return instantiate(config.model, _convert_="object").train()


def make_step(network: Any, config: DictConfig, precision: str = "32-true") -> Callable[[], None]:
    """Return a step: forward, cross-entropy, backward, SGD with momentum, latents centred and clipped as configured.

    precision: one of PRECISIONS, as trainer.precision says it.
    """
    mixed = PRECISIONS[precision]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(config.batch_size, *config.input_shape, generator=generator)
    labels = torch.randint(0, 10, (config.batch_size,), generator=generator)
    optimizer = torch.optim.SGD(parameter_groups(network), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", mixed, enabled=mixed is not None):
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        if config.quantizer.center_latents:
            center_latent_weights(network)
        if config.quantizer.latent_clip is not None:
            clip_latent_weights(network, config.quantizer.latent_clip)

    return step


def milliseconds(timing: Any) -> dict[str, Any]:
    """Return a timing for a result file."""
    return {"best": round(1e3 * timing.best, 2), "median": round(1e3 * timing.median, 2), "calls": timing.calls}


def described(config: DictConfig, threads: int) -> dict[str, Any]:
    """Return what was measured: command, network, quantizer, batch, threads."""
    return {
        "command": this_command(),
        "model": config.model._target_.rpartition(".")[2],
        "quantizer": config.quantizer.name,
        "batch_size": config.batch_size,
        "input_shape": list(config.input_shape),
        "threads": threads,
    }


def on_threads(count: int) -> int:
    """Set PyTorch's threads, 0 for all cores; returns the count."""
    torch.set_num_threads(count or usable_cores())
    return torch.get_num_threads()
