"""Quantize a trained network without training: python -m experiments.post_training run=PATH [bits=[8/8,4/4]].

Takes a network that was trained in floats, gives all its layers integers of so many bits, weights with a step a channel
and inputs with a zero point, chooses the ranges on training images by each observer, and measures what that costs, also
with each method of `bnn.calibration` on top. Every network is converted too, and what its integer kernels predict is
compared with what PyTorch predicts. Of a folder with seed0, seed1, ... all runs are measured.
"""

import functools
import re
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import DictConfig
from rich.progress import track
from rich.table import Table

from experiments import cli
from experiments.commands import this_command
from experiments.hydra_versions import instantiate
from experiments.layer_costs import training_images
from experiments.results import write_json

METHODS = ("equalize", "bias", "adaround", "dynamic")
# Weights of at most so many bits are rounded by AdaRound.
ADAROUND_BITS = 4


def widths_of(bits: str) -> tuple[int, int]:
    """Return the bits of weights and inputs; ValueError unless both are from 2 to 8.

    >>> widths_of("4/8")
    (4, 8)
    """
    found = re.fullmatch(r"([2-8])/([2-8])", str(bits))
    if found is None:
        raise ValueError(f"bits are pairs W/A from 2/2 to 8/8 such as 4/8, got {bits!r}")
    return int(found[1]), int(found[2])


def quantized(network: Any, bits: str, ends: int | None, dynamic: bool = False) -> Any:
    """Return a copy of a network with integers in all layers.

    ends: bits of weights and inputs of the first and the last layer, None for those of the others. dynamic: scales of
    inputs that follow them. ValueError if a layer is quantized already.
    """
    import copy

    import bnn
    from bnn.layers.base import QuantLayer
    from bnn.quantizers import AbsmaxActivation, AffineActivation, FullPrecision, LsqWeight

    def quantizers(weight_bits: int, input_bits: int) -> dict[str, Any]:
        inputs = AbsmaxActivation if dynamic else AffineActivation
        return {
            "weight_quantizer": functools.partial(LsqWeight, bits=weight_bits, per_channel=True),
            "input_quantizer": functools.partial(inputs, bits=input_bits),
        }

    general = quantizers(*widths_of(bits))
    network = copy.deepcopy(network)
    for path, layer in network.named_modules():
        if isinstance(layer, QuantLayer):
            if not all(isinstance(q, FullPrecision) for q in (layer.weight_quantizer, layer.input_quantizer)):
                raise ValueError(f"{path} is quantized already: post_training takes a network that was trained in FP32")
            layer.set_quantizers(**general)
    rules: Any = {} if ends is None else {end: quantizers(ends, ends) for end in ("first", "last")}
    return bnn.quantize(network, **general, skip=(), rules=rules)


def prepared(network: Any, images: list[Any], bits: str, observer: str, method: str | None, config: DictConfig) -> Any:
    """Return the quantized network of one row, in evaluation mode."""
    import bnn
    from bnn import calibration

    if method == "equalize":
        network = calibration.equalize(network)
    model = quantized(network, bits, config.ends, dynamic=method == "dynamic")
    bnn.calibrate(model, images, observer, config.weight_observer)
    if method == "bias":
        calibration.correct_bias(model, network, images)
    if method == "adaround":
        calibration.adaptive_rounding(model, network, images, bits=ADAROUND_BITS, iterations=config.iterations)
    return model.eval()


def rows_of(config: DictConfig) -> list[tuple[str, str, str | None]]:
    """Return (bits, observer, method or None) of all rows; ValueError for a method that does not exist."""
    unknown = set(config.methods) - set(METHODS)
    if unknown:
        raise ValueError(f"methods are {', '.join(METHODS)}, got {min(unknown)!r}")
    rows: list[tuple[str, str, str | None]] = []
    for bits in config.bits:
        weight_bits, _ = widths_of(bits)
        rows += [(str(bits), observer, None) for observer in config.observers]
        rows += [
            (str(bits), config.observer, method)
            for method in config.methods
            if method != "adaround" or weight_bits <= ADAROUND_BITS
        ]
    return rows


