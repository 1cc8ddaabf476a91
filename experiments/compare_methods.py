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
from experiments.results import read_json, write_json

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


def folder_of(config: DictConfig, method: str, seed: int) -> Path:
    """Return the folder of a run."""
    return Path(config.folder) / method / f"seed{seed}"


def train_missing(config: DictConfig) -> list[str]:
    """Train every run that is not finished; returns one line for each that failed."""
    from experiments import train

    failed = []
    for seed in config.seeds:  # all methods once, then the next seed: a table of fewer seeds comes first
        for method, options in methods(config).items():
            folder = folder_of(config, method, seed)
            wanted = [f"experiment={config.budget}", *options, f"seed={seed}", *config.overrides]
            if config.data_root is not None:
                wanted.append(f"data.root={config.data_root}")
            run_config = compose("train", [*wanted, f"run_dir={folder}", "trainer.enable_progress_bar=false"])
            kept = [text for text in wanted if not text.startswith(train.NOT_THE_EXPERIMENT)]
            try:
                train.run(run_config, " ".join([cli.program("train"), *kept]))
            except Exception as error:  # one broken method must not cost the others their run
                failed.append(f"{folder}: {type(error).__name__}: {error}")
                print(failed[-1], file=sys.stderr)
    return failed


def row_of(config: DictConfig, method: str) -> Row | None:
    """Return the row of a method, or None if no run of it is finished."""
    files = [folder_of(config, method, seed) / "result.json" for seed in config.seeds]
    results = [read_json(file) for file in files if file.exists()]
    if not results:
        return None
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
        "label": config.more[method].label if method in config.more else results[0]["label"],
        "seeds": len(results),
        "mean": round(float(accuracy.mean()), 6),
        "std": round(float(accuracy.std(ddof=1)), 6) if len(results) > 1 else None,
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
    table.add_column("found by the doctor in the first run", overflow="fold")
    for row in rows:
        spread = "" if row["std"] is None else f"{100 * row['std']:.2f}"
        found = "; ".join(row["runs"][0]["findings"][:3])
        table.add_row(row["method"], row["label"], str(row["seeds"]), f"{100 * row['mean']:.2f}", spread, found)
    cli.console().print(table)


def task(config: DictConfig) -> None:
    """Train what is missing, then write the table."""
    from bnn.training import provenance

    chosen = methods(config)
    failed = [] if config.collect_only else train_missing(config)
    rows = [row for row in (row_of(config, method) for method in chosen) if row is not None]
    if not rows:
        raise ValueError(f"no run under {config.folder} is finished; leave collect_only out to train")
    rows.sort(key=lambda row: -row["mean"])
    show(rows)
    first = read_json(next(Path(config.folder).glob("*/seed*/result.json")))
    budget = compose("train", [f"experiment={config.budget}"])
    keys = ("name", "epochs", "batch_size", "optimizer", "scheduler", "trainer")
    given = [f"{key}={config[key]}" for key in ("budget", "methods", "overrides") if config[key]]
    write_json(
        Path(config.output),
        {
            "command": " ".join([cli.program("compare_methods"), *given]),
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
