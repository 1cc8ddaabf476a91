"""Accuracy against bits: bitplanes figures accuracy_vs_bits [--results LEDGER.json] [--output FIGURE.png].

One point for each experiment of a ledger that `experiments.collect` wrote, by its W/A setting: mean over seeds, every
seed as a dot, the standard deviation as a bar, and the size of the packed file where runs were converted. The FP32 line
is the 32/32 setting of the same table; settings that differ from it by no more than the choice of test images explains
(95 % interval, `paper_figures.chance`) are hollow.
"""

import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.chance import within_chance
from paper_figures.from_file import draw_from_file
from paper_figures.ledger_file import LedgerError, read_ledger, run_rows
from paper_figures.save import save

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_RESULTS = ROOT / "results" / "digits_accuracy_vs_bits.json"
DEFAULT_OUTPUT = ROOT / "results" / "figures" / "accuracy_vs_bits.png"

FP32 = "32/32"
# W/A and what a label says beside it; t is ternary.
_LABEL = re.compile(r"(t|[\d.]+)(?: bases)?/(t|[\d.]+)(?: bases)?(.*)", re.S)
Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return a row for each finished run of a ledger; SystemExit with a message if it is missing or none."""
    try:
        rows = run_rows(read_ledger(path))
    except FileNotFoundError:
        raise SystemExit(
            f"error: {path} is missing; run make demo, or experiments.collect with output={path}"
        ) from None
    except LedgerError as error:
        raise SystemExit(f"error: {error}; experiments.collect writes ledgers") from None
    if not rows:
        raise SystemExit(f"error: {path} has no finished run")
    return rows


# Columns of a table that do not tell experiments apart; see experiments.collect.
_MEASURED = (
    *("command", "experiment", "label", "seed", "epochs", "steps", "stopped_by", "metric", "value", "method"),
    *("train_accuracy", "validation_accuracy", "test_accuracy", "parameters", "fp32_bytes", "train_seconds"),
    *("cpu", "torch", "finished", "published", "published_source"),
    *("file_bytes", "test_accuracy_packed", "same_predictions", "test_images", "parity_ok"),
)


def one_task(rows: list[Row]) -> None:
    """SystemExit, with what is mixed, unless all rows are of one model and one data set."""
    mixed = sorted({f"{row['model']} on {row['data']}" for row in rows})
    if len(mixed) > 1:
        raise SystemExit(
            f"error: the table mixes {', '.join(mixed)}, whose accuracies do not belong in one figure; "
            "collect the runs of one: experiments.collect folder=runs/NAME output=TABLE.json"
        )


def by_setting(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows of each experiment by its label, from few bits to many.

    Experiments of the same label are told apart below it by what differs between them.
    """
    experiments: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row["label"], row.get("experiment"), row.get("name"), row.get("quantizer"))
        experiments.setdefault(key, []).append(row)
    result = {}
    for (label, experiment, _, _), members in experiments.items():
        first = [others[0] for key, others in experiments.items() if key[0] == label]
        differ = [key for key in first[0] if key not in _MEASURED and len({str(row.get(key)) for row in first}) > 1]
        more = [f"{key.rpartition('.')[2]} {members[0].get(key)}" for key in differ]
        name = "\n".join([label, *more])
        result[f"{name}\n{experiment}" if name in result else name] = members

    return {name: result[name] for name in sorted(result, key=_order)}


def _order(name: str) -> tuple[float, float, str]:
    """Return what settings are sorted by: bits of weights, then of activations, each from few to many; then the name.

    >>> sorted(["32/32", "8/2", "t/1", "1/32", "2/1", "1/1 LSQ", "1/1", "signs"], key=_order)
    ['1/1', '1/1 LSQ', '1/32', 't/1', '2/1', '8/2', '32/32', 'signs']
    """
    found = _LABEL.fullmatch(name)
    if found is None:
        return math.inf, math.inf, name
    weight, activation = (math.log2(3) if bits == "t" else float(bits) for bits in found.groups()[:2])
    return weight, activation, found[3]


def also_differing(rows: list[Row]) -> list[str]:
    """Return the options, other than the quantizer's, that differ between the settings of a table."""
    keys = dict.fromkeys(key for row in rows for key in row if key not in (*_MEASURED, "name", "quantizer"))
    return [key for key in keys if len({str(row.get(key)) for row in rows}) > 1]


def _mean(rows: list[Row]) -> float:
    return float(np.mean([row["test_accuracy"] for row in rows]))


def image_count(rows: list[Row]) -> int | None:
    """Return how many test images the accuracies are shares of; None if the rows do not all say so."""
    counts = [row["test_images"] for row in rows if row.get("test_images") is not None]
    return int(min(counts)) if len(counts) == len(rows) else None


