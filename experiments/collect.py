"""Runs to one table: python -m experiments.collect [folder=runs/NAME] [output=PATH.json].

One row a run (result.json, and conversion.json where the run was converted); the terminal shows mean and spread over
the seeds of each experiment. Options that differ within the table are columns, named by their dotted keys. Runs that
have not ended are named and left out. Accuracies are shares in [0, 1] in files and per cent on the terminal.
"""

import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.table import Table

from experiments import cli
from experiments.commands import quoted, shell_command
from experiments.identity import comparable, differing, experiment_id, flat, is_among
from experiments.published_numbers import per_cent
from experiments.results import done, has_ended, read_json, write_json
from experiments.stages import is_stage

Row = dict[str, Any]

# Options that other columns of the table stand for, as long as they follow from these.
_FOLLOW = (
    (("name",), ("name",)),
    (("data",), ("data",)),
    (("quantizer", "classifier.latent_clip", "classifier.center_latents", "schedules"), ("quantizer",)),
    (("model.weight_quantizer", "model.input_quantizer"), ("quantizer",)),
    (("model",), ("data", "model", "quantizer")),
)
_WHAT = ("experiment", "name", "data", "model", "quantizer", "label")

# Every row has these columns, a converted run's the last five too; all others are options that differ.
COLUMNS = (
    *("command", *_WHAT, "seed", "epochs", "steps", "stopped_by"),
    *("train_accuracy", "validation_accuracy", "test_accuracy", "parameters", "fp32_bytes", "train_seconds"),
    *("published", "published_source"),
    *("cpu", "torch", "finished"),
    *("file_bytes", "test_accuracy_packed", "same_predictions", "test_images", "parity_ok"),
)

# More options than this stand in one column of the terminal's table.
_OWN_COLUMNS = 3


def find_results(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the result files of runs that ended under a folder, sorted, and what is left out, in words.

    FileNotFoundError says what is missing; ValueError names a file that cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; train first, or give folder=PATH of the runs")
    found, left_out = [], []
    for path in sorted(folder.rglob("result.json")):
        if is_stage(path.parent):
            continue
        result = read_json(path)
        try:
            ended, what = has_ended(result), done(result)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path.parent} was written by another version: {error} is missing") from error
        if ended:
            found.append(path)
        else:
            left_out.append(f"{path.parent} is not finished: {what}")
    left_out += [
        f"{path.parent} is not finished: it has no result.json"
        for path in sorted(folder.rglob("config.yaml"))
        if not path.with_name("result.json").exists() and not is_stage(path.parent)
    ]
    if not found:
        raise FileNotFoundError(
            "\n  ".join([f"no finished run under {folder}: a run that is done has a result.json", *left_out])
        )
    return found, left_out


def row_of(result_file: Path) -> Row:
    """Return one flat row of a run, with its config under "config"; ValueError names a file that lacks something."""
    result = read_json(result_file)
    try:
        row = {
            "command": result["command"],
            "experiment": experiment_id(result["config"]),
            "name": result["name"],
            "quantizer": result["quantizer"],
            "label": result["label"],
            "seed": result["seed"],
            "data": result["data"]["name"],
            "model": result["config"]["model"]["_target_"].rpartition(".")[2],
            "epochs": result["epochs"],
            "steps": result.get("steps"),
            "stopped_by": result.get("stopped_by"),
            "train_accuracy": result["accuracy"]["train"],
            "validation_accuracy": result["accuracy"]["validation"],
            "test_accuracy": result["accuracy"]["test"],
            "parameters": result["parameters"],
            "fp32_bytes": 4 * result["parameters"],
            "train_seconds": result["train_seconds"],
            "published": result.get("published", {}).get("value"),
            "published_source": result.get("published", {}).get("source"),
            "cpu": result["hardware"]["cpu"],
            "torch": result["versions"]["torch"],
            "finished": result["finished"],
            "config": comparable(result["config"]),
        }
        converted = result_file.with_name("conversion.json")
        if converted.exists():
            conversion = read_json(converted)
            if conversion.get("steps", row["steps"]) == row["steps"]:  # else of weights that were trained further
                row |= {
                    "file_bytes": conversion["file_bytes"],
                    "test_accuracy_packed": conversion["test_accuracy_packed"],
                    "same_predictions": conversion["same_predictions"],
                    "test_images": conversion["test_images"],
                    "parity_ok": conversion["parity"]["ok"],
                }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{result_file.parent} was written by another version: {error} is missing") from error
    return row


def rows_of(result_files: Iterable[Path]) -> list[Row]:
    """Return the rows of a table: those of row_of, with the options that differ as columns instead of "config".

    ValueError if two runs are the same seed of the same experiment.
    """
    files = list(result_files)
    rows = [row_of(file) for file in files]
    before: dict[tuple[str, int], Path] = {}
    for row, file in zip(rows, files, strict=True):
        key = (row["experiment"], row["seed"])
        if key in before:
            raise ValueError(
                f"{before[key].parent} and {file.parent} are the same run twice (experiment {key[0]}, seed {key[1]}); "
                "remove one, or collect another folder"
            )
        before[key] = file
    configs = [row.pop("config") for row in rows]
    for setting in settings(rows, configs):
        for row, config in zip(rows, configs, strict=True):
            row[setting] = flat(config).get(setting)
    return rows


