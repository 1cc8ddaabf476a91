"""Peak memory of one training step, in a process of its own."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments import process_memory

_MALLOC = "MALLOC_MMAP_THRESHOLD_"


def peak_bytes(config: DictConfig, packs: bool = False, precision: str = "32-true") -> int:
    """Return the growth of peak memory by one training step in a fresh process; what fails there is raised here.

    config: as `experiments.steps` takes it. packs: whether activations are packed.
    """
    resolved = OmegaConf.to_container(config, resolve=True)
    # The C library gives every tensor's memory back at once, or the peak would be that of its free lists.
    before = os.environ.get(_MALLOC)
    os.environ[_MALLOC] = "65536"
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            return process.submit(_growth, resolved, packs, precision).result()  # type: ignore[arg-type]
    finally:
        os.environ.pop(_MALLOC)
        if before is not None:
            os.environ[_MALLOC] = before


def _growth(config: dict[str, Any], packs: bool, precision: str) -> int:
    """Return the growth of this process's peak memory by a training step, in bytes."""
    from bnn.memory import pack_activations
    from experiments.steps import make_network, make_step, on_threads

    node = OmegaConf.create(config)
    assert isinstance(node, DictConfig)
    on_threads(node.threads)
    network = make_network(node)
    if packs:
        pack_activations(network)
    # A step with two images first: what PyTorch allocates once is no activation.
    make_step(network, OmegaConf.merge(node, {"batch_size": 2}), precision)()  # type: ignore[arg-type]
    step = make_step(network, node, precision)
    before = process_memory.resident_bytes()
    step()
    return process_memory.peak_bytes() - before
