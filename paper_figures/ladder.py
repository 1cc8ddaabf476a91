"""From FP32 to one bit: bytes, latency and accuracy of every rung, beside the libraries.

bitplanes figures ladder [--results FILE] [--output FILE]

A dot is a network as an engine runs it. Latency is the median of one call with the fewest threads that were timed, a
line goes on to the 90th percentile. Accuracy is the mean over seeds, a line goes from the least to the most; of a
network of random weights it is how often the class is that in FP32. What a library should have quantized and did not
is left out. `bitplanes ladder output=FILE` wrote the file.
"""

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from paper_figures import style
from paper_figures.from_file import draw_from_file
from paper_figures.save import save

DEFAULT_RESULTS = Path("results") / "ladder.json"
DEFAULT_OUTPUT = Path("results") / "figures" / "ladder.png"
# First word of an engine's name: label, colour and marker; the shape tells it without the colour.
ENGINES = {
    "packed": ("bitplanes", style.BLUE, "o"),
    "pytorch": ("PyTorch", style.GREY, "s"),
    "onnxruntime": ("ONNX Runtime", style.DARK, "v"),
    "openvino": ("OpenVINO", style.ORANGE, "^"),
    "torchao": ("torchao", style.DARK, "D"),
}
Row = dict[str, Any]
# Middle, least and most.
Dot = tuple[float, float, float]


def read(path: Path) -> dict[str, Any]:
    """Return a result file, of its rows those that can be drawn; SystemExit names a bad file."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = [row for row in content["rows"] if "failed" not in row]
        rows = [row for row in rows if row["integer_layers"] or row["bits"].endswith("/32")]
        for row in rows:
            row["engine"] = row["engine"].partition(" ")[0]
            size_of(row), latency_of(row), share_of(row)
        cpu = content["hardware"]["cpu"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise SystemExit(f"error: {path} is no result of experiments.ladder: {error!r}") from None
    if not rows:
        raise SystemExit(f"error: {path} has no row that ran")
    return {**content, "rows": rows, "cpu": cpu}


def size_of(row: Row) -> Dot:
    """Return the kilobytes on disk."""
    kilobytes = row["file_bytes"] / 1000
    return kilobytes, kilobytes, kilobytes


def latency_of(row: Row) -> Dot | None:
    """Return the microseconds of a call, None if it was not timed."""
    if not row["latency"]:
        return None
    one = min(row["latency"], key=lambda timed: timed["threads"])
    return one["p50_us"], one["p50_us"], one["p90_us"]


def share_of(row: Row) -> Dot:
    """Return the per cent that are right, or as in FP32."""
    values = [100 * value for value in (row["agreement_with_fp32"] if None in row["accuracy"] else row["accuracy"])]
    return fmean(values), min(values), max(values)


def _panel(axis: Axes, rows: list[Row], places: list[str], dot: Any, label: str) -> None:
    for row in rows:
        found = dot(row)
        if found is None:
            continue
        middle, least, most = found
        _, color, marker = ENGINES[row["engine"]]
        ours = row["engine"] == "packed"
        # Engines that measure the same stand a little below each other.
        place = places.index(row["rung"]) + 0.13 * (list(ENGINES).index(row["engine"]) - 2)
        axis.errorbar(
            *(middle, place),
            xerr=[[middle - least], [most - middle]],
            fmt=marker,
            color=color,
            markersize=6 if ours else 7,
            fillstyle="full" if ours else "none",
            elinewidth=1,
        )
    axis.set_xlabel(label)


def _logarithmic(axis: Axes) -> None:
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1,) if high > 30 * low else (1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def plot(content: dict[str, Any]) -> Figure:
    """Return the figure of what `read` returns."""
    rows = content["rows"]
    bits = {row["rung"]: row["bits"] for row in rows}
    places = list(bits)
    timed = any(row["latency"] for row in rows)
    figure, axes = style.panels(1, 2 + timed, 1.6 + 0.32 * len(places), sharey=True)
    _panel(axes[0], rows, places, size_of, "kB on disk")
    _logarithmic(axes[0])
    axes[0].set_yticks(range(len(places)), [f"{rung.replace('_', ' ')}  {bits[rung]}" for rung in places])
    axes[0].set_ylim(len(places) - 0.5, -0.5)
    if timed:
        threads = min(one["threads"] for row in rows for one in row["latency"])
        _panel(axes[1], rows, places, latency_of, f"microseconds, {threads} thread{'s' * (threads > 1)}")
        _logarithmic(axes[1])
    random = any(None in row["accuracy"] for row in rows)
    _panel(axes[-1], rows, places, share_of, "classes as in FP32 (%)" if random else f"{content['split']} accuracy (%)")
    there = {row["engine"] for row in rows}
    handles = [
        Line2D(
            *([], []),
            color=color,
            marker=marker,
            linestyle="",
            fillstyle="full" if engine == "packed" else "none",
            markersize=7,
            label=label,
        )
        for engine, (label, color, marker) in ENGINES.items()
        if engine in there
    ]
    seeds = len(content["seeds"])
    of = f"on {content['data']}, {seeds} seed{'s' * (seeds > 1)}" if seeds else "with random weights"
    inputs = "one input" if content["batch"] == 1 else f"{content['batch']} inputs"
    style.legend_with_title(figure, f"{content['model']} {of}, {inputs} a call; {content['cpu']}", handles)
    return figure


def draw(results: Path, output: Path) -> None:
    """Draw a result file."""
    save(plot(read(results)), output)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    draw_from_file(__doc__, DEFAULT_RESULTS, DEFAULT_OUTPUT, "a result of experiments.ladder", draw, arguments)


if __name__ == "__main__":
    sys.exit(main())
