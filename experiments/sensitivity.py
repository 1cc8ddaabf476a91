"""Which layer needs its bits: python -m experiments.sensitivity run=PATH [bits=[1,2,4,8]] [budget=BYTES].

Takes a trained network, gives one quantized layer after the other fewer bits (LSQ for weights and inputs, calibrated on
training images, nothing is trained again), and measures what that alone costs in accuracy on the validation split. With
a budget of bytes for the weights of these layers it also finds the widths whose losses, taken as if they added up, are
least, and measures that assignment. The test split is not touched.
"""

import copy
import itertools
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.progress import track
from rich.table import Table

from experiments import cli
from experiments.commands import this_command
from experiments.results import write_json

# A layer's width: its cost in bytes, and the accuracy that is lost.
Costs = Mapping[str, Mapping[int, tuple[int, float]]]


def with_widths(network: Any, widths: Mapping[str, int], images: Iterable[Any]) -> Any:
    """Return a copy of a network whose layers of these dotted names have weights and inputs of so many bits (LSQ).

    images: batches of training inputs, by which steps begin.
    """
    import bnn
    from bnn.layers.base import make_quantizer
    from bnn.quantizers import LsqActivation, LsqWeight

    changed = copy.deepcopy(network)
    for name, bits in widths.items():
        layer = changed.get_submodule(name)
        layer.weight_quantizer = make_quantizer(partial(LsqWeight, bits=bits), "weight_quantizer", layer.weight)
        layer.input_quantizer = make_quantizer(
            partial(LsqActivation, bits=bits, signed=True), "input_quantizer", layer.weight
        )
    return bnn.calibrate(changed.eval(), images)


def accuracy_of(network: Any, data: Any, split: str = "validation") -> float:
    """Return the share of a split that a network in evaluation mode gets right."""
    import torch

    import bnn

    right = total = 0
    with torch.no_grad():
        for inputs, labels in data.batches(split, data.evaluation_batch, pixels=bnn.takes_pixels(network)):
            right += int((network(inputs).argmax(1) == labels).sum())
            total += len(labels)
    return right / total


def best_widths(costs: Costs, budget: int) -> dict[str, int]:
    """Return {layer: bits} within a budget of bytes whose losses have the least sum, exactly; of equals the smaller.

    costs: {layer: {bits: (bytes, loss)}}. ValueError if the narrowest widths are too large. Layers are joined one by
    one, and of the assignments so far those stay that no other beats in both bytes and loss.
    """
    kept: list[tuple[int, float, dict[str, int]]] = [(0, 0.0, {})]
    for layer, widths in costs.items():
        joined = [
            (size + more, loss + extra, {**chosen, layer: bits})
            for (size, loss, chosen), (bits, (more, extra)) in itertools.product(kept, widths.items())
            if size + more <= budget
        ]
        kept = []
        for found in sorted(joined, key=lambda one: one[:2]):
            if not kept or found[1] < kept[-1][1]:
                kept.append(found)
    if not kept:
        least = sum(min(size for size, _ in widths.values()) for widths in costs.values())
        raise ValueError(f"budget={budget} bytes is too small: the narrowest widths take {least}")
    return kept[-1][2]


def show(base: float, costs: Costs, bits: list[int]) -> None:
    """Print the lost accuracy of each layer and width, in points."""
    table = Table(title=f"points of validation accuracy lost by one layer alone; {100 * base:.2f} % without")
    table.add_column("layer")
    for width in bits:
        table.add_column(f"{width} bits", justify="right")
    for layer, widths in costs.items():
        table.add_row(layer, *(f"{100 * widths[width][1]:.2f}" for width in bits))
    cli.console().print(table)


def task(config: DictConfig) -> None:
    """Measure, search and write."""
    import bnn
    from bnn.layers.base import QuantLayer
    from bnn.training import provenance
    from experiments.runs import find_run, load_run

    bits = sorted(int(width) for width in config.bits)
    if not bits or bits[0] < 1 or bits[-1] > 8 or len(set(bits)) < len(bits):
        raise ValueError(f"bits must be different numbers from 1 to 8, got {list(config.bits)}")
    folder = find_run(Path(config.run))
    run_config, network = load_run(folder)
    data = instantiate(run_config.data)
    if data.kind == "text":
        raise ValueError("sensitivity takes classifiers: a language model has no accuracy of a validation split here")
    batches = data.batches("train", config.batch_size, shuffle=True, seed=0, pixels=bnn.takes_pixels(network))
    images = [inputs for inputs, _ in itertools.islice(batches, config.batches)]
    layers: dict[str, Any] = {name: layer for name, layer in network.named_modules() if isinstance(layer, QuantLayer)}
    if not layers:
        raise ValueError(f"{folder} has no quantized layer")
    base = accuracy_of(network, data)
    costs: dict[str, dict[int, tuple[int, float]]] = {}
    for name, layer in track(layers.items(), "layers", transient=True, console=cli.console()):
        accuracies = {width: accuracy_of(with_widths(network, {name: width}, images), data) for width in bits}
        weights = layer.weight.numel()
        costs[name] = {width: (-(-weights * width // 8), round(base - found, 6)) for width, found in accuracies.items()}
    show(base, costs, bits)
    content: dict[str, Any] = {
        "command": this_command(),
        "name": run_config.name,
        "quantizer": run_config.quantizer.name,
        "seed": run_config.seed,
        "data": data.name,
        "validation_accuracy": round(base, 6),
        "layers": {
            name: [{"bits": width, "bytes": size, "loss": loss} for width, (size, loss) in widths.items()]
            for name, widths in costs.items()
        },
    }
    if config.budget is not None:
        widths = best_widths(costs, config.budget)
        found = accuracy_of(with_widths(network, widths, images), data)
        size = sum(costs[name][width][0] for name, width in widths.items())
        content["assignment"] = {"widths": widths, "bytes": size, "validation_accuracy": round(found, 6)}
        words = ", ".join(f"{name} {width}" for name, width in widths.items())
        print(f"within {config.budget:,} bytes: {words} bits; {size:,} bytes, validation accuracy {found:.2%}")
    if config.output is not None:
        write_json(Path(config.output), {**content, **provenance()})
        print(f"written: {config.output}")


def main() -> None:
    """Entry point."""
    from bnn.data import DataError
    from bnn.training import RunError

    cli.run(task, "sensitivity", expected=(DataError, RunError, OSError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
