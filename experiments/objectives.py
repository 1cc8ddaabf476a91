"""What a run reports to a sweeper that searches: its validation accuracy, the size of its packed file, its latency."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from experiments.config_values import ConfigError, did_you_mean
from experiments.results import read_json

# Inputs whose answers are compared before a packed network counts, and seconds for which it is timed.
PARITY_INPUTS = 16
SECONDS = 1.0


def _validation_accuracy(folder: Path) -> float:
    """Return the share of the validation split that the trained network gets right."""
    return float(read_json(folder / "result.json")["accuracy"]["validation"])


def _converted(folder: Path) -> dict[str, Any]:
    """Return the content of conversion.json; the run is converted first unless it was, with the weights of now."""
    from experiments.convert import convert_run

    there = folder / "conversion.json"
    if there.exists() and (folder / "packed.safetensors").exists():
        conversion = read_json(there)
        if conversion.get("steps") == read_json(folder / "result.json")["steps"]:
            return conversion
    content, report, passes = convert_run(folder, PARITY_INPUTS)
    if not passes:
        raise ValueError(f"{folder}: the packed network does not answer like the trained one\n{report}")
    return content


def _file_bytes(folder: Path) -> float:
    """Return the bytes of the packed network's file."""
    return float(_converted(folder)["file_bytes"])


def _packed_latency_us(folder: Path) -> float:
    """Return the median microseconds of the packed network for one input, with one thread, measured now."""
    import bnn_kernels as bk
    from bnn_kernels.model.warm import example_inputs

    from experiments.timing import in_turn

    _converted(folder)
    packed = bk.load(folder / "packed.safetensors")
    threads = bk.get_num_threads()
    bk.set_num_threads(1)
    try:
        inputs = example_inputs(packed, 1)
        (timing,) = in_turn([lambda: packed(*inputs)], SECONDS)
    finally:
        bk.set_num_threads(threads)
    return round(timing.median * 1e6, 1)


OBJECTIVES: dict[str, Callable[[Path], float]] = {
    "validation_accuracy": _validation_accuracy,
    "file_bytes": _file_bytes,
    "packed_latency_us": _packed_latency_us,
}


def check_objectives(config: DictConfig) -> None:
    """Raise ConfigError unless `objectives` is a list of names of OBJECTIVES."""
    names = config.objectives
    if not isinstance(names, ListConfig) or not names:
        raise ConfigError(f"objectives must be a list such as [validation_accuracy], got {names!r}")
    for name in names:
        if name not in OBJECTIVES:
            raise ConfigError(
                f"objectives has {name!r}, which no run reports.{did_you_mean(str(name), list(OBJECTIVES))} "
                f"There are {', '.join(OBJECTIVES)}"
            )


def values_of(folder: Path, names: ListConfig) -> float | tuple[float, ...]:
    """Return a finished run's objectives: one number, or as many as there are names."""
    values = tuple(OBJECTIVES[name](folder) for name in names)
    return values[0] if len(values) == 1 else values
