"""Latency by bits: python -m experiments.benchmark suite=widths, or suite=network_widths for whole networks.

A layer stands between two batch norms and takes and gives floats; a network takes images. Each is converted at every
width of `widths`, and each packed network must answer like its PyTorch network. Then all widths are timed in turn, in
one process and with the same number of threads, with the same topology in FP32 (PyTorch eager and frozen, each in both
memory layouts, and OpenVINO) and with engines that quantize it to INT8 (OpenVINO after NNCF, ONNX Runtime). Speed does
not depend on training, so weights are random and ranges are those of random images.
"""

import contextlib
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose
from omegaconf import DictConfig
from rich.progress import Progress
from rich.table import Table

from experiments import cli
from experiments.commands import this_command
from experiments.hydra_versions import instantiate
from experiments.results import write_json
from experiments.timing import Timing, in_turn, set_threads
from experiments.widths import Width, rises

Row = dict[str, Any]
CALIBRATION = 8  # images for quantizers and statistics of batch norm, at least


class Subject:
    """What is timed at all widths. make(weight_quantizer=..., input_quantizer=...) returns its PyTorch network.

    batches: numbers of images a call. shape: of one input, without the batch. The twin's inputs are its own, as floats
    or pixels.
    """

    def __init__(self, name: str, batches: list[int], shape: tuple[int, ...], make: Callable[..., Any], twin: Any):
        from experiments.images import random_images

        self.name, self.batches = name, batches
        self._make = make
        common = math.lcm(*batches)  # whole batches of every size
        self.calibration = random_images(twin, -(-CALIBRATION // common) * common, shape)
        self.twin = _ready(twin, self.calibration)
        self._packed: dict[Width, tuple[Any, Row]] = {}

    def images(self, batch: int) -> Any:
        """Return a batch, a tensor."""
        return self.calibration[:batch].contiguous()

    def packed(self, width: Width) -> tuple[Any, Row]:
        """Return the packed network, and its file's bytes and its kernels; RuntimeError if it answers wrongly."""
        if width not in self._packed:
            self._packed[width] = self._convert(width)
        return self._packed[width]

    def _convert(self, width: Width) -> tuple[Any, Row]:
        import torch

        import bnn

        torch.manual_seed(0)
        model = _ready(self._make(**width.quantizers()), self.calibration)
        with _kernels_taken() as kernels:
            packed = bnn.convert(model, self.images(2))
            report = bnn.check_parity(model, packed, self.images(2))
        if report.first_difference is not None:
            raise RuntimeError(f"{self.name} at {width.name} is wrong, so there is nothing to time:\n{report}")
        return packed, {"width": width.name, "nbytes": packed.nbytes, "kernels": sorted(set(kernels))}


@contextlib.contextmanager
def _kernels_taken() -> Iterator[list[str]]:
    """Collect what the layers choose that run for the first time; layers of floats choose nothing."""
    from bnn_kernels.ops.packed_layers import choice

    found: list[str] = []
    path_for = choice.path_for

    def note(*given: Any) -> Any:
        path = path_for(*given)
        form = getattr(path, "_form", None)
        name = type(path).__name__.removesuffix("Path")
        found.append(name if form is None else f"{name} {form.product}{form.lanes}")
        return path

    choice.path_for = note  # type: ignore[assignment]
    try:
        yield found
    finally:
        choice.path_for = path_for


def _ready(model: Any, images: Any) -> Any:
    """Let quantizers begin with some images, and batch norm have their statistics; returns it in evaluation mode."""
    import torch

    import bnn

    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)]
    bnn.calibrate(model.eval(), images)
    for norm in norms:
        norm.momentum = None  # the plain mean over what comes
        norm.train()
    with torch.no_grad():
        model(images)
    return model.eval()


