"""Bits by layer, from a recipe to a front: python -m experiments.bits_by_layer options=['experiment=NAME'].

Trains a network with each seed (or takes run=PATH), measures on the validation split what each layer alone loses with
fewer bits and what it saves in time or bytes, finds the widths of least loss within each of some budgets, and trains
these assignments and the uniform widths further, all alike and from the same weights. It writes a ledger of their test
accuracies, packed files and latencies and, beside it, what was measured of the layers, from which the figure
`sensitivity` is drawn. Started again it does what is missing; what was measured of the layers stays as it was.
"""

import hashlib
import itertools
import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from experiments import cli
from experiments.collect import write_ledger
from experiments.commands import key_of, quoted, this_command
from experiments.config_values import ConfigError
from experiments.hydra_versions import instantiate
from experiments.identity import experiment_id
from experiments.layer_costs import check_widths, read_costs
from experiments.layer_plan import Plan, make_plan
from experiments.lock import run_lock
from experiments.results import has_ended, read_json, write_json
from experiments.seed_statistics import LEVEL, holm, paired
from experiments.sensitivity import check_cost
from experiments.sensitivity import show as show_layers
from experiments.sweep import entries_of, measure_latency, run_jobs, shown
from experiments.sweep_plan import Job, jobs_of
from paper_figures.ledger_file import Entry

SEEDS = (0, 1, 2)
BASE = "base"


def options_of(command: str) -> list[str]:
    """Return the options of experiments.train that a recorded command has, without its seed, folder and name.

    >>> options_of("python -m experiments.train --config-dir conf experiment=demo quantizer=fp32 seed=3")
    ['experiment=demo', 'quantizer=fp32']
    """
    words = shlex.split(command)
    given = [word for before, word in itertools.pairwise(words) if before not in ("-m", "--config-dir")]
    return [word for word in given if "=" in word and key_of(word) not in ("seed", "run_dir", "name")] + [
        word for word in given if word.startswith("~")
    ]


def jobs_for(config: DictConfig, cells: dict[str, list[str]], options: Sequence[str], seeds: list[int]) -> list[Job]:
    """Return the jobs of cells, {name: options of their own}, as those of a sweep."""
    plan = {"name": config.name, "options": list(options), "cells": cells, "convert": True}
    common = {"seeds": seeds, "only": None, "overrides": [], "data_root": config.data_root}
    return jobs_of(OmegaConf.create({"sweep": plan, **common}))


def base_jobs(config: DictConfig) -> tuple[list[Job], list[str], Path]:
    """Return the jobs of the network that all begin with, its options, and what start.run is to be."""
    from experiments.runs import find_run, load_config, seeds_of

    wanted = None if config.seeds is None else [int(seed) for seed in config.seeds]
    if config.run is None:
        options = [str(text) for text in config.options]
        jobs = jobs_for(config, {BASE: []}, options, wanted or list(SEEDS))
        return jobs, options, jobs[0].folder.parent
    folder = Path(config.run)
    there = seeds_of(folder)
    if not there:
        folder = find_run(folder)
        there = [int(load_config(folder).seed)]
        wanted = wanted or there
        folders = {there[0]: folder}
    else:
        folders = {seed: folder / f"seed{seed}" for seed in there}
    seeds = wanted or there
    if missing := sorted(set(seeds) - set(there)):
        raise ConfigError(f"run={config.run} has no run of seed {', '.join(map(str, missing))}; it has {there}")
    jobs = []
    for seed in seeds:
        file = folders[seed] / "result.json"
        if not file.exists() or not has_ended(result := read_json(file)):
            raise ConfigError(f"run={folders[seed]} has not ended: train it first, with the command that began it")
        whole = load_config(folders[seed])
        whole.run_dir = str(folders[seed])
        jobs.append(Job(BASE, seed, options_of(result["command"]), whole, True, experiment_id(whole)))
    return jobs, jobs[0].options, folder


