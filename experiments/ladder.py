"""From FP32 to one bit: python -m experiments.ladder run=PATH | model=NAME weights=FILE data=NAME.

Takes a network in FP32, trained here, given with its weights or of random ones, and puts it on every rung: floats of
32 and 16 bits, integers of 8 and 4 bits without training, then, trained further from its weights, 8, 4 and 2 bits,
ternary, binary weights, and binary weights and inputs. Each rung runs on our kernels and, where they have it, in
PyTorch, ONNX Runtime, OpenVINO and torchao. Measured are bytes on disk, resident memory, accuracy, how close the
answers are to those in FP32, latency with each number of threads, energy where the CPU tells it, and how many layers
really run on integers. All packed networks are first compared with PyTorch. Trained rungs are finished runs: started
again the command trains only what is missing.
"""

import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.progress import track
from rich.table import Table

from experiments import cli
from experiments.bits_by_layer import base_jobs, jobs_for
from experiments.collect import write_ledger
from experiments.commands import key_of, quoted, this_command
from experiments.config_values import ConfigError, whole_number
from experiments.ladder_ledger import with_untrained
from experiments.ladder_measures import agreement, answers, compared, latencies, memory
from experiments.ladder_rungs import RUNGS, Rung, chosen, plain, with_rounded_weights
from experiments.ladder_subjects import Subject, pretrained_subject, trained_subject, untrained_subject
from experiments.results import write_json
from experiments.sweep import entries_of, run_jobs, shown
from experiments.sweep_plan import Job
from experiments.timing import set_threads

Row = dict[str, Any]
ENGINES = ("packed", "pytorch", "onnxruntime", "openvino", "torchao")
PARITY_INPUTS = 8
# PyTorch works out quantized layers exactly, which takes several times as long as floats.
COMPARED_NUMBERS = 2**25
# Numbers of the images that it takes at a time.
PART_NUMBERS = 2**20
# What a row has of each seed.
_OF_SEEDS = ("accuracy", "agreement_with_fp32", "kl_from_fp32", "agreement_with_pytorch")


def jobs_of(config: DictConfig, rungs: list[Rung]) -> tuple[list[Job], list[Job]]:
    """Train what is missing; return the jobs of the FP32 network and those of the rungs trained from it."""
    base, options, start = base_jobs(config)
    if config.run is None:
        with shown(base) as report:
            failed = run_jobs(base, report)
        if failed:
            raise ConfigError("\n  ".join(["of the runs in FP32:", *failed]))
    fine = [str(text) for text in config.fine_tuning]
    cells = {
        rung.name: [
            f"quantizer={rung.quantizer}",
            f"start.run={quoted(start)}",
            *calibrated(rung, config),
            *prepared(rung, base[0].config),
            *fine,
        ]
        for rung in rungs
        if rung.quantizer is not None and (rung.prepared is None or takers(rung, config))
    }
    if not cells:
        return base, []
    # Those of its quantizer are of no use to another one, and some, as ~quantizer.weight.bits, cannot be.
    others = [text for text in options if not key_of(text).startswith("quantizer.")]
    seeds = [job.seed for job in base]
    by_rung = {job.cell: job for job in jobs_for(config, cells, others, seeds[:1])}
    for rung in rungs:
        if rung.rectified and takes_place_of_relu(base[0].config, by_rung[rung.name].config):
            cells[rung.name] += rung.rectified
    jobs = jobs_for(config, cells, others, seeds)
    for job in jobs:
        job.convert = RUNGS[job.cell].prepared is None
    with shown(jobs) as report:
        run_jobs(jobs, report)
    return base, jobs


def takes_place_of_relu(base: DictConfig, quantized: DictConfig) -> bool:
    """Return whether a network has a ReLU in full precision that it leaves to its quantizers otherwise."""
    from torch import nn

    from experiments.steps import make_network

    with_relus, without = (dict(make_network(config).named_modules()) for config in (base, quantized))
    return any(isinstance(m, nn.ReLU) and not isinstance(without.get(name), nn.ReLU) for name, m in with_relus.items())


def calibrated(rung: Rung, config: DictConfig) -> list[str]:
    """Return the options by which training begins with the steps of `bnn.calibrate`, where levels are evenly spaced.

    And stays near them: with the rate of the weights Adam moves a step of 8 bits by as much as itself.
    """
    return [f"start.observer={config.observer}", "classifier.step_rates=true"] if rung.evenly_spaced else []


def prepared(rung: Rung, base: DictConfig) -> list[str]:
    """Return the options by which a library's own way of training takes the network of a run in FP32."""
    if rung.prepared is None:
        return []
    own_name = [f"quantizer.name={rung.name}", f"quantizer.label='{rung.bits} {rung.name}'"]
    return [f"model._target_={rung.prepared}", f"+model.of={base.model._target_}", *own_name]


