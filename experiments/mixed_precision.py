"""Time and weigh a training step in mixed precision: python -m experiments.mixed_precision [quantizer=NAME].

The network and its FP32 twin take steps in FP32 and with products in BF16, all in turn in one process, with the same
threads, data and optimizer. Peak memory of a step is that of a process of its own (on Linux). What mixed precision
costs in accuracy is a question of training: `python -m experiments.sweep sweep=precisions`.
"""

import copy
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.progress import track
from rich.table import Table

from experiments import cli, process_memory
from experiments.config_values import ConfigError
from experiments.results import write_json
from experiments.timing import in_turn

FULL = "32-true"


def variants(config: DictConfig) -> list[tuple[str, DictConfig, str]]:
    """Return (name of the quantizer, config of the network, precision) of all that is measured; FP32 comes first."""
    from experiments.runs import fp32_twin_config
    from experiments.steps import PRECISIONS

    if unknown := [name for name in config.precisions if name not in PRECISIONS]:
        raise ConfigError(f"precisions are {', '.join(PRECISIONS)}, got {unknown[0]!r}")
    twin = copy.deepcopy(config)
    OmegaConf.update(twin, "model", fp32_twin_config(config.model), merge=False)
    networks = [("fp32", twin)]
    if config.quantizer.name != "fp32":
        networks.append((config.quantizer.name, config))
    precisions = [FULL, *(name for name in config.precisions if name != FULL)]
    return [(name, network, precision) for name, network in networks for precision in precisions]


def task(config: DictConfig) -> None:
    """Measure what the config names."""
    from bnn.training import provenance
    from experiments.step_memory import peak_bytes
    from experiments.steps import described, make_network, make_step, milliseconds, on_threads

    threads = on_threads(config.threads)
    found = variants(config)
    weighs = config.memory and process_memory.is_measured()
    peaks = [
        peak_bytes(network, precision=precision) if weighs else None
        for _, network, precision in track(found, "memory", transient=True, console=cli.console(), disable=not weighs)
    ]
    steps = [make_step(make_network(network), network, precision) for _, network, precision in found]
    timings = in_turn(steps, config.seconds * len(steps))
    rows: list[dict[str, Any]] = []
    full = timings[0]
    for (name, _, precision), timing, peak in zip(found, timings, peaks, strict=True):
        full = timing if precision == FULL else full
        ratio = {"best": round(timing.best / full.best, 3), "median": round(timing.median / full.median, 3)}
        told = {"quantizer": name, "precision": precision, "step_ms": milliseconds(timing), "of_fp32": ratio}
        rows.append({**told, "peak_growth_bytes": peak})
    table = Table(title=f"{config.model._target_.rpartition('.')[2]}, batch {config.batch_size}, {threads} threads")
    for column in ("quantizer", "precision", "ms a step", "of FP32", "peak MB"):
        table.add_column(column, justify="left" if column in ("quantizer", "precision") else "right")
    for row in rows:
        peak = row["peak_growth_bytes"]
        numbers = [f"{row['step_ms']['median']:.1f}", f"{row['of_fp32']['median']:.2f}"]
        table.add_row(row["quantizer"], row["precision"], *numbers, "" if peak is None else f"{peak / 1e6:.1f}")
    cli.console().print(table)
    if config.output is not None:
        write_json(Path(config.output), {**described(config, threads), "rows": rows, **provenance()})
        print(f"written: {config.output}")


def main() -> None:
    """Entry point."""
    cli.run(task, "mixed_precision", expected=(OSError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
