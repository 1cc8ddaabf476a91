"""Which layer needs its bits: python -m experiments.sensitivity run=PATH [bits=[1,2,4,8]] [cost=latency] [budget=N].

Takes a trained network, gives one quantized layer after the other fewer bits (LSQ for weights and inputs, calibrated on
training images, nothing is trained again), and measures what that alone costs in accuracy on the validation split, and
with cost=latency what it saves in time on this machine. With a budget, of bytes for the weights of these layers or of
microseconds for one input, it also finds the widths whose losses, taken as if they added up, are least, and measures
that assignment. The test split is not touched. `experiments.bits_by_layer` trains what is found.
"""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from experiments import cli
from experiments.commands import this_command
from experiments.hydra_versions import instantiate
from experiments.layer_costs import (
    COSTS,
    LayerCosts,
    accuracy_of,
    best_widths,
    check_widths,
    cost_of,
    described,
    latencies_of,
    losses_of,
    training_images,
    with_latencies,
    with_widths,
)
from experiments.results import write_json


def show(base: float, costs: LayerCosts, bits: list[int]) -> None:
    """Print the lost accuracy of each layer and width, in points, and the microseconds if they are known."""
    table = Table(title=f"points of validation accuracy lost by one layer alone; {100 * base:.2f} % without")
    table.add_column("layer")
    for width in bits:
        table.add_column(f"{width} bits", justify="right")
    timed = all(one.us is not None for widths in costs.values() for one in widths.values())
    for width in bits[:-1] if timed else ():
        table.add_column(f"us at {width} - at {bits[-1]}", justify="right")
    for layer, widths in costs.items():
        times = [f"{widths[width].us:.1f}" for width in bits[:-1]] if timed else []
        table.add_row(layer, *(f"{100 * widths[width].loss:.2f}" for width in bits), *times)
    cli.console().print(table)


def in_words(amount: float, cost: str) -> str:
    """Return an amount of a cost with its unit.

    >>> in_words(40000, "bytes"), in_words(12.345, "latency")
    ('40,000 bytes', '12.3 microseconds')
    """
    return f"{amount:,.0f} bytes" if cost == "bytes" else f"{amount:,.1f} microseconds"


def check_cost(cost: str) -> None:
    """Raise ValueError unless it is one that budgets may be of."""
    if cost not in COSTS:
        raise ValueError(f"cost is {' or '.join(COSTS)}, got {cost!r}")


def task(config: DictConfig) -> None:
    """Measure, search and write."""
    from bnn.training import provenance
    from experiments.runs import find_run, load_run

    bits, cost = check_widths(config.bits), str(config.cost)
    check_cost(cost)
    run_config, network = load_run(find_run(Path(config.run)))
    data = instantiate(run_config.data)
    if data.kind == "text":
        raise ValueError("sensitivity takes classifiers: a language model has no accuracy of a validation split here")
    images = training_images(network, data, config.batches, config.batch_size)
    base, costs = losses_of(network, data, images, bits)
    reference = 0.0
    if cost == "latency":
        reference, costs = with_latencies(network, images, costs)
    show(base, costs, bits)
    content: dict[str, Any] = {
        "command": this_command(),
        "name": run_config.name,
        "model": run_config.model._target_.rpartition(".")[2],
        "quantizer": run_config.quantizer.name,
        "seeds": [run_config.seed],
        "data": data.name,
        "validation_accuracy": round(base, 6),
        **({"widest_us": reference} if cost == "latency" else {}),
        "layers": described(costs),
    }
    if config.budget is not None:
        widths = best_widths(costs, config.budget, cost, reference)
        found = accuracy_of(with_widths(network, widths, images), data)
        total = cost_of(costs, widths, cost, reference)
        content["assignment"] = {"widths": widths, "bytes": cost_of(costs, widths, "bytes")}
        if cost == "latency":
            (measured,) = latencies_of(network, images, [widths])
            content["assignment"] |= {"predicted_us": total, "measured_us": measured}
            print(f"microseconds of that assignment: {total:.1f} added up, {measured:.1f} measured")
        content["assignment"]["validation_accuracy"] = round(found, 6)
        words = ", ".join(f"{name} {width}" for name, width in widths.items())
        print(
            f"within {in_words(config.budget, cost)}: {words} bits; {in_words(total, cost)}, validation accuracy "
            f"{found:.2%}"
        )
    if config.output is not None:
        write_json(Path(config.output), {**content, **provenance()})
        print(f"written: {config.output}")


def main() -> None:
    """Entry point."""
    from bnn.converter import ConversionError
    from bnn.data import DataError
    from bnn.training import RunError

    cli.run(task, "sensitivity", expected=(ConversionError, DataError, RunError, OSError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
