"""Runs to a ledger: python -m experiments.collect [folder=runs/NAME] [output=PATH.json].

One entry for each experiment: mean, deviation and 95 % interval over its seeds, what was published, the config, and of
each run its command, code, versions and hardware; runs that were converted have the packed file's numbers too. Options
that differ within the table are `settings`, named by their dotted keys. Runs that have not ended are named with the
reason (running, failed, stopped), and seeds of an experiment that do not belong together (other data, code or versions)
are refused. Accuracies are shares in [0, 1] in files and per cent on the terminal. The format: docs/guides/ledger.md.
"""

import csv
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from experiments import cli
from experiments.commands import quoted, shell_command
from experiments.identity import comparable
from experiments.ledger_entries import MAY_DIFFER, make_entries, mixture
from experiments.lock import is_held
from experiments.published_numbers import in_words
from experiments.results import done, has_ended, read_json, write_json
from experiments.run_records import Record, described, record_of, text_of
from experiments.stages import is_stage
from paper_figures.ledger_file import SCHEMA, VERSION, Entry, check_ledger, run_rows

# A note of what went wrong, in the folder of a run that failed within a sweep.
FAILURE = "failed.json"

# More options than this stand in one column of the terminal's table.
_OWN_COLUMNS = 3


def find_results(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the result files of runs that ended under a folder, and the folders of those that have not, both sorted.

    FileNotFoundError says what is missing; ValueError names a file that cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; train first, or give folder=PATH of the runs")
    found: list[Path] = []
    left_out: list[Path] = []
    for path in sorted(folder.rglob("result.json")):
        if not is_stage(path.parent):
            (found if ended(path) else left_out).append(path)
    left_out += [
        path
        for path in sorted(folder.rglob("config.yaml"))
        if not path.with_name("result.json").exists() and not is_stage(path.parent)
    ]
    return found, sorted({path.parent for path in left_out})


def ended(result_file: Path) -> bool:
    """Return whether a result is that of a run which is over; ValueError names one that says too little."""
    try:
        return has_ended(read_json(result_file))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{result_file.parent} was written by another version: {error} is missing") from error


def state_of(folder: Path) -> tuple[str, str]:
    """Return (status, reason) of a run that has not ended: running, failed, stopped, or missing if it never began."""
    if is_held(folder):
        return "running", "a process works on it"
    if (folder / FAILURE).exists():
        return "failed", read_json(folder / FAILURE)["reason"]
    if (folder / "result.json").exists():
        return "stopped", done(read_json(folder / "result.json"))
    if (folder / "config.yaml").exists():
        return "stopped", "it has no result.json"
    return "missing", "it has not begun"


def unfinished_record(folder: Path) -> Record:
    """Return the record of a run's folder that holds no whole result."""
    from experiments.runs import load_config

    whole = load_config(folder)
    status, reason = state_of(folder)
    command = shell_command("train", [f"run_dir={quoted(folder)}", "..."])
    if (folder / "result.json").exists():
        command = read_json(folder / "result.json")["command"]
    run = {"seed": whole.seed, "status": status, "reason": reason, "command": command}
    return {**described(comparable(whole)), "run": run}


def read_records(files: Collection[Path]) -> list[Record]:
    """Return the records of result files. ValueError if two are the same seed of the same experiment."""
    records = [record_of(file) for file in files]
    before: dict[tuple[str, int], Path] = {}
    for record, file in zip(records, files, strict=True):
        key = (record["experiment"], record["run"]["seed"])
        if key in before:
            raise ValueError(
                f"{before[key].parent} and {file.parent} are the same run twice (experiment {key[0]}, seed {key[1]}); "
                "remove one, or collect another folder"
            )
        before[key] = file
    return records


def without_mixtures(records: list[Record], allowed: Collection[str]) -> tuple[list[Record], list[str]]:
    """Return the records of experiments whose seeds belong together, and why the others are refused, a line each."""
    unknown = sorted(set(allowed) - set(MAY_DIFFER))
    if unknown:
        raise ValueError(f"mixed takes {', '.join(MAY_DIFFER)}, got {', '.join(unknown)}")
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["experiment"], []).append(record)
    reasons = {key: reason for key, found in groups.items() if (reason := mixture(found, allowed)) is not None}
    lines = [
        f"{groups[key][0]['name']} {groups[key][0]['method']} {key}: {len(groups[key])} runs: {reason}"
        for key, reason in reasons.items()
    ]
    return [record for record in records if record["experiment"] not in reasons], lines


