"""Whole networks beside FP32: python -m experiments.benchmark suite=networks [networks=[lenet5,vgg_small]].

An entry is MODEL, MODEL/QUANTIZER or MODEL/QUANTIZER/int8, with a stem of 8-bit weights on pixels; all sides take uint8
then, and normalize.
For each network: its file, the time to load it, peak memory, and for each batch size and number of threads the latency
of the packed network, of PyTorch FP32 (eager and frozen, each in both memory layouts) and of OpenVINO FP32. Weights
and statistics are as of a trained network (bnn.models.trained_like). The answers are checked first; then all sides are
timed in turn, in one process, with the same number of threads.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig
from rich.progress import Progress
from rich.table import Table

from experiments import cli, process_memory
from experiments.commands import this_command
from experiments.hydra_versions import instantiate
from experiments.results import write_json
from experiments.timing import in_turn, set_threads

Row = dict[str, Any]
PEERS = ("eager", "frozen", "openvino")
CHECKED = 8  # images that the parity report runs


def _compose(entry: str) -> DictConfig:
    name, quantizer, stem, *_ = [*entry.split("/"), "", ""]
    stems = [f"model.stem={stem}"] if stem else []
    return compose("benchmark", [f"model={name}", f"quantizer={quantizer or 'xnor'}", *stems])


class Network:
    """One entry of `networks`, built, converted, checked and saved; RuntimeError if it does not answer like PyTorch."""

    def __init__(self, entry: str, batch: int, folder: Path):
        import bnn_kernels as bk
        import torch

        import bnn
        from experiments.images import random_images
        from experiments.runs import fp32_twin

        config = _compose(entry)
        torch.manual_seed(0)
        model = instantiate(config.model, _convert_="object")
        self.images = random_images(model, max(batch, CHECKED), model.input_shape)
        bnn.models.trained_like(bnn.calibrate(model, self.images[:CHECKED]), self.images[:CHECKED])
        packed = bnn.convert(model, self.images)
        report = bnn.check_parity(model, packed, self.images[:CHECKED])
        if report.first_difference is not None:
            raise RuntimeError(f"the packed {entry} is wrong, so there is nothing to time:\n{report}")
        self.file = folder / f"{entry.replace('/', '_')}.safetensors"
        packed.save(self.file)
        start = time.perf_counter()
        self.packed = bk.load(self.file)
        load_ms = (time.perf_counter() - start) * 1e3
        self.twin = bnn.models.trained_like(fp32_twin(config.model), self.images[:CHECKED])
        tensors = [t for t in self.twin.state_dict().values() if t.is_floating_point()]
        self.facts: Row = {
            # Tables and figures call a network by what is before the blank.
            "name": f"{type(model).__name__}{'/int8' * bnn.takes_pixels(model)} {config.quantizer.name}",
            "input_shape": list(model.input_shape),
            "same_predictions": report.agreement,
            "file_bytes": self.file.stat().st_size,
            "fp32_bytes": sum(t.numel() * 4 for t in tensors),
            "load_ms": round(load_ms, 2),
        }

    def memory(self, batch: int) -> Row:
        """Return the peak memory of the packed network and of its FP32 twin, each in a process of its own.

        {} where the system does not measure it.
        """
        from experiments.network_peers import frozen
        from experiments.peak_memory import measure

        if not process_memory.is_measured():
            return {}
        shape = tuple(self.images.shape[1:])
        scripted = self.file.with_suffix(".pt")
        frozen(self.twin, self.images[:batch], scripted)
        pixels = self.packed.input_dtypes == ["uint8"]
        files = {"packed": self.file, "fp32": scripted}
        sides = {kind: measure(kind, file, batch, shape, pixels) for kind, file in files.items()}
        scripted.unlink()
        return {"batch": batch, **sides}

    def latency(self, batch: int, threads: int, config: DictConfig) -> Row:
        """Return the times of all sides on one batch with some threads."""
        import torch

        from experiments.network_peers import has_openvino, make_peers

        count = set_threads(threads)
        images = self.images[:batch].contiguous()
        array = images.numpy()
        with torch.inference_mode():
            peers = make_peers(self.twin, images, count, has_openvino())
            sides = {"packed": lambda: self.packed(array), **peers}
            timings = in_turn(list(sides.values()), config.seconds, config.least_calls)
        found = dict(zip(sides, timings, strict=True))
        ours = found.pop("packed")
        row: Row = {"name": self.facts["name"], "batch": batch, "threads": count, "calls": ours.calls}
        row["packed_us"] = _microseconds(ours)
        for peer in PEERS:
            layouts = {name: t for name, t in found.items() if name.partition(",")[0] == peer}
            if layouts:
                name, best = min(layouts.items(), key=lambda item: item[1].median)
                ratio = {"best": round(best.best / ours.best, 2), "median": round(best.median / ours.median, 2)}
                row[peer] = {**_microseconds(best), "layout": name, "ratio": ratio}
        return row


def _microseconds(timing: Any) -> dict[str, Any]:
    quartiles = [round(seconds * 1e6, 1) for seconds in timing.quartiles]
    return {"best": round(timing.best * 1e6, 1), "median": round(timing.median * 1e6, 1), "quartiles": quartiles}


def _settings(config: DictConfig) -> Iterator[tuple[int, int]]:
    from bnn.machine import usable_cores

    cores = usable_cores()
    for threads in config.threads:
        if threads > cores:
            print(f"{threads} threads are left out: there are {cores} cores")
            continue
        for batch in config.batch_sizes:
            yield batch, threads


def show(networks: list[Row], rows: list[Row], title: str) -> None:
    """Print what was found as two tables."""
    table = Table(title=title)
    for column in ("network", "batch", "threads", "packed ms", "eager ms", "frozen ms", "OpenVINO ms", "ratios"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        peers = [row.get(peer) for peer in PEERS]
        times = [f"{peer['median'] / 1e3:,.2f}" if peer else "-" for peer in peers]
        ratios = " ".join(f"{peer['ratio']['median']:.1f}x" if peer else "-" for peer in peers)
        ours = f"{row['packed_us']['median'] / 1e3:,.2f}"
        table.add_row(row["name"], str(row["batch"]), str(row["threads"]), ours, *times, ratios)
    cli.console().print(table)
    table = Table(title="Files and memory (peak of a process, and what it needs beyond its imports)")
    for column in ("network", "file kB", "FP32 kB", "load ms", "packed MB", "FP32 MB"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for network in networks:
        sides = [network["memory"].get(side) for side in ("packed", "fp32")]
        memory = [
            f"{side['peak_bytes'] / 1e6:,.0f} ({(side['peak_bytes'] - side['imports_bytes']) / 1e6:,.0f})"
            if side
            else "-"
            for side in sides
        ]
        sizes = [f"{network[key] / 1e3:,.0f}" for key in ("file_bytes", "fp32_bytes")]
        table.add_row(network["name"], *sizes, f"{network['load_ms']:.1f}", *memory)
    cli.console().print(table)


def task(config: DictConfig) -> None:
    """Build, check, time and print all networks; write the result file if one is named."""
    import bnn_kernels as bk

    from bnn.training import provenance
    from experiments.network_peers import has_openvino

    settings = list(_settings(config))
    peer = has_openvino()
    if not peer:
        print("OpenVINO is not installed, its column stays empty: pip install 'bitplanes[peers]'")
    if not process_memory.is_measured():
        print("this system does not say how much memory a process takes, so memory is left out")
    networks: list[Row] = []
    rows: list[Row] = []
    command = this_command()
    origin = provenance() | {"kernels": bk.cpu_features()}
    if peer:
        from importlib.metadata import version

        origin["versions"] = {**origin["versions"], "openvino": version("openvino")}
    # On Windows a file that a network has mapped cannot be removed yet.
    with Progress(transient=True) as progress, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bar = progress.add_task("", total=len(config.networks) * (len(settings) + 1))
        for entry in config.networks:
            progress.update(bar, description=f"converting {entry}")
            network = Network(entry, max(config.batch_sizes), Path(folder))
            networks.append({**network.facts, "memory": network.memory(min(config.batch_sizes))})
            progress.advance(bar)
            for batch, threads in settings:
                progress.update(bar, description=f"timing {entry}, batch {batch}, threads {threads}")
                rows.append(network.latency(batch, threads, config))
                progress.advance(bar)
            if config.output is not None:  # after each network: a run of all takes long
                origin |= {"finished": provenance()["finished"]}
                write_json(Path(config.output), {"command": command, "networks": networks, "latency": rows, **origin})
    show(networks, rows, f"packed beside FP32 of PyTorch {origin['versions']['torch']} on {origin['hardware']['cpu']}")
    if config.output is not None:
        print(f"written: {config.output}")


def main() -> None:
    """Run `experiments.benchmark suite=networks`, whose options these are."""
    from experiments import benchmark

    sys.argv.insert(1, "suite=networks")
    benchmark.main()


if __name__ == "__main__":
    sys.exit(main())