def measured(network: Any, model: Any, data: Any, split: str) -> dict[str, Any]:
    """Return accuracies of PyTorch and of the integer kernels, and how often predictions are those of the floats."""
    import torch

    import bnn

    pixels = bnn.takes_pixels(model)
    packed = None
    total = right = right_packed = same = same_packed = 0
    with torch.no_grad():
        for inputs, labels in data.batches(split, data.evaluation_batch, pixels=pixels):
            if packed is None:
                packed = bnn.convert(model, inputs[:1])
            exact, found = network(inputs).argmax(1), model(inputs).argmax(1)
            on_kernels = torch.from_numpy(packed(inputs.numpy())).argmax(1)
            total += len(labels)
            right += int((found == labels).sum())
            right_packed += int((on_kernels == labels).sum())
            same += int((found == exact).sum())
            same_packed += int((on_kernels == found).sum())
    assert packed is not None
    return {
        "accuracy": round(right / total, 6),
        "accuracy_packed": round(right_packed / total, 6),
        "agreement_with_fp32": round(same / total, 6),
        "agreement_of_packed": round(same_packed / total, 6),
        "payload_bytes": packed.stored_bytes,
    }


def runs_of(folder: Path) -> list[Path]:
    """Return the runs of all seeds that lie directly in a folder, or the one that it names; RunError if none."""
    from experiments.runs import find_run, seeds_of

    return [folder / f"seed{seed}" for seed in seeds_of(folder)] or [find_run(folder)]


def joined(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the same row of several runs as one, with lists of what was measured."""
    names = ("accuracy", "accuracy_packed", "agreement_with_fp32", "agreement_of_packed")
    return {**rows[0], **{name: [row[name] for row in rows] for name in names}}


def show(base: list[float], rows: list[dict[str, Any]], split: str) -> None:
    """Print the rows, means over the runs."""
    exact = fmean(base)
    table = Table(title=f"accuracy on the {split} split, mean of {len(base)}; {100 * exact:.2f} % in FP32")
    for column in ("W/A", "observer", "method", "accuracy", "lost", "as FP32", "packed = PyTorch", "bytes"):
        table.add_column(column, justify="left" if column in ("W/A", "observer", "method") else "right")
    for row in rows:
        accuracy = fmean(row["accuracy"])
        table.add_row(
            *(row["bits"], row["observer"], row["method"] or "", f"{100 * accuracy:.2f} %"),
            f"{round(100 * (exact - accuracy), 2) + 0.0:.2f}",  # no -0.00
            *(f"{100 * fmean(row[name]):.2f} %" for name in ("agreement_with_fp32", "agreement_of_packed")),
            f"{row['payload_bytes']:,}",
        )
    cli.console().print(table)


def task(config: DictConfig) -> None:
    """Quantize, measure and write."""
    from bnn.training import provenance
    from experiments.layer_costs import accuracy_of
    from experiments.runs import load_run

    rows = rows_of(config)
    base: list[float] = []
    found: list[list[dict[str, Any]]] = []
    runs = [load_run(folder) for folder in runs_of(Path(config.run))]
    for run_config, network in track(runs, "runs", transient=True, console=cli.console()):
        data = instantiate(run_config.data)
        if data.kind == "text":
            raise ValueError("post_training takes classifiers: a language model has no accuracy of a split here")
        images = training_images(network, data, config.batches, config.batch_size)
        base.append(round(accuracy_of(network, data, config.split), 6))
        found.append([])
        for bits, observer, method in rows:
            model = prepared(network, images, bits, observer, method, config)
            row = {"bits": bits, "observer": observer, "method": method}
            found[-1].append(row | measured(network, model, data, config.split))
    joint = [joined([of_run[i] for of_run in found]) for i in range(len(rows))]
    show(base, joint, config.split)
    if config.output is None:
        return
    content = {
        "command": this_command(),
        "name": run_config.name,
        "model": run_config.model._target_.rpartition(".")[2],
        "seeds": [one.seed for one, _ in runs],
        "epochs": run_config.epochs,
        "data": data.name,
        "split": config.split,
        "calibration_images": sum(map(len, images)),
        "weight_observer": config.weight_observer,
        "ends": config.ends,
        "accuracy_fp32": base,
        "rows": joint,
    }
    write_json(Path(config.output), {**content, **provenance()})
    print(f"written: {config.output}")


def main() -> None:
    """Entry point."""
    from bnn.converter import ConversionError
    from bnn.data import DataError
    from bnn.training import RunError

    cli.run(task, "post_training", expected=(ConversionError, DataError, RunError, OSError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
