"""Bits by layer: what each layer alone loses with fewer bits, and test accuracy against cost beside uniform widths.

bitplanes figures sensitivity [--results NAME_layers.json] [--output FIGURE.png]

The file is one that `experiments.bits_by_layer` wrote, or the output of `experiments.sensitivity`, which has the first
panel alone. Losses are means over seeds, in points of validation accuracy, linear below a tenth of a point and
logarithmic above. Accuracies are means over seeds with their 95 % intervals, latencies the medians of the seeds'
packed networks with the least and the largest.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from paper_figures import style
from paper_figures.from_file import draw_from_file, read_entries
from paper_figures.ledger_file import Entry
from paper_figures.save import save
from paper_figures.tradeoff import Point, front

DEFAULT_RESULTS = Path("results") / "bits_by_layer_mnist_layers.json"
DEFAULT_OUTPUT = Path("results") / "figures" / "sensitivity.png"

# Of the lines, from few bits to many.
_COLOURS = (style.ORANGE, style.BLUE, style.DARK, style.GREY)
_MARKERS = "osD^v<>P"
_LINEAR = 0.1  # points of accuracy
_WIDE = 10  # ratio of costs from which on their axis is logarithmic


def read_layers(path: Path) -> dict[str, Any]:
    """Return the content of a file of layers; SystemExit with a message if it is missing or another file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        complete = all({"bits", "loss"} <= set(one) for widths in content["layers"].values() for one in widths)
        if not content["layers"] or not complete:
            raise KeyError("layers")
    except FileNotFoundError:
        name = path.stem.removesuffix("_layers")
        raise SystemExit(f"error: {path} is missing; experiments.bits_by_layer name={name} writes it") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SystemExit(
            f"error: {path} has no layers; experiments.bits_by_layer and experiments.sensitivity write such files"
        ) from None
    return content


def draw_losses(axis: Axes, layers: dict[str, list[dict[str, Any]]]) -> None:
    """Draw the points that each layer alone loses, a line for each width."""
    widths = sorted({one["bits"] for found in layers.values() for one in found})
    for number, bits in enumerate(widths):
        points = [
            (place, 100 * one["loss"])
            for place, found in enumerate(layers.values())
            for one in found
            if one["bits"] == bits
        ]
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        axis.plot(*zip(*points, strict=True), color=colour, marker=marker, linewidth=1, label=str(bits))
    axis.axhline(0, color=style.DARK, linewidth=0.8, zorder=1)
    axis.set_yscale("symlog", linthresh=_LINEAR)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.margins(y=0.08)
    axis.set_xticks(range(len(layers)), list(layers))
    if sum(map(len, layers)) > 40:
        axis.tick_params(axis="x", rotation=90)
    axis.set_xlim(-0.5, len(layers) - 0.5)
    axis.set_ylabel("validation accuracy lost (points)")
    axis.legend(title="bits of the layer", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)


def points_of(content: dict[str, Any], entries: list[Entry], cost: str) -> dict[str, Point]:
    """Return {cell: point} of the assignments that were trained; cost: latency or bytes, of the packed file.

    The name of a point is the width of a uniform assignment and "" of another.
    """
    found = {}
    by_cell = {entry["method"]: entry for entry in entries}
    for one in content["assignments"]:
        entry = by_cell.get(one["cell"])
        if entry is None:
            continue
        values = tuple(100 * run["value"] for run in entry["runs"])
        costs = _costs(entry, cost)
        if not costs or not values:
            continue
        widths = set(one["widths"].values())
        name = str(*widths) if not one["budgets"] else ""
        interval = None if entry["interval"] is None else tuple(100 * end for end in entry["interval"])
        spread = (min(costs), max(costs))
        found[one["cell"]] = Point(name, statistics.median(costs), values, spread, interval)
    return found


def _costs(entry: Entry, cost: str) -> list[float]:
    if cost == "latency":
        return [run["latency_us"]["median"] for run in entry["runs"] if "latency_us" in run]
    return [run["file_bytes"] for run in entry["runs"] if "file_bytes" in run]


def draw_front(axis: Axes, points: dict[str, Point], base: Entry | None) -> None:
    """Draw uniform widths as their numbers, the other assignments as discs, and the front that nothing beats."""
    edge = front(list(points.values()))
    line = ([point.cost for point in edge], [point.mean for point in edge])
    axis.step(*line, where="post", color=style.GREY, linewidth=1, linestyle="--", zorder=1)
    for point in points.values():
        uniform = point.name != ""
        low, high = point.spread or (point.cost, point.cost)
        ends = point.interval or (point.mean, point.mean)
        sideways, upright = [[point.cost - low], [high - point.cost]], [[point.mean - ends[0]], [ends[1] - point.mean]]
        colour = style.ORANGE if uniform else style.BLUE
        axis.errorbar(
            point.cost, point.mean, upright, sideways, fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.6, zorder=2
        )
        marker = f"${point.name}$" if uniform else "o"
        axis.plot([point.cost], [point.mean], marker=marker, color=colour, markersize=9 if uniform else 6, zorder=3)
    if base is not None and base["mean"] is not None:
        axis.axhline(100 * base["mean"], color=style.DARK, linestyle=":", linewidth=1)
    largest = max(point.cost for point in points.values())
    if largest > _WIDE * min(point.cost for point in points.values()):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_ylim(top=min(axis.get_ylim()[1], 100.5))  # intervals of few seeds may end beyond
    axis.set_ylabel("test accuracy (%)")
    handles = [
        Line2D([], [], color=style.ORANGE, marker="$b$", linestyle="", markersize=9, label="b bits in all layers"),
        Line2D([], [], color=style.BLUE, marker="o", linestyle="", label="bits by layer"),
        Line2D([], [], color=style.GREY, linestyle="--", label="nothing is better"),
        *([Line2D([], [], color=style.DARK, linestyle=":", label="FP32")] if base is not None else []),
    ]
    axis.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def plot(content: dict[str, Any], entries: list[Entry]) -> Figure:
    """Return the figure of a file of layers and the entries of its ledger; without entries the first panel alone."""
    cost = content.get("cost", "bytes")
    points = points_of(content, entries, cost) if entries else {}
    figure, axes = style.panels(1, 2 if points else 1, 4.6, squeeze=False)
    draw_losses(axes[0, 0], content["layers"])
    seeds = content.get("seeds", [])
    words = f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}"
    text = f"{content['model']} on {content['data']}, {words}: one layer alone at fewer bits, not trained again"
    if points:
        base = next((entry for entry in entries if entry["method"] == "base"), None)
        draw_front(axes[0, 1], points, base)
        axes[0, 1].set_xlabel("microseconds for one input" if cost == "latency" else "bytes of the packed file")
        text += "; and trained assignments, means and 95 % intervals"
    style.title(figure, text)
    return figure


def draw(results: Path, output: Path) -> None:
    """Draw a file of layers, with the ledger that it names if it lies beside it."""
    content = read_layers(results)
    entries = read_entries(results.with_name(content["ledger"])) if "ledger" in content else []
    save(plot(content, entries), output)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    draw_from_file(
        __doc__, DEFAULT_RESULTS, DEFAULT_OUTPUT, "a file of layers of experiments.bits_by_layer", draw, arguments
    )


if __name__ == "__main__":
    sys.exit(main())
