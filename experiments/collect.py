"""Finished runs to one table: python -m experiments.collect [folder=runs/NAME] [output=PATH.json].

One row a run (result.json, and conversion.json where the run was converted); the terminal shows mean and spread over
seeds. Accuracies are shares in [0, 1] in files and per cent on the terminal.
"""

import csv
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.table import Table

from experiments import cli
from experiments.results import read_json, write_json


def row_of(result_file: Path) -> dict[str, Any]:
    """Return one flat row of a run; ValueError names a file that lacks something."""
    result = read_json(result_file)
    try:
        row = {
            "command": result["command"],
            "name": result["name"],
            "quantizer": result["quantizer"],
            "label": result["label"],
            "seed": result["seed"],
            "data": result["data"]["name"],
            "model": result["config"]["model"]["_target_"].rpartition(".")[2],
            "epochs": result["epochs"],
            "train_accuracy": result["accuracy"]["train"],
            "validation_accuracy": result["accuracy"]["validation"],
            "test_accuracy": result["accuracy"]["test"],
            "parameters": result["parameters"],
            "fp32_bytes": 4 * result["parameters"],
            "train_seconds": result["train_seconds"],
            "cpu": result["hardware"]["cpu"],
            "torch": result["versions"]["torch"],
            "finished": result["finished"],
        }
        converted = result_file.with_name("conversion.json")
        if converted.exists():
            conversion = read_json(converted)
            row |= {
                "file_bytes": conversion["file_bytes"],
                "test_accuracy_packed": conversion["test_accuracy_packed"],
                "same_predictions": conversion["same_predictions"],
                "test_images": conversion["test_images"],
                "parity_ok": conversion["parity"]["ok"],
            }
    except (KeyError, TypeError) as error:
        raise ValueError(f"{result_file.parent} was written by another version: {error} is missing") from error
    return row


def group(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one summary for each (name, data, model, quantizer): mean, deviation and number of seeds, file size."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["name"], row["data"], row["model"], row["quantizer"]), []).append(row)
    result = []
    for members in groups.values():
        accuracy = np.array([row["test_accuracy"] for row in members])
        sizes = [row["file_bytes"] for row in members if "file_bytes" in row]
        checked = [row for row in members if "parity_ok" in row]
        result.append(
            {
                **{key: members[0][key] for key in ("name", "data", "model", "quantizer", "label", "fp32_bytes")},
                "seeds": len(members),
                "mean": float(accuracy.mean()),
                "std": float(accuracy.std(ddof=1)) if len(members) > 1 else None,
                "validation": float(np.mean([row["validation_accuracy"] for row in members])),
                "file_bytes": max(sizes) if sizes else None,
                "parity": all(row["parity_ok"] for row in checked) if checked else None,
            }
        )
    return result


def show(groups: list[dict[str, Any]]) -> None:
    """Print the summaries as a table."""
    table = Table(title="finished runs")
    for column in (
        "experiment",
        "data",
        "model",
        "quantizer",
        "W/A",
        "seeds",
        "test %",
        "+-",
        "val %",
        "file kB",
        "parity",
    ):
        table.add_column(column, justify="right" if column in ("seeds", "test %", "+-", "val %", "file kB") else "left")
    for g in groups:
        spread = "" if g["std"] is None else f"{100 * g['std']:.2f}"
        size = "" if g["file_bytes"] is None else f"{g['file_bytes'] / 1000:,.1f}"
        parity = {None: "", True: "ok", False: "FAILS"}[g["parity"]]
        numbers = (str(g["seeds"]), f"{100 * g['mean']:.2f}", spread, f"{100 * g['validation']:.2f}", size, parity)
        table.add_row(g["name"], g["data"], g["model"], g["quantizer"], g["label"], *numbers)
    cli.console().print(table)


def write_table(rows: list[dict[str, Any]], output: Path) -> None:
    """Write rows as JSON and, beside it, as CSV."""
    write_json(output, {"command": f"{cli.program('collect')} output={output}", "rows": rows})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    temporary = output.with_suffix(".csv.tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(output.with_suffix(".csv"))


def collect(folder: Path, output: Path | None) -> list[dict[str, Any]]:
    """Collect, print and write; return the rows."""
    from experiments.runs import find_results

    rows = [row_of(path) for path in find_results(folder)]
    show(group(rows))
    if output is not None:
        write_table(rows, output)
        print(f"written: {output} and {output.with_suffix('.csv')}")
    return rows


def task(config: DictConfig) -> None:
    """Collect what the config names."""
    collect(Path(config.folder), None if config.output is None else Path(config.output))


def main() -> None:
    """Entry point."""
    cli.run(task, "collect", expected=(OSError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
