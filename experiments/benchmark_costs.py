"""Which kernels are faster for levels of several bits on this CPU: python -m experiments.benchmark suite=costs.

The kernels read what is written here in every later process, see `bnn_kernels.ops.packed_layers.costs`; `python -m
bnn_kernels tune` is the same where only the kernels are installed.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig
from rich.progress import Progress
from rich.table import Table

from experiments import cli
from experiments.commands import this_command
from experiments.results import write_json


def task(config: DictConfig) -> None:
    """Time every kind of layer both ways, show the times, and write them for the kernels and as a result."""
    import bnn_kernels as bk
    from bnn_kernels.model import tune
    from bnn_kernels.ops.packed_layers.costs import COLUMNS, KINDS, default_file

    from bnn.training import RunError, provenance

    file = Path(config.costs_file) if config.costs_file else default_file()
    if file is None:
        raise RunError("there is no home folder to keep the costs in: give costs_file=PATH")
    tune.check_place(file)
    table = Table(title=f"sums of levels of several bits on {bk.cpu_features()['cpu']}, one thread")
    for column in ("layer", "pairs of planes", "counts us", "products us", "products from"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    found = []
    with Progress(transient=True) as progress:
        bar = progress.add_task("timing", total=len(KINDS) * len(tune.PLANES))
        for trial in tune.trials(config.seconds):
            found.append(trial)
            progress.update(bar, advance=1, description=f"timed {trial.kind}, {trial.pairs} pairs")
    costs = tune.costs_of(found)
    tune.write(costs, file)
    for kind in KINDS:
        name, fewest = kind, str(costs.fewest(kind))
        for pairs, counts, products in zip(*(costs.layers[kind][key] for key in COLUMNS), strict=True):
            table.add_row(name, str(pairs), f"{counts:,.1f}", f"{products:,.1f}", fewest)
            name = fewest = ""
    cli.console().print(table)
    print(f"written for the kernels: {file}")
    if config.output is not None:
        times = {"product": costs.product, "layers": costs.layers, "fewest": {k: costs.fewest(k) for k in KINDS}}
        write_json(
            Path(config.output), {"command": this_command(), **times, **provenance(), "kernels": bk.cpu_features()}
        )
        print(f"written: {config.output}")


def main() -> None:
    """Run `experiments.benchmark suite=costs`, whose options these are."""
    from experiments import benchmark

    sys.argv.insert(1, "suite=costs")
    benchmark.main()


if __name__ == "__main__":
    sys.exit(main())