def layer_subject(spec: dict[str, Any]) -> Subject:
    """Return a layer between two batch norms.

    spec: in, out, size (0: a linear layer), kernel, and optionally stride, groups and batch, a number or several.
    """
    from torch import nn

    from bnn.layers import QuantConv2d, QuantLinear

    channels, filters, size, kernel = (int(spec[key]) for key in ("in", "out", "size", "kernel"))
    stride, groups, batch = int(spec.get("stride", 1)), int(spec.get("groups", 1)), spec.get("batch", 1)
    batches = [int(batch)] if isinstance(batch, int | str) else [int(count) for count in batch]
    norm: Any = nn.BatchNorm2d if size else nn.BatchNorm1d
    sizes = (channels, filters, kernel, stride, kernel // 2, 1, groups) if size else (channels, filters)
    kinds: tuple[Any, Any] = (QuantConv2d, nn.Conv2d) if size else (QuantLinear, nn.Linear)

    def make(kind: Any = kinds[0], **quantizers: Any) -> Any:
        return nn.Sequential(norm(channels), kind(*sizes, bias=False, **quantizers), norm(filters))

    if size:
        name = f"conv {channels}->{filters} {size}x{size} {kernel}x{kernel}" + (f" stride {stride}" * (stride > 1))
        name += f" {groups} groups" * (groups > 1)
    else:
        name = f"linear {channels}->{filters}"
    return Subject(name, batches, (channels, size, size) if size else (channels,), make, make(kinds[1]))


def network_subject(entry: str, batches: list[int]) -> Subject:
    """Return a network of the zoo: MODEL, or MODEL/int8 with a stem of 8-bit weights on pixels, as all sides take."""
    from experiments.runs import fp32_twin

    name, _, stem = entry.partition("/")
    if stem not in ("", "int8"):
        raise ValueError(f"a network at every width is MODEL or MODEL/int8, got {entry!r}")
    overrides = [f"model={name}", "quantizer=fp32", *(["model.stem=int8"] if stem else [])]
    config = compose("benchmark", overrides).model

    def make(**quantizers: Any) -> Any:
        return instantiate(config, _convert_="object", **quantizers)

    twin = fp32_twin(config)
    return Subject(f"{type(twin).__name__}{stem and '/int8'}", batches, tuple(twin.input_shape), make, twin)


def _subjects(config: DictConfig) -> Iterator[Callable[[], Subject]]:
    for name in config.networks:
        yield partial(network_subject, name, list(config.batch_sizes))
    plain = [dict(zip(("in", "out", "size", "kernel"), entry, strict=True)) for entry in config.layers]
    for spec in [*plain, *map(dict, config.variants)]:
        yield partial(layer_subject, spec)


def _described(timing: Timing) -> Row:
    low, high = timing.quartiles
    names = {"best": timing.best, "median": timing.median, "low_quartile": low, "high_quartile": high}
    return {name: round(seconds * 1e6, 1) for name, seconds in names.items()} | {"calls": timing.calls}


def measure(subject: Subject, widths: Sequence[Width], batch: int, threads: int, config: DictConfig) -> Row:
    """Return all times of a subject in microseconds, and ratios to PyTorch's eager FP32 in its better layout."""
    import torch

    from experiments.int8_peers import NEEDED, make_int8_peer, missing
    from experiments.network_peers import has_openvino, make_peers

    count = set_threads(threads)
    images = subject.images(batch)
    # Channels last, as those peers get them that are the faster for it; the three of an image lie as images do.
    array = images.numpy()
    if array.ndim == 4 and array.shape[1] > 3:
        array = np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    row: Row = {"name": subject.name, "batch": batch, "threads": count, "left_out": {}}
    sides: dict[str, Callable[[], Any]] = {}
    facts: dict[str, Row] = {}
    for width in widths:
        packed, facts[width.name] = subject.packed(width)
        sides[width.name] = partial(packed, array)
    with torch.inference_mode():
        peers = make_peers(subject.twin, images, count, has_openvino())
    if "openvino" not in peers:
        row["left_out"]["openvino"] = "openvino not installed: pip install 'bitplanes[peers]'"
    for name in NEEDED:
        reason = missing(name)
        if reason is None:
            try:
                peer = make_int8_peer(name, subject.twin, images, subject.calibration, count)
            except RuntimeError as error:  # also of the engines
                reason = str(error).strip().splitlines()[0]
            else:
                peers[name] = peer.run
                facts[name] = {key: getattr(peer, key) for key in ("int8_layers", "layers", "correlation")}
        if reason is not None:
            row["left_out"][name] = reason
    sides |= peers
    with torch.inference_mode():
        timings = dict(zip(sides, in_turn(list(sides.values()), config.seconds, config.least_calls), strict=True))
    eager = min((timings[name] for name in peers if name.startswith("eager")), key=lambda t: t.median)

    def entry(name: str) -> Row:
        timing = timings[name]
        ratio = {"best": round(eager.best / timing.best, 2), "median": round(eager.median / timing.median, 2)}
        return {**facts.get(name, {}), "us": _described(timing), "ratio": ratio}

    row["widths"] = [entry(width.name) for width in widths]
    row["peers"] = {}
    for name in dict.fromkeys(name.partition(",")[0] for name in peers):
        layouts = [layout for layout in peers if layout.partition(",")[0] == name]
        better = min(layouts, key=lambda layout: timings[layout].median)
        row["peers"][name] = {**entry(better), "layout": better}
    row["rises"] = rises({width.name: timings[width.name].median for width in widths})
    return row


def show(rows: list[Row], title: str) -> None:
    """Print times and ratios by width and by peer, and what takes longer with fewer bits."""
    table = Table(title=title)
    for column in ("what", "batch", "threads", "bits", "us", "best", "FP32 / it", "kernels"):
        table.add_column(column, justify="left" if column in ("what", "kernels") else "right")
    for row in rows:
        entries = [(e["width"], e, ", ".join(e["kernels"])) for e in row["widths"]]
        for name, e in row["peers"].items():
            int8 = f"{e['int8_layers']} of {e['layers']} layers in INT8" if "layers" in e else e["layout"]
            entries.append((name, e, int8))
        for number, (name, e, text) in enumerate(entries):
            what = (row["name"], str(row["batch"]), str(row["threads"])) if number == 0 else ("", "", "")
            times = (f"{e['us']['median']:,.1f}", f"{e['us']['best']:,.1f}", f"{e['ratio']['median']:.2f}x")
            table.add_row(*what, name, *times, text, end_section=number == len(entries) - 1)
    cli.console().print(table)
    for row in rows:
        where = f"{row['name']}, batch {row['batch']}, {row['threads']} threads"
        for name, reason in row["left_out"].items():
            print(f"{where}: {name} is left out: {reason}")
        for pair in row["rises"]:
            print(f"{where}: {pair['fewer']} takes {pair['ratio']} times as long as {pair['more']}")
        if not row["rises"]:
            print(f"{where}: no width takes longer than one of more bits")


def task(config: DictConfig) -> None:
    """Convert, check, time and print everything; write the result file if one is named."""
    import bnn_kernels as bk

    from bnn.training import RunError, provenance
    from experiments.int8_peers import versions

    try:
        widths = [Width.parse(str(text)) for text in config.widths]
    except ValueError as error:
        raise RunError(str(error)) from None
    subjects = list(_subjects(config))
    rows: list[Row] = []
    command = this_command()
    with Progress(transient=True) as progress:
        bar = progress.add_task("", total=len(subjects))
        for make in subjects:
            progress.update(bar, description="converting")
            subject = make()
            for batch, threads in itertools.product(subject.batches, config.threads):
                progress.update(bar, description=f"timing {subject.name}, batch {batch}, threads {threads}")
                rows.append(measure(subject, widths, batch, threads, config))
            progress.advance(bar)
            origin = provenance() | {"kernels": bk.cpu_features()}
            origin["versions"] = {**origin["versions"], **versions()}
            if config.output is not None:  # after each subject: a run of all takes long
                write_json(Path(config.output), {"command": command, "rows": rows, **origin})
    set_threads(1)
    show(rows, f"latency by bits beside FP32 of PyTorch {origin['versions']['torch']} on {origin['hardware']['cpu']}")
    if config.output is not None:
        print(f"written: {config.output}")


def main() -> None:
    """Run `experiments.benchmark suite=widths`, whose options these are."""
    from experiments import benchmark

    sys.argv.insert(1, "suite=widths")
    benchmark.main()


if __name__ == "__main__":
    sys.exit(main())