def settings(rows: list[Row], configs: list[dict[str, Any]]) -> list[str]:
    """Return the dotted keys that differ among the configs and do not follow from other columns of the rows."""
    options = [flat(config) for config in configs]

    def told(key: str) -> bool:
        for keys, columns in _FOLLOW:
            if is_among(key, keys):
                values: dict[tuple[Any, ...], Any] = {}
                where = [tuple(row[name] for name in columns) for row in rows]
                found = [_text(one.get(key)) for one in options]
                return all(values.setdefault(*pair) == pair[1] for pair in zip(where, found, strict=True))
        return False

    keys = [key for key in differing(configs) if key not in COLUMNS and not told(key)]
    # ${...} in the configs repeats values: optimizer.lr is classifier.optimizer.lr, epochs is scheduler.T_max.
    kept: list[str] = []
    for key in sorted(keys, key=lambda key: (key.count("."), keys.index(key))):
        others = [*kept, "epochs"]
        if not any(
            (other.rpartition(".")[2] == key.rpartition(".")[2] or other == "epochs")
            and all(_text(one.get(key)) == _text(one.get(other)) for one in options)
            for other in others
        ):
            kept.append(key)
    return sorted(kept, key=keys.index)


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def group(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return one summary for each experiment: mean, deviation and number of seeds, file size, options that differ."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["experiment"], []).append(row)
    result = []
    for members in groups.values():
        accuracy = np.array([row["test_accuracy"] for row in members])
        sizes = [row["file_bytes"] for row in members if "file_bytes" in row]
        checked = [row for row in members if "parity_ok" in row]
        first = members[0]
        epochs = sorted({row["epochs"] for row in members})
        result.append(
            {
                **{key: first[key] for key in (*_WHAT, "fp32_bytes")},
                "seeds": len({row["seed"] for row in members}),
                "epochs": "-".join(map(str, dict.fromkeys((epochs[0], epochs[-1])))),
                "published": first["published"],
                "mean": float(accuracy.mean()),
                "std": float(accuracy.std(ddof=1)) if len(members) > 1 else None,
                "validation": float(np.mean([row["validation_accuracy"] for row in members])),
                "file_bytes": max(sizes) if sizes else None,
                "parity": all(row["parity_ok"] for row in checked) if checked else None,
                "settings": {key: _text(value) for key, value in first.items() if key not in COLUMNS},
            }
        )
    return result


def show(groups: list[dict[str, Any]]) -> None:
    """Print the summaries as a table; what is the same in all of them stands in its title."""
    keys = list(dict.fromkeys(key for g in groups for key in g["settings"]))
    own = keys if len(keys) <= _OWN_COLUMNS else ["settings"] if keys else []
    same = [key for key in ("name", "model", "data", "epochs") if len({g[key] for g in groups}) == 1]
    what = [key for key in (*_WHAT, "epochs") if key not in same]
    common = ", ".join(f"{key} {groups[0][key]}" for key in same)
    table = Table(title=f"finished runs ({common})" if common else "finished runs")
    for column in (*what, *own):
        table.add_column({"label": "W/A"}.get(column, column), overflow="fold")
    published = ["published %"] if any(g["published"] is not None for g in groups) else []
    for column in ("seeds", "test %", "+-", *published, "val %", "file kB", "parity"):
        table.add_column(column, justify="right", no_wrap=True)
    for g in groups:
        values = [g["settings"].get(key, "") for key in keys]
        if own == ["settings"]:
            values = [", ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))]
        spread = "" if g["std"] is None else f"{100 * g['std']:.2f}"
        size = "" if g["file_bytes"] is None else f"{g['file_bytes'] / 1000:,.1f}"
        parity = {None: "", True: "ok", False: "FAILS"}[g["parity"]]
        beside = [per_cent(g["published"])] if published else []
        measured = (f"{100 * g['mean']:.2f}", spread, *beside, f"{100 * g['validation']:.2f}", size, parity)
        table.add_row(*(g[key] for key in what), *values, str(g["seeds"]), *measured)
    cli.console().print(table)


def write_table(rows: list[Row], folder: Path, output: Path) -> None:
    """Write rows as JSON and, beside it, as CSV."""
    from bnn.training.files import whole_file

    command = shell_command("collect", [f"folder={quoted(folder)}", f"output={quoted(output)}"])
    write_json(output, {"command": command, "rows": rows})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with whole_file(output.with_suffix(".csv")) as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def collect(folder: Path, output: Path | None, files: list[Path] | None = None) -> list[Row]:
    """Collect, print and write; return the rows. files: only these results of the folder."""
    files, left_out = find_results(folder) if files is None else (files, [])
    rows = rows_of(files)
    show(group(rows))
    for file, row in zip(files, rows, strict=True):
        if row["stopped_by"]:
            print(f"{file.parent} ended early: {done(read_json(file))}")
        if file.with_name("conversion.json").exists() and "file_bytes" not in row:
            print(f"{file.parent} was trained further since it was converted: convert it again")
    for text in left_out:
        print(f"left out: {text}", file=sys.stderr)
    if output is not None:
        write_table(rows, folder, output)
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
