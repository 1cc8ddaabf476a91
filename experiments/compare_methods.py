"""Every method with the same small budget and some seeds: python -m experiments.compare_methods.

Trains what is missing, one run after the other, and writes a table of mean and spread with the doctor's findings;
started again it goes on where it stopped. A run that is hardly better than guessing, or whose loss is not finite, has
diverged: the status is 1 if one has and the doctor finds nothing, or if a run fails.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from experiments import cli
from experiments.commands import quoted, shell_command, this_command
from experiments.identity import experiment_id
from experiments.published_numbers import per_cent
from experiments.results import has_ended, read_json, write_json

Row = dict[str, Any]

# Findings that say by themselves that training failed.
_FAILED = ("not finite", "no better than guessing")


def methods(config: DictConfig) -> dict[str, list[str]]:
    """Return {method: options of experiments.train that make it}; ValueError names one that does not exist."""
    known = {file.stem: [f"quantizer={file.stem}"] for file in sorted((cli.CONFIGS / "quantizer").glob("*.yaml"))}
    known |= {str(name): list(entry.options) for name, entry in config.more.items()}
    if config.methods is None:
        return known
    unknown = set(config.methods) - set(known)
    if unknown:
        raise ValueError(f"there is no method {', '.join(sorted(unknown))}; methods are {', '.join(known)}")
    return {name: known[name] for name in config.methods}


def options_of(config: DictConfig, method: str, seed: int) -> list[str]:
    """Return the options of experiments.train for a run."""
    data = [] if config.data_root is None else [f"data.root={quoted(config.data_root)}"]
    return [f"experiment={config.budget}", *methods(config)[method], f"seed={seed}", *config.overrides, *data]


def runs_of(config: DictConfig, method: str) -> dict[int, DictConfig]:
    """Return {seed: config of the run}; the folder of a run is named by method, experiment and seed."""
    run_config = compose("train", options_of(config, method, 0))
    experiment = experiment_id(run_config)
    result = {}
    for seed in config.seeds:
        folder = Path(config.folder) / method / experiment / f"seed{seed}"
        quiet = {"seed": seed, "run_dir": str(folder), "trainer": {"enable_progress_bar": False}}
        result[seed] = OmegaConf.merge(run_config, quiet)
    return result  # type: ignore[return-value]


def train_missing(config: DictConfig) -> list[str]:
    """Train every run that has not ended; returns one line for each that failed."""
    from experiments import train

    failed = []
    runs = {method: runs_of(config, method) for method in methods(config)}
    for seed in config.seeds:  # all methods once, then the next seed: a table of fewer seeds comes first
        for method in runs:
            run_config = runs[method][seed]
            try:
                train.run(run_config, shell_command("train", options_of(config, method, seed)))
            except Exception as error:  # one broken method must not cost the others their run
                failed.append(f"{run_config.run_dir}: {type(error).__name__}: {error}")
                print(failed[-1], file=sys.stderr)
    return failed


def results_of(config: DictConfig, method: str) -> list[Row]:
    """Return the results of a method's runs that have ended."""
    files = [Path(run.run_dir) / "result.json" for run in runs_of(config, method).values()]
    return [result for result in (read_json(file) for file in files if file.exists()) if has_ended(result)]


def row_of(config: DictConfig, method: str, results: list[Row]) -> Row:
    """Return the row of a method from the results of its runs."""
    accuracy = np.array([result["accuracy"]["test"] for result in results])
    runs = [
        {
            "seed": result["seed"],
            "test_accuracy": result["accuracy"]["test"],
            "train_accuracy": result["accuracy"]["train"],
            "diverged": diverged(result),
            "findings": [": ".join(filter(None, (f["layer"], f["text"]))) for f in result["findings"]],
        }
        for result in results
    ]
    return {
        "method": method,
        "experiment": experiment_id(results[0]["config"]),
        "label": config.more[method].label if method in config.more else results[0]["label"],
        "seeds": len(results),
        "mean": round(float(accuracy.mean()), 6),
        "std": round(float(accuracy.std(ddof=1)), 6) if len(results) > 1 else None,
        "published": results[0].get("published"),
        "diverged": sum(run["diverged"] for run in runs),
        "command": results[0]["command"],
        "runs": runs,
    }


def diverged(result: Row) -> bool:
    """Return whether a run failed: its loss is not finite or that of guessing, or its answers are hardly better."""
    guessing = 1 / result["config"]["model"].get("num_classes", 10)
    return result["accuracy"]["test"] < 2 * guessing or any(f["kind"] in _FAILED for f in result["findings"])


def show(rows: list[Row]) -> None:
    """Print the rows, best first."""
    table = Table(title="methods with the same budget")
    for column, side in (("method", "left"), ("W/A", "left"), ("seeds", "right"), ("test %", "right"), ("+-", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    published = any(row["published"] for row in rows)
    if published:
        table.add_column("published %", justify="right")
    table.add_column("found by the doctor in the first run", overflow="fold")
    for row in rows:
        spread = "" if row["std"] is None else f"{100 * row['std']:.2f}"
        found = "; ".join(row["runs"][0]["findings"][:3])
        beside = [per_cent(row["published"]["value"]) if row["published"] else ""] if published else []
        measured = (str(row["seeds"]), f"{100 * row['mean']:.2f}", spread)
        table.add_row(row["method"], row["label"], *measured, *beside, found)
    cli.console().print(table)


def task(config: DictConfig) -> None:
    """Train what is missing, then write the table."""
    from bnn.training import provenance

    chosen = methods(config)
    if len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"a seed stands twice in seeds={list(config.seeds)}")
    failed = [] if config.collect_only else train_missing(config)
    results = {method: results_of(config, method) for method in chosen}
    rows = [row_of(config, method, found) for method, found in results.items() if found]
    if not rows:
        raise ValueError(f"no run under {config.folder} is finished; leave collect_only out to train")
    rows.sort(key=lambda row: -row["mean"])
    show(rows)
    first = next(found[0] for found in results.values() if found)
    budget = compose("train", [f"experiment={config.budget}", *config.overrides])
    keys = ("name", "epochs", "batch_size", "optimizer", "scheduler", "trainer")
    write_json(
        Path(config.output),
        {
            "command": this_command(["collect_only"]),
            "data": first["data"],
            "model": first["config"]["model"]["_target_"].rpartition(".")[2],
            "budget": {key: OmegaConf.to_container(budget, resolve=True)[key] for key in keys},  # type: ignore[index,call-overload]
            "missing": [name for name in chosen if name not in {row["method"] for row in rows}],
            "rows": rows,
            **provenance(),
        },
    )
    print(f"written: {config.output}")
    silent = [row["method"] for row in rows if any(run["diverged"] and not run["findings"] for run in row["runs"])]
    if silent:
        failed.append(f"diverged without a finding: {', '.join(silent)}")
    if failed:
        print("\n".join(failed), file=sys.stderr)
        sys.exit(1)


def main() -> None:
    """Entry point."""
    import logging

    from bnn.data import DataError
    from bnn.training import RunError

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    cli.run(task, "compare_methods", expected=(DataError, RunError, OSError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
