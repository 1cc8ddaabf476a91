"""Accuracy against bits: python -m paper_figures.accuracy_vs_bits [--results TABLE.json] [--output FIGURE.png].

One point for each W/A setting of a table that `experiments.collect` wrote: mean over seeds, every seed as a dot, the
standard deviation as a bar, and the size of the packed file. The FP32 line is the 32/32 setting of the same table.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from paper_figures.from_file import draw_from_file
from paper_figures.save import save

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_RESULTS = ROOT / "results" / "digits_accuracy_vs_bits.json"
DEFAULT_OUTPUT = ROOT / "results" / "figures" / "accuracy_vs_bits.png"

# From few bits to many: weight bits first, then activation bits.
ORDER = ("1/1 BNN", "1/1", "1/1+K", "2/2", "4/4", "8/8", "1/32", "t/32", "32/32")
BLUE, GREY, ORANGE = "#1f5fa8", "#777777", "#d9662b"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table; SystemExit with a message if it is missing or no table."""
    try:
        rows = json.loads(path.read_text())["rows"]
    except FileNotFoundError:
        raise SystemExit(
            f"error: {path} is missing; run make demo, or experiments.collect with output={path}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"error: {path} is no table of experiments.collect: {error!r}") from None
    if not rows:
        raise SystemExit(f"error: {path} has no rows")
    return rows


def draw(rows: list[dict[str, Any]], output: Path) -> None:
    """Draw the figure and write it."""
    labels = sorted(
        {row["label"] for row in rows}, key=lambda label: ORDER.index(label) if label in ORDER else len(ORDER)
    )
    by_label = {label: [row for row in rows if row["label"] == label] for label in labels}
    seeds = [len(by_label[label]) for label in labels]
    figure, (top, bottom) = plt.subplots(
        2, 1, sharex=True, figsize=(7.2, 5.2), height_ratios=(2.2, 1), constrained_layout=True
    )
    places = np.arange(len(labels))
    for place, label in zip(places, labels, strict=True):
        accuracy = 100 * np.array([row["test_accuracy"] for row in by_label[label]])
        spread = accuracy.std(ddof=1) if len(accuracy) > 1 else 0
        top.plot(np.full(len(accuracy), place), accuracy, ".", color=GREY, alpha=0.6, zorder=2)
        top.errorbar(place, accuracy.mean(), spread, fmt="o", color=BLUE, capsize=4, markersize=7, zorder=3)
        top.annotate(
            f"{accuracy.mean():.1f}", (place, accuracy.mean()), (9, -3), textcoords="offset points", fontsize=8
        )
        sizes = [row["file_bytes"] for row in by_label[label] if row.get("file_bytes")]
        if sizes:
            bottom.bar(place, max(sizes) / 1000, 0.55, color=BLUE)
            text = f"{max(sizes) / 1000:,.0f}"
            bottom.annotate(
                text, (place, max(sizes) / 1000), (0, 2), textcoords="offset points", ha="center", fontsize=8
            )
    if "32/32" in by_label:
        fp32 = 100 * np.mean([row["test_accuracy"] for row in by_label["32/32"]])
        top.axhline(fp32, color=ORANGE, linestyle="--", linewidth=1, zorder=1, label="FP32")
        top.legend(loc="lower right", frameon=False)
    first = rows[0]
    count = f"n = {seeds[0]} seeds" if len(set(seeds)) == 1 else f"n = {'/'.join(map(str, seeds))} seeds"
    top.set_title(f"{first['model']} on {first['data']}: mean, standard deviation and seeds, {count}", fontsize=10)
    top.set_ylabel("test accuracy (%)")
    top.margins(y=0.15)
    bottom.set_ylabel("packed file (kB)")
    bottom.margins(y=0.2)
    bottom.set_xticks(places, labels)
    bottom.set_xlim(-0.6, len(labels) - 0.3)
    bottom.set_xlabel("weight bits / activation bits  (t: ternary)")
    for axis in (top, bottom):
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    save(figure, output)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    draw_from_file(
        __doc__,
        DEFAULT_RESULTS,
        DEFAULT_OUTPUT,
        "table written by experiments.collect",
        lambda results, output: draw(read_rows(results), output),
        arguments,
    )


if __name__ == "__main__":
    sys.exit(main())
