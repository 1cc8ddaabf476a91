"""Tokens a second of a packed decoder: python -m experiments.benchmark suite=decoder.

For each quantizer in `decoders`, or for a trained `run`, the decoder generates `tokens` tokens from one, with caches of
keys and values: packed and loaded from its file, the same decoder in PyTorch, and its FP32 twin in PyTorch, both eager.
Training changes no time. Logits are checked first; then all sides are timed in turn, in one process, with the same
number of threads.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from experiments import cli
from experiments.commands import this_command
from experiments.config_values import ConfigError
from experiments.hydra_versions import instantiate
from experiments.results import write_json
from experiments.timing import Timing, in_turn, set_threads

Row = dict[str, Any]
CHECKED = 8  # tokens whose logits are compared
# Mean difference of the logits, as a share of the largest: levels within rounding of a threshold may fall otherwise.
ALIKE = 0.01


def networks(config: DictConfig) -> Iterator[tuple[str, Any, Any]]:
    """Yield (quantizer's name, decoder, config of its model) for each decoder."""
    import torch

    from experiments.runs import find_run, load_run

    if config.run is not None:
        run_config, network = load_run(find_run(Path(config.run)))
        yield run_config.quantizer.name, network, run_config.model
        return
    sizes = {name: value for name, value in config.model.items() if isinstance(value, int)}
    for quantizer in config.decoders:
        own = compose("benchmark", ["suite=decoder", f"quantizer={quantizer}"])
        model = OmegaConf.merge(own.model, sizes)
        torch.manual_seed(0)
        network = instantiate(model, _convert_="object").eval()
        yield own.quantizer.name, network, model


def check(network: Any, packed: Any, tokens: Any) -> None:
    """RuntimeError unless the packed decoder gives the logits of PyTorch, step by step, for tokens (N, T)."""
    import numpy as np
    import torch

    held, state = network.start(len(tokens)), packed.start(len(tokens))
    with torch.inference_mode():
        for place in range(tokens.shape[1]):
            expected, held = network.step(tokens[:, place : place + 1], held)
            found = packed.step(tokens[:, place : place + 1].numpy(), state)
            difference = float(np.abs(found - expected.numpy()).mean() / expected.abs().max())
            if not difference <= ALIKE:
                raise RuntimeError(f"the packed decoder is wrong: logits of token {place} differ by {difference:.2g}")


def rows(config: DictConfig) -> Iterator[Row]:
    """Yield a row for each decoder, batch size and number of threads."""
    import bnn_kernels as bk
    import torch

    import bnn
    from experiments.runs import fp32_twin

    for name, network, model_config in networks(config):
        if not all(hasattr(network, part) for part in ("start", "step", "generate")):
            raise ConfigError(f"{type(network).__name__} is no decoder: it has no start, step and generate")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "decoder.safetensors"
            bnn.convert_step(network, torch.zeros(1, 1, dtype=torch.int64)).save(file)
            packed, size = bk.load(file), file.stat().st_size
            twin = fp32_twin(model_config)
            count = min(config.tokens, network.context - 1)
            for threads in config.threads:
                used = set_threads(threads)
                for batch in config.batch_sizes:
                    classes = network.head.out_features
                    start = torch.randint(0, classes, (batch, CHECKED), generator=torch.Generator().manual_seed(0))
                    check(network, packed, start[:, : network.context])
                    first = start[:, :1]
                    sides = {"packed": _generating(packed, first.numpy(), count)}
                    sides["pytorch"] = _generating(network, first, count)
                    if name != "fp32":
                        sides["fp32"] = _generating(twin, first, count)
                    same = sides["packed"]() == sides["pytorch"]().numpy()
                    times = in_turn(list(sides.values()), config.seconds, config.least_calls)
                    yield {
                        "name": f"{type(network).__name__} {name}",
                        "parameters": sum(p.numel() for p in network.parameters()),
                        "trained": config.run is not None,
                        "tokens": count,
                        "batch": batch,
                        "threads": used,
                        "file_bytes": size,
                        "fp32_bytes": 4 * sum(p.numel() for p in twin.parameters()),
                        "same_tokens": round(float(same[:, 1:].mean()), 4),
                        **{side: _speed(time, count * batch) for side, time in zip(sides, times, strict=True)},
                    }


def _generating(model: Any, first: Any, count: int) -> Callable[[], Any]:
    return lambda: model.generate(first, count)


def _speed(time: Timing, tokens: int) -> Row:
    return {
        "tokens_per_second": {"best": round(tokens / time.best, 1), "median": round(tokens / time.median, 1)},
        "calls": time.calls,
    }


def show(found: list[Row], title: str) -> None:
    """Print rows as a table."""
    table = Table(title=title)
    for column in ("decoder", "batch", "threads", "packed", "in PyTorch", "FP32 twin", "file kB", "same tokens"):
        table.add_column(column, justify="left" if column == "decoder" else "right")
    for row in found:
        speeds = [
            f"{row[side]['tokens_per_second']['median']:,.0f}" if side in row else ""
            for side in ("packed", "pytorch", "fp32")
        ]
        rest = f"{row['file_bytes'] / 1000:,.0f}", f"{100 * row['same_tokens']:.1f} %"
        table.add_row(row["name"], str(row["batch"]), str(row["threads"]), *speeds, *rest)
    cli.console().print(table)


def task(config: DictConfig) -> None:
    """Time and print; write the result file if one is named."""
    import bnn_kernels as bk

    from bnn.training import provenance

    found = list(rows(config))
    set_threads(1)
    origin = provenance() | {"kernels": bk.cpu_features()}
    title = f"tokens a second beside PyTorch {origin['versions']['torch']} on {origin['hardware']['cpu']}"
    show(found, title)
    if config.output is not None:
        write_json(Path(config.output), {"command": this_command(), "decoders": found, **origin})
        print(f"written: {config.output}", file=sys.stdout)
