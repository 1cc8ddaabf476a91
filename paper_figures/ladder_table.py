"""The rungs of a ladder as a table, Markdown or LaTeX, for ResNet50 beside the numbers that overviews of INT8 repeat.

bitplanes figures ladder_table [--results FILE] [--output TABLE.md or .tex] [--published resnet50]

`bitplanes ladder output=FILE` wrote the results. Sizes and times are those of its machine, shares are means over seeds;
what an engine could not run, or a library ran in floats though it should not, has a line that says so.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from paper_figures.text_table import latex_table, markdown_table, write_table

DEFAULT_RESULTS = Path("results") / "ladder_resnet50.json"
DEFAULT_OUTPUT = Path("results") / "tables" / "ladder_resnet50.md"
Row = dict[str, Any]
# Megabytes, milliseconds and points of accuracy lost, by rung, as articles on quantization give them for ResNet50 on
# ImageNet; they name neither the machine nor the batch.
PUBLISHED = {
    "resnet50": {"fp32": ("97", "85", "0"), "fp16": ("48", "63", "< 1"), "int8": ("24", "42", "< 2")},
}


def read(path: Path) -> dict[str, Any]:
    """Return a result of experiments.ladder; SystemExit names a bad file."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        told = {"model", "data", "seeds", "inputs", "batch", "hardware", "rows"} <= set(content)
        known = all({"rung", "bits", "engine"} <= set(row) for row in content["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"error: {path} is no result of experiments.ladder: {error!r}") from None
    if not told or not known:
        raise SystemExit(f"error: {path} is no result of experiments.ladder")
    return content


def table(content: dict[str, Any], published: str | None = None) -> tuple[str, list[str], list[list[str]]]:
    """Return (title, columns, cells) of a result; published: a name of PUBLISHED whose numbers stand beside."""
    there = [row for row in content["rows"] if "failed" not in row]
    counts = [one["threads"] for one in there[0]["latency"]] if there else []
    exact: list[Any] = next((row["accuracy"] for row in there if row["rung"] == "fp32"), [None])
    told = None not in exact
    beside = PUBLISHED[published] if published else {}
    columns = ["rung", "engine", "W/A", "integer layers", "MB"]
    columns += [f"ms, {count} thread{'s' * (count > 1)}" for count in counts]
    columns += [*(["accuracy %", "lost"] if told else []), "as FP32 %", "KL from FP32"]
    columns += ["MB published", "ms published", "lost, published"] if published else []
    cells = []
    for row in content["rows"]:
        words = [row["rung"], row["engine"], row["bits"]]
        given = list(beside.get(row["rung"], ("", "", ""))) if published else []
        if "failed" in row:
            cells.append([*words, row["failed"], *[""] * (len(columns) - 4 - len(given)), *given])
            continue
        idle = row["integer_layers"] == 0 and not row["bits"].endswith("/32")
        numbers = [f"{row['integer_layers']} of {row['layers']}" + " (floats)" * idle, f"{row['file_bytes'] / 1e6:.2f}"]
        numbers += [f"{one['p50_us'] / 1000:.2f}" for one in row["latency"]]
        if told:
            accuracy = fmean(row["accuracy"])
            numbers += [f"{100 * accuracy:.2f}", f"{round(100 * (fmean(exact) - accuracy), 2) + 0.0:.2f}"]
        numbers += [f"{100 * fmean(row['agreement_with_fp32']):.2f}", f"{fmean(row['kl_from_fp32']):.2g}"]
        cells.append([*words, *numbers, *given])
    seeds = f", {len(content['seeds'])} seed{'s' * (len(content['seeds']) > 1)}" if content["seeds"] else ""
    on = f"on {content['inputs']} inputs of {content['data']}" if content["data"] else "of random weights"
    title = f"{content['model']} {on}{seeds}, batch {content['batch']}, {content['hardware']['cpu']}"
    return title, columns, cells


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=DEFAULT_RESULTS, help="a result of experiments.ladder")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="file to write (.md, .tex)")
    parser.add_argument("--published", choices=sorted(PUBLISHED), help="whose published numbers stand beside")
    options = parser.parse_args(arguments)
    title, columns, cells = table(read(options.results), options.published)
    kinds = {
        ".md": lambda: markdown_table(title, columns, cells),
        ".tex": lambda: latex_table(title, columns, cells, left=3),
    }
    write_table(options.output, kinds)


if __name__ == "__main__":
    sys.exit(main())