def plan_of(config: DictConfig, jobs: list[Job]) -> Plan:
    """Return the plan, measured now unless it was before: its times would be others, and so the runs."""
    from experiments.runs import load_run

    bits = check_widths(config.bits)
    budgets = None if config.budgets is None else [float(budget) for budget in config.budgets]
    made_of: dict[str, Any] = {
        "experiment": jobs[0].experiment,
        "seeds": [job.seed for job in jobs],
        "bits": bits,
        "cost": str(config.cost),
        "budgets": budgets,
        "batches": config.batches,
        "batch_size": config.batch_size,
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:8]
    folder = Path("runs") / str(config.name) / f"plan-{digest}"
    with run_lock(folder):
        if not (folder / "plan.json").exists():
            from bnn.training import provenance

            loaded = [load_run(job.folder)[1] for job in jobs]
            given = jobs[0].config.copy()
            if config.data_root is not None:
                OmegaConf.update(given, "data.root", config.data_root, force_add=True)
            data = instantiate(given.data)
            if data.kind == "text":
                raise ConfigError("bits_by_layer takes classifiers: a language model has no accuracy to lose here")
            found = make_plan(loaded, data, bits, config.cost, budgets, config.batches, config.batch_size)
            about = {
                "name": str(config.name),
                "model": given.model._target_.rpartition(".")[2],
                "quantizer": given.quantizer.name,
                "data": data.name,
            }
            write_json(folder / "plan.json", {**about, **made_of, **found, **provenance()})
    return read_json(folder / "plan.json")


def assignment_options(assignment: dict[str, Any], bits: list[int], start: Path) -> list[str]:
    """Return the options that make an assignment of a plan from the base's."""
    widths = assignment["widths"]
    uniform = not assignment["budgets"]
    width = next(iter(widths.values())) if uniform else bits[-1]
    by_layer = ",".join(f"{name}:{width}" for name, width in widths.items())
    return [
        "quantizer=lsq8",
        f"quantizer.name={'uniform' if uniform else 'by-layer'}",
        f"quantizer.label='{assignment['label']}'",
        f"quantizer.weight.bits={width}",
        f"quantizer.input.bits={width}",
        *([] if uniform else [f"quantizer.widths={{{by_layer}}}"]),
        f"start.run={quoted(start)}",
    ]


def latency_of(entry: Entry) -> float | None:
    """Return the median, over an entry's seeds, of the microseconds of its packed network; None if none was timed."""
    times = [run["latency_us"]["median"] for run in entry["runs"] if "latency_us" in run]
    return round(statistics.median(times), 2) if times else None


def comparisons(plan: Plan, entries: list[Entry]) -> list[dict[str, Any]]:
    """Return how each assignment compares with the cheapest uniform width that costs at least as much.

    Costs are those of the plan. Test accuracies are paired over seeds; p_holm is p adjusted for the number of
    comparisons. Beside them stand the latencies of both, those of the trained networks.
    """
    by_cell = {entry["method"]: entry for entry in entries if entry["runs"]}
    key = "predicted_us" if plan["cost"] == "latency" else "bytes"
    pairs, tests = [], []
    for one in (one for one in plan["assignments"] if one["budgets"]):
        dearer = [other for other in plan["assignments"] if not other["budgets"] and other[key] >= one[key]]
        if not dearer:
            continue
        cells = one["cell"], min(dearer, key=lambda other: other[key])["cell"]
        if not all(cell in by_cell for cell in cells):
            continue
        first, second = ({run["seed"]: run["value"] for run in by_cell[cell]["runs"]} for cell in cells)
        if set(first) & set(second):
            pairs.append(cells)
            tests.append(paired(first, second))
    return [
        {
            "by_layer": first,
            "uniform": second,
            "seeds": test.seeds,
            "difference": round(test.difference, 6),
            "interval": None if test.interval is None else [round(end, 6) for end in test.interval],
            "p": None if test.p is None else round(test.p, 6),
            "p_holm": None if adjusted is None else round(adjusted, 6),
            "within_chance": adjusted is None or adjusted > 1 - LEVEL,
            "latency_us": [latency_of(by_cell[cell]) for cell in (first, second)],
        }
        for (first, second), test, adjusted in zip(pairs, tests, holm([test.p for test in tests]), strict=True)
    ]