def show(entries: list[Entry]) -> None:
    """Print the entries as a table; what is the same in all of them stands in its title."""
    keys = list(dict.fromkeys(key for entry in entries for key in entry["settings"]))
    own = keys if len(keys) <= _OWN_COLUMNS else ["settings"] if keys else []
    what = ("experiment", "name", "data", "model", "method", "label", "epochs")
    told = [{**entry, "epochs": _epochs(entry)} for entry in entries]
    same = [key for key in ("name", "model", "data", "epochs") if len({entry[key] for entry in told}) == 1]
    differ = [key for key in what if key not in same]
    common = ", ".join(f"{key} {told[0][key]}" for key in same)
    table = Table(title=f"runs ({common})" if common else "runs")
    for column in (*differ, *own):
        table.add_column({"label": "W/A"}.get(column, column), overflow="fold")
    published = ["published"] if any(entry["published"] for entry in entries) else []
    open_runs = ["not finished"] if any(entry["unfinished"] for entry in entries) else []
    for column in ("seeds", "test", "+-", "95 % interval", *published, "file kB", "parity", *open_runs):
        table.add_column(column, justify="right", no_wrap=column != "not finished")
    for entry in told:
        values = [text_of(entry["settings"].get(key)) for key in keys]
        if own == ["settings"]:
            values = [", ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))]
        beside = [_in_words(entry, (entry["published"] or {}).get("value"))] if published else []
        still = [", ".join(f"seed {run['seed']} {run['status']}" for run in entry["unfinished"])] if open_runs else []
        where = ["" if entry[key] is None else str(entry[key]) for key in differ]
        table.add_row(*where, *values, *_measured(entry, beside), *still)
    cli.console().print(table)


def _epochs(entry: Entry) -> str:
    epochs = sorted({run["epochs"] for run in entry["runs"]})
    return "-".join(map(str, dict.fromkeys((epochs[0], epochs[-1])))) if epochs else ""


def _in_words(entry: Entry, value: float | None) -> str:
    return "" if value is None else in_words(entry["metric"], value)


def _measured(entry: Entry, published: list[str]) -> list[str]:
    """Return the numbers of a line of the table."""
    interval = "" if entry["interval"] is None else " .. ".join(_in_words(entry, end) for end in entry["interval"])
    scale, digits = (100, 2) if entry["metric"] == "test_accuracy" else (1, 3)
    spread = "" if entry["std"] is None else f"{scale * entry['std']:.{digits}f}"
    sizes = [run["file_bytes"] for run in entry["runs"] if "file_bytes" in run]
    checked = [run["parity_ok"] for run in entry["runs"] if "parity_ok" in run]
    parity = "" if not checked else "ok" if all(checked) else "FAILS"
    size = f"{max(sizes) / 1000:,.1f}" if sizes else ""
    return [str(len(entry["seeds"])), _in_words(entry, entry["mean"]), spread, interval, *published, size, parity]


def write_ledger(entries: list[Entry], command: str, output: Path) -> None:
    """Write a ledger and, beside it, one line for each run as CSV."""
    from bnn.training.files import whole_file

    content: dict[str, Any] = {"schema": SCHEMA, "version": VERSION, "command": command, "entries": entries}
    check_ledger(content)
    write_json(output, content)
    rows = run_rows(entries)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with whole_file(output.with_suffix(".csv")) as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def collect(
    folder: Path, output: Path | None, files: list[Path] | None = None, mixed: Collection[str] = ()
) -> list[Entry]:
    """Collect, print and write; return the entries. files: only these results of the folder.

    FileNotFoundError if no run has ended, ValueError if none may be pooled; both say why.
    """
    files, left_out = find_results(folder) if files is None else (files, [])
    unfinished = [unfinished_record(path) for path in left_out]
    lines = [
        f"{path} is not finished: {record['run']['status']}, {record['run']['reason']}"
        for path, record in zip(left_out, unfinished, strict=True)
    ]
    if not files:
        raise FileNotFoundError(
            "\n  ".join([f"no finished run under {folder}: a run that is done has a result.json", *lines])
        )
    records, refused = without_mixtures(read_records(files), mixed)
    if not records:
        raise ValueError("\n  ".join(["no experiment has seeds that belong together:", *refused]))
    entries = make_entries(records, unfinished)
    show(entries)
    for file in files:
        result = read_json(file)
        if result.get("stopped_by"):
            print(f"{file.parent} ended early: {done(result)}")
        converted = file.with_name("conversion.json")
        if converted.exists() and read_json(converted).get("steps", result.get("steps")) != result.get("steps"):
            print(f"{file.parent} was trained further since it was converted: convert it again")
    for text in lines:
        print(f"left out: {text}", file=sys.stderr)
    for text in refused:
        print(f"refused: {text}", file=sys.stderr)
    if output is not None:
        given = [f"folder={quoted(folder)}", f"output={quoted(output)}"]
        given += [f"mixed=[{','.join(mixed)}]"] if mixed else []
        write_ledger(entries, shell_command("collect", given), output)
        print(f"written: {output} and {output.with_suffix('.csv')}")
    return entries


def task(config: DictConfig) -> None:
    """Collect what the config names."""
    output = None if config.output is None else Path(config.output)
    collect(Path(config.folder), output, mixed=list(config.mixed))


def main() -> None:
    """Entry point."""
    from bnn.training import RunError

    cli.run(task, "collect", expected=(RunError, OSError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