def draw_accuracy(axis: Axes, settings: dict[str, list[Row]], images: int | None) -> list[str]:
    """Draw mean, deviation and seeds of each setting, the means written above; returns those within chance of FP32."""
    fp32 = _mean(settings[FP32]) if FP32 in settings else None
    if fp32 is not None:
        axis.axhline(100 * fp32, color=style.ORANGE, linestyle="--", linewidth=1.2, zorder=1, label="FP32")
    equal = []
    for place, (label, members) in enumerate(settings.items()):
        accuracy = 100 * np.array([row["test_accuracy"] for row in members])
        mean, spread = accuracy.mean(), accuracy.std(ddof=1) if len(accuracy) > 1 else 0
        hollow = fp32 is not None and images is not None and label != FP32 and within_chance(mean / 100, fp32, images)
        equal += [label] if hollow else []
        axis.plot(np.full(len(accuracy), place - 0.18), accuracy, ".", color=style.GREY, zorder=2)
        fill: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 1.8} if hollow else {}
        axis.errorbar(place, mean, spread, fmt="o", color=style.BLUE, capsize=4, markersize=8, zorder=3, **fill)
        axis.text(place, 1.02, f"{mean:.1f}", transform=axis.get_xaxis_transform(), ha="center", va="bottom")
    axis.set_ylabel("test accuracy (%)")
    axis.margins(y=0.1)
    return equal


def draw_sizes(axis: Axes, settings: dict[str, list[Row]]) -> None:
    """Draw the size of the packed file of each setting that was converted."""
    for place, members in enumerate(settings.values()):
        sizes = [row["file_bytes"] / 1000 for row in members if row.get("file_bytes")]
        if sizes:
            axis.bar(place, max(sizes), 0.55, color=style.BLUE)
            axis.annotate(
                f"{max(sizes):,.0f}", (place, max(sizes)), (0, 2), textcoords="offset points", ha="center", va="bottom"
            )
    axis.set_ylabel("packed file (kB)")
    axis.margins(y=0.2)


def _note(settings: dict[str, list[Row]], equal: list[str], images: int | None) -> str:
    """Return what a reader must know of the differences."""
    parts = ["weight bits / activation bits (t: ternary)"]
    if images is not None:
        parts.append(f"{images:,} test images: one image is {100 / images:.2g} points.")
        others = [label for label in settings if label != FP32]
        if FP32 in settings and others and equal == others:
            parts.append("No setting differs from FP32 by more than chance (hollow: 0 is in the 95 % interval).")
        elif equal:
            parts.append("Hollow: within chance of FP32 (0 is in the 95 % interval of the difference).")
    return "\n".join(style.wrapped(part) for part in parts)


def plot(rows: list[Row]) -> Figure:
    """Return the figure of a table's rows."""
    one_task(rows)
    settings = by_setting(rows)
    has_sizes = any(row.get("file_bytes") for row in rows)
    heights: dict[str, Any] = {"height_ratios": (2.2, 1)} if has_sizes else {}
    figure, axes = style.panels(1 + has_sizes, 1, 6.0 if has_sizes else 4.4, sharex=True, squeeze=False, **heights)
    top, bottom = axes[0, 0], axes[-1, 0]
    images = image_count(rows)
    equal = draw_accuracy(top, settings, images)
    if has_sizes:
        draw_sizes(bottom, settings)
    for axis in axes.flat:
        axis.grid(axis="x", visible=False)
    if sum(max(map(len, name.split("\n"))) for name in settings) > 70 or len(settings) > 12:  # crowded
        bottom.tick_params(axis="x", rotation=90)
        for axis in axes.flat:
            for text in axis.texts:
                text.set_rotation(90)
    bottom.set_xticks(range(len(settings)), list(settings))
    bottom.set_xlim(-0.6, len(settings) - 0.4)
    bottom.set_xlabel(_note(settings, equal, images))
    counts = sorted({len(members) for members in settings.values()})
    seeds = f"{'/'.join(map(str, counts))} seed{'s' if counts != [1] else ''}"
    first = rows[0]
    handles, _ = top.get_legend_handles_labels()
    text = f"{first['model']} on {first['data']}, {seeds}: means (above), standard deviations, single seeds (grey)"
    if differ := also_differing(rows):
        text += f"; settings differ in {', '.join(differ)} too"
    style.legend_with_title(figure, text, handles)
    return figure


def draw(rows: list[Row], output: Path) -> None:
    """Draw the figure and write it."""
    save(plot(rows), output)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    draw_from_file(
        __doc__,
        DEFAULT_RESULTS,
        DEFAULT_OUTPUT,
        "ledger written by experiments.collect",
        lambda results, output: draw(read_rows(results), output),
        arguments,
    )


if __name__ == "__main__":
    sys.exit(main())