def say(plan: Plan, entries: list[Entry], found: list[dict[str, Any]]) -> None:
    """Print the assignments, and how they compare with uniform widths."""
    by_cell = {entry["method"]: entry for entry in entries if entry["runs"]}
    first = next(iter(by_cell.values()), {"model": plan["model"], "seeds": []})
    table = Table(
        title=f"{first['model']} on {plan['data']}, {len(first['seeds'])} seeds; one input, one thread", min_width=100
    )
    columns = ("cell", "bits", "kB of weights", "us added up", "us before training", "us trained", "test %", "+-")
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:2] else "right")
    base = {"cell": BASE, "widths": {}}
    for one in (base, *plan["assignments"]):
        entry = by_cell.get(one["cell"])
        measured: tuple[float | None, ...] = (None, None, None)
        if entry is not None:
            measured = latency_of(entry), 100 * entry["mean"], None if entry["std"] is None else 100 * entry["std"]
        numbers = (one["bytes"] / 1000 if "bytes" in one else None, one.get("predicted_us"), one.get("measured_us"))
        texts = ("" if number is None else f"{number:.2f}" for number in (*numbers, *measured))
        table.add_row(one["cell"], "-".join(map(str, one["widths"].values())), *texts)
    cli.console().print(table)
    for pair in found:
        chance = "within chance" if pair["within_chance"] else f"p = {pair['p_holm']:.3g} (Holm)"
        times = "" if None in pair["latency_us"] else " ({:.1f} and {:.1f} us)".format(*pair["latency_us"])
        print(
            f"{pair['by_layer']} against {pair['uniform']}{times}: {100 * pair['difference']:+.2f} points of test "
            f"accuracy over {pair['seeds']} seeds, {chance}"
        )


def task(config: DictConfig) -> None:
    """Train, measure, search, train further and write."""
    check_cost(str(config.cost))
    bits = check_widths(config.bits)
    if len(bits) < 2:
        raise ConfigError(f"bits must be at least two widths, got {bits}")
    base, options, start = base_jobs(config)
    failed: list[str] = []
    if config.run is None:
        with shown(base) as report:
            failed = run_jobs(base, report)
    if failed:
        raise ConfigError("\n  ".join(["of the runs that all begin with:", *failed]))
    plan = plan_of(config, base)
    seeds, output = [job.seed for job in base], Path(config.output)
    layers = read_costs(plan["layers"])
    show_layers(plan["validation_accuracy"], layers, bits)
    cells = {one["cell"]: assignment_options(one, bits, start) for one in plan["assignments"]}
    fine = [str(text) for text in config.fine_tuning]
    jobs = jobs_for(config, {cell: [*given, *fine] for cell, given in cells.items()}, options, seeds)
    with shown(jobs) as report:
        failed = run_jobs([*base, *jobs], report)
    measure_latency([*base, *jobs], Path("runs") / str(config.name) / ".latency")
    entries, refused = entries_of([*base, *jobs], list(config.mixed))
    found = comparisons(plan, entries)
    say(plan, entries, found)
    command = this_command()
    beside = output.with_name(f"{output.stem}_layers.json")
    write_ledger(entries, command, output)
    write_json(beside, {"command": command, "ledger": output.name, **plan, "comparisons": found})
    print(f"written: {output}, {output.with_suffix('.csv')} and {beside}")
    for text in refused:
        print(f"refused: {text}", file=sys.stderr)
    if failed:
        print("\n".join(["error: of the jobs failed:", *failed]), file=sys.stderr)
        sys.exit(1)


def main() -> None:
    """Entry point."""
    import logging

    from bnn.converter import ConversionError
    from bnn.data import DataError
    from bnn.training import RunError

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    cli.run(task, "bits_by_layer", expected=(ConversionError, DataError, RunError, OSError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