def takers(rung: Rung, config: DictConfig) -> list[str]:
    """Return the engines of a rung that are asked for, can be had and run the rung's own network.

    Others get the FP32 network and quantize it themselves.
    """
    from experiments.engines import ENGINES as BY_NAME
    from experiments.engines import missing

    asked = [name for name in rung.engines if name.partition(" ")[0] in config.engines]
    own = [name for name in asked if name.startswith("packed") or rung.prepared is not None]
    return [name for name in own if missing(BY_NAME[name]) is None]


def compared_inputs(subject: Subject, asked: int | None) -> list[np.ndarray]:
    """Return the first batches of a subject's inputs, on which packed networks are compared with PyTorch.

    asked: how many inputs, None for all as long as they hold no more than COMPARED_NUMBERS.
    """
    first, total = subject.inputs[0], sum(map(len, subject.inputs))
    count = min(total, asked or max(PARITY_INPUTS, COMPARED_NUMBERS // first[0].size))
    starts = np.cumsum([0, *map(len, subject.inputs)])
    return [x[: count - start] for x, start in zip(subject.inputs, starts, strict=False) if start < count]


def measured(
    engine: Any, model: Any, subject: Subject, exact: np.ndarray, folder: Path, asked: int | None = None
) -> Row:
    """Build a network for an engine in an empty folder and return what its answers are like.

    asked: see `compared_inputs`. RuntimeError if a packed network does not answer like PyTorch.
    """
    import torch

    import bnn
    from experiments.engines import bytes_on_disk

    example = torch.from_numpy(subject.inputs[0][:PARITY_INPUTS])
    engine.build(model, example, subject.images, folder)
    loaded = engine.load(folder, set_threads(0))
    found = answers(loaded.predict, subject.inputs)
    row = {
        "layers": loaded.layers,
        "integer_layers": loaded.integer_layers,
        "file_bytes": bytes_on_disk(folder),
        **compared(found, exact, subject.labels),
    }
    if engine.name.startswith("packed"):
        reference = with_rounded_weights(model, engine.name)
        report = bnn.check_parity(reference, loaded.predict, example)
        if report.first_difference is not None:
            raise RuntimeError(f"the packed network does not answer like PyTorch:\n{report}")
        of_torch = torch_answers(reference, compared_inputs(subject, asked))
        row["agreement_with_pytorch"] = round(agreement(found[: len(of_torch)], of_torch), 6)
        row["compared"] = len(of_torch)
    return row


def torch_answers(network: Any, inputs: list[np.ndarray]) -> np.ndarray:
    """Return the logits of a network in PyTorch on batches of inputs, which it takes in small parts.

    The bit planes of large maps of many images are more than a cache holds.
    """
    import torch

    count = max(1, PART_NUMBERS // inputs[0][0].size)
    parts = [x[i : i + count] for x in inputs for i in range(0, len(x), count)]
    with torch.inference_mode():
        return answers(lambda x: network(torch.from_numpy(x)).numpy(), parts)


def rows_of(subject: Subject, rungs: list[Rung], config: DictConfig, folder: Path) -> list[Row]:
    """Return a row for each rung and engine, built in folder/RUNG/ENGINE; those that failed say why."""
    import bnn
    from bnn.training import RunError
    from experiments.engines import ENGINES as BY_NAME
    from experiments.engines import missing

    if bnn.takes_pixels(subject.network):
        raise ConfigError(
            "the ladder takes networks of floats: this one takes pixels, train it with model.pixels=false"
        )
    exact = torch_answers(subject.network, subject.inputs)
    exact_network = plain(subject.network)
    rows = []
    for rung in track(rungs, f"seed {subject.seed}", transient=True, console=cli.console()):
        names = [name for name in rung.engines if name.partition(" ")[0] in config.engines]
        ours, failure = None, None
        of_ours = takers(rung, config)
        if of_ours:
            try:
                ours = subject.on(rung, config)
            except RunError as error:  # its training failed, and said why
                failure = str(error)
        for name in names:
            engine = BY_NAME[name]
            row: Row = {"rung": rung.name, "bits": rung.bits, "engine": name}
            reason = failure if name in of_ours and failure else missing(engine)
            if reason is None:
                target = folder / rung.name / name.replace(" ", "_")
                target.mkdir(parents=True)
                try:
                    model = ours if name in of_ours else exact_network
                    row |= measured(engine, model, subject, exact, target, config.compared)
                except Exception as error:
                    if name.partition(" ")[0] in ("packed", "pytorch"):
                        raise
                    # of the libraries' own kinds, any of them
                    reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            rows.append(row if reason is None else row | {"failed": reason})
    return rows


def joined(found: list[list[Row]]) -> list[Row]:
    """Return the rows of several seeds as one list, with lists of what each seed has of its own."""
    joint = []
    for same in zip(*found, strict=True):
        failed = next((row for row in same if "failed" in row), None)
        seeds = {name: [row[name] for row in same] for name in _OF_SEEDS if name in same[0]}
        joint.append(failed if failed is not None else {**same[0], **seeds})
    return joint


def add_costs(rows: list[Row], folder: Path, example: np.ndarray, config: DictConfig) -> None:
    """Give rows, in place, the memory, latency and energy of what was built in a folder."""
    from bnn.machine import usable_cores
    from experiments.engines import ENGINES as BY_NAME

    there = [row for row in rows if "failed" not in row]
    built = [(BY_NAME[row["engine"]], folder / row["rung"] / row["engine"].replace(" ", "_")) for row in there]
    for row, (engine, where) in zip(
        there, track(built, "memory", transient=True, console=cli.console(), disable=not config.memory), strict=True
    ):
        row["memory"] = memory(engine, where, example) if config.memory else None
        row["latency"] = []
    for threads in config.threads:
        if threads > usable_cores():
            print(f"{threads} threads are left out: there are {usable_cores()} cores")
            continue
        for row, found in zip(
            there, latencies(built, example, threads, config.seconds, config.least_calls), strict=True
        ):
            row["latency"].append(found)


def show(rows: list[Row], title: str) -> None:
    """Print the rows, means over the seeds, and what could not be measured."""
    there = [row for row in rows if "failed" not in row]
    exact: list[Any] = next((row["accuracy"] for row in there if row["rung"] == "fp32"), [None])
    told = None not in exact
    answered = Table(title=f"answers: {title}")
    for column in ("rung", "W/A", "engine", "integer layers", *(["accuracy %", "lost"] if told else []), "as FP32 %"):
        answered.add_column(column, justify="left" if column in ("rung", "W/A", "engine") else "right")
    answered.add_column("KL from FP32", justify="right")
    for row in there:
        integer = f"{row['integer_layers']} of {row['layers']}"
        accuracy = []
        if told:
            lost = fmean(exact) - fmean(row["accuracy"])
            accuracy = [f"{100 * fmean(row['accuracy']):.2f}", f"{round(100 * lost, 2) + 0.0:.2f}"]  # no -0.00
        answered.add_row(
            *(row["rung"], row["bits"], row["engine"]),
            f"[red]{integer}[/red]" if quantized_nothing(row) else integer,
            *accuracy,
            f"{100 * fmean(row['agreement_with_fp32']):.2f}",
            f"{fmean(row['kl_from_fp32']):.2g}",
        )
    cli.console().print(answered)
    show_costs(there, title)
    for row in rows:
        if "failed" in row:
            print(f"{row['rung']}, {row['engine']}: {row['failed']}")
        elif quantized_nothing(row):
            print(f"{row['rung']}, {row['engine']}: none of {row['layers']} layers runs on integers")


def show_costs(rows: list[Row], title: str) -> None:
    """Print bytes on disk, resident memory, that beyond the libraries' own, latency and energy."""
    counts = [one["threads"] for one in rows[0]["latency"]] if rows else []
    energy = any(one["energy_uj"] is not None for row in rows for one in row["latency"])
    table = Table(title=f"costs: {title}")
    columns = ["rung", "W/A", "engine", "kB", "MB", "own MB"]
    for count in counts:
        columns += [f"us p50 x{count}", f"p90 x{count}", *([f"uJ x{count}"] if energy else [])]
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:3] else "right", no_wrap=True)
    for row in rows:
        memory_of = row["memory"]
        resident = ["", ""]
        if memory_of is not None:
            beyond = memory_of["resident_bytes"] - memory_of["imports_bytes"]
            resident = [f"{number / 1e6:,.1f}" for number in (memory_of["resident_bytes"], beyond)]
        times = []
        for one in row["latency"]:
            times += [
                f"{one['p50_us']:,.1f}",
                f"{one['p90_us']:,.1f}",
                *([f"{one['energy_uj']:,.0f}"] if energy else []),
            ]
        table.add_row(row["rung"], row["bits"], row["engine"], f"{row['file_bytes'] / 1000:,.1f}", *resident, *times)
    cli.console().print(table)


def quantized_nothing(row: Row) -> bool:
    """Return whether a network whose inputs should have few bits multiplies floats alone."""
    return row["integer_layers"] == 0 and not row["bits"].endswith("/32")


def check(config: DictConfig) -> list[Rung]:
    """Return the rungs that are asked for; ConfigError says what is wrong with the options."""
    sources = [name for name in ("run", "options", "model") if OmegaConf.select(config, name) is not None]
    if len(sources) != 1:
        raise ConfigError(
            "name one network: run=PATH of a run in FP32, options=['experiment=NAME'] to train one, or model=NAME, of "
            f"random weights or with weights=FILE and data=NAME; got {', '.join(sources) or 'none'}"
        )
    if unknown := sorted(set(config.engines) - set(ENGINES)):
        raise ConfigError(f"engines are {', '.join(ENGINES)}, got {unknown[0]!r}")
    if config.compared is not None:
        whole_number(config, "compared", 1)
    given = [name for name in ("weights", "data") if OmegaConf.select(config, name) is not None]
    if given and sources != ["model"]:
        raise ConfigError(f"{given[0]} goes with model=NAME: a run brings its own")
    if given == ["weights"]:
        raise ConfigError("weights=FILE takes data=NAME beside it, whose images the network is measured on")
    if given:
        trained = [name for name in config.rungs or [] if name in RUNGS and RUNGS[name].quantizer is not None]
        if trained:
            raise ConfigError(
                f"the rung {trained[0]} is trained further: give run=PATH or options=[...] of a network trained here"
            )
        return chosen(config.rungs, train=False)
    rungs = chosen(config.rungs, config.train or sources == ["model"])
    # Of a network of random weights the quantizers of ours can be had untrained.
    return [rung for rung in rungs if sources != ["model"] or rung.prepared is None]


def subject_of_model(config: DictConfig) -> Subject:
    """Return `model`: with the images of `data`, or of random weights."""
    return untrained_subject(config) if OmegaConf.select(config, "data") is None else pretrained_subject(config)


def data_name(config: DictConfig) -> str | None:
    """Return what results call the data of a config, None without data."""
    if OmegaConf.select(config, "data") is None:
        return None
    name: str = config.data.get("name") or config.data._target_.rpartition(".")[2]
    return name


def task(config: DictConfig) -> None:
    """Train, build, measure and write."""
    import bnn_kernels as bk

    from bnn.training import RunError, provenance
    from experiments.engines import ENGINES as BY_NAME
    from experiments.engines import versions

    rungs = check(config)
    base: list[Job] = []
    jobs: list[Job] = []
    if OmegaConf.select(config, "model") is None:
        base, jobs = jobs_of(config, rungs)
    found = []
    # On Windows a file that an engine has mapped cannot be removed yet.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        for i in range(max(1, len(base))):  # of one seed after the other: networks may be large
            subject = trained_subject(base[i], jobs, config) if base else subject_of_model(config)
            found.append(rows_of(subject, rungs, config, Path(temporary) / str(i)))
        rows = joined(found)
        example = subject.inputs[0][: config.batch]
        add_costs(rows, Path(temporary) / "0", np.ascontiguousarray(example), config)
    model = type(subject.network).__name__
    data = data_name(base[0].config if base else config)
    origin = provenance() | {"kernels": bk.cpu_features()}
    origin["versions"] = {**origin["versions"], **versions(BY_NAME.values())}
    on = "of random weights" if data is None else f"on {data}"
    on += f", {len(base)} seed{'s' * (len(base) > 1)}" if base else ""
    show(rows, f"{model} {on}; batch {config.batch}, {origin['hardware']['cpu']}")
    content: dict[str, Any] = {
        "command": this_command(),
        "model": model,
        "data": data,
        "seeds": [job.seed for job in base],
        "weights": None if config.weights is None else Path(config.weights).name,
        "split": None if data is None else config.split,
        "inputs": sum(map(len, subject.inputs)),
        "batch": config.batch,
        "calibration_images": sum(map(len, subject.images)),
        "rows": rows,
    }
    if config.output is not None:
        write(Path(config.output), content, origin, base, jobs, config)
    if unfinished := [str(job.folder) for job in jobs if not job.ended()]:
        raise RunError("\n  ".join(["of the trainings failed, which have a row that says so:", *unfinished]))


def write(
    output: Path, content: dict[str, Any], origin: dict[str, Any], base: list[Job], jobs: list[Job], config: DictConfig
) -> None:
    """Write a result, and beside it the ledger of what was trained for it and of the packed rungs without training."""
    if base:
        entries, refused = entries_of([*base, *jobs], [])
        entries = with_untrained(entries, content["rows"], base, config, content["command"], origin)
        content["ledger"] = f"{output.stem}_ledger.json"
        write_ledger(entries, this_command(), output.with_name(content["ledger"]))
        print("\n".join(f"refused: {text}" for text in refused), end="", file=sys.stderr)
    write_json(output, {**content, **origin})
    print(f"written: {output}")


def main() -> None:
    """Entry point."""
    import logging

    from bnn.converter import ConversionError
    from bnn.data import DataError
    from bnn.training import RunError

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    cli.run(task, "ladder", expected=(ConversionError, DataError, RunError, OSError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
