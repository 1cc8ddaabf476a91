"""Weigh what training keeps for the backward pass, plain and packed: python -m experiments.activation_memory.

Bytes of the binarized tensors and of all saved tensors are counted by autograd's hooks. Peak memory of a step is that
of a process of its own (on Linux). Both steps are timed in turn in one process; gradients are compared first, bit for
bit.
"""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from experiments import cli, process_memory
from experiments.results import write_json
from experiments.step_memory import peak_bytes
from experiments.timing import pair


def saved_bytes(network: Any, images: Any) -> int:
    """Return the bytes that plain autograd keeps between forward and backward, parameters and the input left out."""
    import torch

    left_out = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), images)}
    storages: dict[int, int] = {}
    kept: list[Any] = []  # alive, so that no storage is counted under the address of another

    def note(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in left_out:
            storages[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(images)
    return sum(storages.values())


def check_gradients(network: Any, images: Any) -> None:
    """Raise RuntimeError unless packed and plain autograd give the same gradients, bit for bit."""
    import torch

    from bnn.memory import pack_activations

    found = []
    for packs in (False, True):
        packing = pack_activations(network) if packs else None
        network.zero_grad()
        network(images).square().mean().backward()
        found.append([parameter.grad.clone() for parameter in network.parameters()])
        if packing is not None:
            packing.remove()
    if not all(torch.equal(plain, packed) for plain, packed in zip(*found, strict=True)):
        raise RuntimeError("packed activations change the gradients: nothing to weigh")


def task(config: DictConfig) -> None:
    """Measure what the config names."""
    import torch

    from bnn.memory import pack_activations
    from bnn.training import provenance
    from experiments.steps import described, make_network, make_step, milliseconds, on_threads

    threads = on_threads(config.threads)
    network = make_network(config)
    images = torch.randn(config.batch_size, *config.input_shape, generator=torch.Generator().manual_seed(0))
    check_gradients(network, images)
    everything = saved_bytes(network, images)
    packed_network = make_network(config)
    packing = pack_activations(packed_network)
    packed_network(images)
    counts = {"binarized": packing.binarized, "windows": packing.windows}
    packing.reset()  # the steps below count elsewhere
    less = sum(count.plain - count.packed for count in counts.values())
    peaks = {}
    if process_memory.is_measured():
        plain, packed = (peak_bytes(config, packs) for packs in (False, True))
        peaks["peak_growth_bytes"] = {"plain": plain, "packed": packed, "ratio": round(plain / packed, 2)}
    else:
        print("this system does not say how much memory a process takes: the peak of a step is left out")
    ours, reference = pair(make_step(packed_network, config), make_step(network, config), config.seconds)
    content = {
        **described(config, threads),
        **{
            f"{name}_bytes": {"plain": count.plain, "packed": count.packed, "ratio": round(count.ratio, 2)}
            for name, count in counts.items()
        },
        "all_saved_bytes": {
            "plain": everything,
            "packed": everything - less,
            "ratio": round(everything / (everything - less), 2),
        },
        **peaks,
        "same_gradients": True,
        "step_ms": {"plain": milliseconds(reference), "packed": milliseconds(ours)},
        "time_ratio": {
            "best": round(ours.best / reference.best, 3),
            "median": round(ours.median / reference.median, 3),
        },
        **provenance(),
    }
    for key, words in (
        ("binarized_bytes", "binarized inputs and masks of their quantizers"),
        ("windows_bytes", "windows of Hardtanh and ReLU"),
        ("all_saved_bytes", "all that is saved"),
        ("peak_growth_bytes", "peak memory of a step"),
    ):
        row = content.get(key)
        if row is not None:
            print(
                f"{words}: {row['plain'] / 1e6:.1f} MB plain, {row['packed'] / 1e6:.1f} MB packed, {row['ratio']}x less"
            )
    print(f"time of a step: {content['time_ratio']['median']}x")
    if config.output is not None:
        write_json(Path(config.output), content)
        print(f"written: {config.output}")


def main() -> None:
    """Entry point."""
    cli.run(task, "activation_memory", expected=(OSError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
