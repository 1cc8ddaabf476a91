"""Time packed networks and binary layers beside PyTorch FP32: python -m experiments.benchmark [run=PATH].

The result is checked first; then both sides are timed in turn, in one process, with the same number of threads.
PyTorch gets its better memory layout. Ratios are PyTorch's time over ours, of best times and of medians.
"""

import copy
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.progress import Progress
from rich.table import Table

from experiments import benchmark_costs, benchmark_decoder, benchmark_networks, benchmark_widths, cli
from experiments.benchmark_kernels import binary_layers
from experiments.commands import this_command
from experiments.hydra_versions import instantiate
from experiments.results import write_json
from experiments.roofline import roofline
from experiments.timing import pair, set_threads

Row = dict[str, Any]


def compare(name: str, packed: Any, reference: Any, images: Any, threads: int, seconds: float) -> Row:
    """Time packed(images) against the better layout of reference(images); one row of the result."""
    import torch

    array = images.numpy()
    layouts = [(reference, images)]
    if images.ndim == 4:
        last = copy.deepcopy(reference).to(memory_format=torch.channels_last)
        layouts.append((last, images.to(memory_format=torch.channels_last)))
    rows = []
    with torch.inference_mode():
        for module, given in layouts:

            def reference_call(module: Any = module, given: Any = given) -> Any:
                return module(given)

            rows.append(pair(lambda: packed(array), reference_call, seconds / len(layouts)))
    # Our side's samples of both pairs count; PyTorch's are those of its better layout.
    best_ours = min(row[0].best for row in rows)
    fp32 = min((row[1] for row in rows), key=lambda t: t.median)
    ours = next(row[0] for row in rows if row[1] is fp32)
    return {
        "name": name,
        "batch": len(images),
        "threads": threads,
        "packed_us": {"best": round(best_ours * 1e6, 1), "median": round(ours.median * 1e6, 1)},
        "fp32_us": {"best": round(fp32.best * 1e6, 1), "median": round(fp32.median * 1e6, 1)},
        "ratio": {"best": round(fp32.best / best_ours, 2), "median": round(fp32.median / ours.median, 2)},
        "calls": ours.calls,
    }


def networks(config: DictConfig, folder: Path | None = None) -> Iterable[Row]:
    """Yield rows for each batch size and thread count of a run's network, or of an untrained one."""
    import bnn
    from experiments.images import random_images
    from experiments.runs import fp32_twin, load_run

    if not config.batch_sizes:
        return
    if folder is None:
        model_config = config.model
        network = instantiate(config.model, _convert_="object").eval()
        shape, name = tuple(config.input_shape), f"{type(network).__name__} {config.quantizer.name}, untrained"
    else:
        run_config, network = load_run(folder)
        model_config = run_config.model
        name = f"{type(network).__name__} {run_config.quantizer.name}"
        shape = tuple(instantiate(run_config.data).input_shape)
    images = random_images(network, max(config.batch_sizes), shape)
    packed = bnn.convert(network, images)
    report = bnn.check_parity(network, packed, images)
    if report.first_difference is not None:
        raise RuntimeError(f"the packed network is wrong, so there is nothing to time:\n{report}")
    twin = fp32_twin(model_config)
    for threads in config.threads:
        count = set_threads(threads)
        for batch in config.batch_sizes:
            yield compare(name, packed, twin, images[:batch], count, config.seconds)
            if config.own_layers:
                yield from own_layers(name, packed, twin, images[:batch], count, config.seconds / 4)


LAYER_STEPS = ("float_conv", "float_linear", "binary_conv", "binary_linear")


def own_layers(name: str, packed: Any, twin: Any, images: Any, threads: int, seconds: float) -> Iterable[Row]:
    """Yield one row for each convolution and linear layer of a network, alone: packed step against FP32 module."""
    import torch

    values: dict[str, Any] = packed.enter(images.numpy())

    def keep(register: str, value: Any) -> Any:
        values[register] = value
        return value

    packed.trace(images.numpy(), replace=keep)
    modules = [(path, m) for path, m in twin.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    inputs: dict[str, Any] = {}
    hooks = [m.register_forward_pre_hook(lambda m, x, path=path: inputs.update({path: x[0]})) for path, m in modules]
    with torch.inference_mode():
        twin(images)
    for hook in hooks:
        hook.remove()
    steps = [index for index, spec in enumerate(packed.steps) if spec.op in LAYER_STEPS]
    for index, (path, module) in zip(steps, modules, strict=True):
        given = [values[register] for register in packed.steps[index].inputs]

        def run(_x: Any, index: int = index, given: list[Any] = given) -> Any:
            return packed.run_step(index, *given)

        yield compare(f"{name}: {path} ({packed.steps[index].op})", run, module, inputs[path], threads, seconds)


def show(rows: list[Row], title: str) -> None:
    """Print rows as a table."""
    table = Table(title=title)
    for column in (
        "what",
        "batch",
        "threads",
        "packed us",
        "FP32 us",
        "ratio of medians",
        "of best times",
        "float to float",
    ):
        table.add_column(column, justify="left" if column == "what" else "right")
    for row in rows:
        times = [f"{row[side]['median']:,.1f}" for side in ("packed_us", "fp32_us")]
        ratios = [f"{row['ratio'][kind]:.2f}x" for kind in ("median", "best")]
        floats = f"{row['floats_ratio']['median']:.2f}x" if "floats_ratio" in row else ""
        table.add_row(row["name"], str(row["batch"]), str(row["threads"]), *times, *ratios, floats)
    cli.console().print(table)


def task(config: DictConfig) -> None:
    """Time and print; write the result file if one is named."""
    import bnn_kernels as bk

    from bnn.training import provenance
    from experiments.network_peers import has_openvino
    from experiments.runs import find_run

    if config.costs:
        return benchmark_costs.task(config)
    if config.decoders:
        return benchmark_decoder.task(config)
    if config.widths:
        return benchmark_widths.task(config)
    if config.networks:
        return benchmark_networks.task(config)
    folder = None if config.run is None else find_run(Path(config.run))
    rows: dict[str, list[Row]] = {"networks": [], "layers": []}
    with Progress(transient=True) as progress:
        bar = progress.add_task("timing", total=None)
        for kind, source in (("networks", networks(config, folder)), ("layers", binary_layers(config))):
            for row in source:
                rows[kind].append(row)
                progress.update(bar, advance=1, description=f"timed {row['name']}")
    set_threads(1)
    origin = provenance() | {"kernels": bk.cpu_features(), "roofline": roofline()}
    if has_openvino():
        origin["versions"] = {**origin["versions"], "openvino": version("openvino")}
    title = f"packed beside PyTorch {origin['versions']['torch']} FP32 on {origin['hardware']['cpu']}"
    show(rows["networks"] + rows["layers"], title)
    if config.output is not None:
        write_json(
            Path(config.output),
            {"command": this_command(), **rows, **origin},
        )
        print(f"written: {config.output}")


def main() -> None:
    """Entry point."""
    from bnn.converter import ConversionError
    from bnn.data import DataError
    from bnn.training import RunError

    cli.run(task, "benchmark", expected=(ConversionError, DataError, RunError, OSError))


if __name__ == "__main__":
    sys.exit(main())
