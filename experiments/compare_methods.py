"""Every method with the same small budget and some seeds: python -m experiments.compare_methods.

Trains what is missing, one run after the other, and writes a ledger, the best method first, with the doctor's findings;
started again it goes on where it stopped. A run that is hardly better than guessing, or whose loss is not finite, has
diverged: the status is 1 if one has and the doctor finds nothing, or if a run fails.
"""

import math
import sys
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from experiments import cli
from experiments.collect import FAILURE, read_records, state_of, without_mixtures, write_ledger
from experiments.commands import quoted, shell_command, this_command
from experiments.identity import comparable, experiment_id
from experiments.ledger_entries import make_entries
from experiments.published_numbers import per_cent
from experiments.results import has_ended, read_json, write_json
from experiments.run_records import Record, described
from paper_figures.ledger_file import Entry

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
            note, command = Path(run_config.run_dir) / FAILURE, shell_command("train", options_of(config, method, seed))
            try:
                train.run(run_config, command)
                note.unlink(missing_ok=True)
            except Exception as error:  # one broken method must not cost the others their run
                reason = f"{type(error).__name__}: {error}"
                note.parent.mkdir(parents=True, exist_ok=True)
                write_json(note, {"reason": reason, "command": command})
                failed.append(f"{run_config.run_dir}: {reason}")
                print(failed[-1], file=sys.stderr)
    return failed


def entries_of(config: DictConfig, chosen: dict[str, list[str]]) -> tuple[list[Entry], list[str]]:
    """Return the entries of methods, the best first, with what has not ended; and what was refused, and why."""
    records: list[Record] = []
    unfinished: list[Record] = []
    for method in chosen:
        label = {"label": config.more[method].label} if method in config.more else {}
        ended = {}
        for seed, run_config in runs_of(config, method).items():
            file = Path(run_config.run_dir) / "result.json"
            if file.exists() and has_ended(read_json(file)):
                ended[file] = seed
                continue
            status, reason = state_of(file.parent)
            command = shell_command("train", options_of(config, method, seed))
            run = {"seed": seed, "status": status, "reason": reason, "command": command}
            unfinished.append({**described(comparable(run_config)), "method": method, **label, "run": run})
        for record, file in zip(read_records(list(ended)), ended, strict=True):
            record["run"]["diverged"] = diverged(read_json(file))
            records.append({**record, "method": method, **label})
    kept, refused = without_mixtures(records, list(config.mixed))
    entries = make_entries(kept, unfinished)
    return sorted(
        entries, key=lambda entry: -math.inf if entry["mean"] is None else entry["mean"], reverse=True
    ), refused


def diverged(result: dict[str, Any]) -> bool:
    """Return whether a run failed: its loss is not finite or that of guessing, or its answers are hardly better."""
    guessing = 1 / result["config"]["model"].get("num_classes", 10)
    return result["accuracy"]["test"] < 2 * guessing or any(f["kind"] in _FAILED for f in result["findings"])


def show(entries: list[Entry]) -> None:
    """Print the entries in their order."""
    table = Table(title="methods with the same budget")
    for column, side in (("method", "left"), ("W/A", "left"), ("seeds", "right"), ("test %", "right"), ("+-", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    published = any(entry["published"] for entry in entries)
    if published:
        table.add_column("published %", justify="right")
    table.add_column("found by the doctor in the first run", overflow="fold")
    for entry in entries:
        mean = "" if entry["mean"] is None else f"{100 * entry['mean']:.2f}"
        spread = "" if entry["std"] is None else f"{100 * entry['std']:.2f}"
        found = "; ".join(entry["runs"][0]["findings"][:3]) if entry["runs"] else entry["status"]
        beside = [per_cent(entry["published"]["value"]) if entry["published"] else ""] if published else []
        measured = (str(len(entry["seeds"])), mean, spread)
        table.add_row(entry["method"], entry["label"], *measured, *beside, found)
    cli.console().print(table)


def task(config: DictConfig) -> None:
    """Train what is missing, then write the ledger."""
    chosen = methods(config)
    if len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"a seed stands twice in seeds={list(config.seeds)}")
    failed = [] if config.collect_only else train_missing(config)
    entries, refused = entries_of(config, chosen)
    if not any(entry["runs"] for entry in entries):
        reasons = [f"refused: {text}" for text in refused] or ["leave collect_only out to train"]
        raise ValueError("\n  ".join([f"no run under {config.folder} is finished; {reasons[0]}", *reasons[1:]]))
    show(entries)
    output = Path(config.output)
    write_ledger(entries, this_command(["collect_only"]), output)
    print(f"written: {output} and {output.with_suffix('.csv')}")
    silent = [
        entry["method"] for entry in entries if any(run["diverged"] and not run["findings"] for run in entry["runs"])
    ]
    if silent:
        failed.append(f"diverged without a finding: {', '.join(silent)}")
    failed += [f"refused: {text}" for text in refused]
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
