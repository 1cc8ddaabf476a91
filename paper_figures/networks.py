"""Time and size of whole networks: bitplanes figures networks [--results FILE] [--output FILE].

Left: milliseconds for one image on one thread, packed beside PyTorch FP32 (eager) and OpenVINO FP32: a dot at the
median, a line over the middle half of the calls (from the best call to the median in files without quartiles); the
number is packed's speed-up over the faster of them. Right: the packed file beside the FP32 weights. FILE was written
by `bitplanes benchmark suite=networks`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.from_file import draw_from_file
from paper_figures.save import save

DEFAULT_RESULTS = Path("results") / "networks.json"
DEFAULT_OUTPUT = Path("results") / "figures" / "networks.png"
# Side: its name, colour and marker; the shape tells it without the colour.
SIDES = {
    "eager": ("PyTorch FP32", style.GREY, "s"),
    "openvino": ("OpenVINO FP32", style.ORANGE, "D"),
    "packed": ("packed", style.BLUE, "o"),
}
Row = dict[str, Any]


def _times(measured: dict[str, Any]) -> dict[str, float]:
    """Return median, low and high in milliseconds: quartiles, or the best call and the median."""
    low, high = measured.get("quartiles", (measured["best"], measured["median"]))
    return {"median": measured["median"] / 1e3, "low": low / 1e3, "high": high / 1e3}


def read(path: Path) -> tuple[list[Row], str]:
    """Return a row for each network, with milliseconds and bytes by side, and the CPU; SystemExit names a bad file.

    "quartiles" of a row says whether its spread is that, and not from the best call to the median.
    """
    try:
        content = json.loads(path.read_text())
        times = {row["name"]: row for row in content["latency"] if (row["batch"], row["threads"]) == (1, 1)}
        rows = []
        for network in content["networks"]:
            row = times[network["name"]]
            sides = {side: _times(row[side]) for side in ("eager", "openvino") if side in row}
            sides["packed"] = _times(row["packed_us"])
            sizes = {"eager": network["fp32_bytes"], "packed": network["file_bytes"]}
            rows.append(
                {
                    "name": network["name"].partition(" ")[0],
                    "ms": sides,
                    "bytes": sizes,
                    "quartiles": "quartiles" in row["packed_us"],
                }
            )
        cpu = content["hardware"]["cpu"]
    except FileNotFoundError:
        raise SystemExit(f"error: {path} is missing; run bitplanes benchmark suite=networks") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"error: {path} is no result of experiments.benchmark suite=networks: {error!r}") from None
    if not rows:
        raise SystemExit(f"error: {path} has no networks")
    return rows, cpu


def _dots(axis: Axes, values: list[dict[str, dict[str, float]]], unit: str) -> None:
    """Draw a line of dots for each network on a logarithmic axis, and how many times less packed is than the next."""
    style.logarithmic(axis, "x")
    for y, row in enumerate(values):
        medians = {side: value["median"] for side, value in row.items()}
        axis.plot([min(medians.values()), max(medians.values())], [y, y], color=style.LINES, linewidth=2.5, zorder=1)
        ratio = min(value for side, value in medians.items() if side != "packed") / medians["packed"]
        place = (min(min(value.values()) for value in row.values()), y)
        axis.annotate(f"{ratio:.2g}x", place, (-8, 0), textcoords="offset points", ha="right", va="center")
    for side, (label, color, marker) in SIDES.items():
        there = [(y, row[side]) for y, row in enumerate(values) if side in row]
        if not there:
            continue
        places, found = zip(*there, strict=True)
        x = np.array([value["median"] for value in found])
        axis.plot(x, places, marker, color=color, label=label, markersize=6, zorder=2)
        if any("low" in value for value in found):
            spread = np.abs([[value[end] for value in found] for end in ("low", "high")] - x)
            axis.errorbar(x, places, xerr=spread, fmt="none", color=color, elinewidth=1, capsize=5, zorder=2)
    axis.set_xlabel(unit)
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.16, y=0.06)


def plot(rows: list[Row], cpu: str) -> Figure:
    """Return the figure with both panels."""
    figure, (left, right) = style.panels(1, 2, 1.5 + 0.36 * len(rows), sharey=True)
    ends = "middle half of the calls" if all(row["quartiles"] for row in rows) else "best call"
    _dots(left, [row["ms"] for row in rows], f"milliseconds for one image: median and {ends}")
    sizes = [{side: {"median": size / 1e6} for side, size in row["bytes"].items()} for row in rows]
    _dots(right, sizes, "packed file and FP32 weights, MB")
    left.set_yticks(range(len(rows)), [row["name"] for row in rows])
    left.invert_yaxis()
    style.title(figure, f"Time and size of whole networks, one thread of {cpu}")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))
    return figure


def draw(rows: list[Row], cpu: str, output: Path) -> None:
    """Draw both panels and write them."""
    save(plot(rows, cpu), output)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    draw_from_file(
        __doc__,
        DEFAULT_RESULTS,
        DEFAULT_OUTPUT,
        "written by experiments.benchmark suite=networks",
        lambda results, output: draw(*read(results), output),
        arguments,
    )


if __name__ == "__main__":
    sys.exit(main())
