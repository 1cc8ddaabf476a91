"""Latency against bits, for a layer and for networks: bitplanes figures latency_vs_bits [--layers FILE].

Also --networks FILE and --output FILE. A dot is the median at a width, WEIGHTS/INPUTS (t: ternary, 32: floats); a line
goes over the middle half of the calls. The broken line is PyTorch FP32 in its better layout; engines stand at the width
that they run. The files were written by `bitplanes benchmark suite=widths` and `suite=network_widths`; if one is
missing, the other is drawn alone.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paper_figures import style
from paper_figures.save import save

DEFAULT_LAYERS = Path("results") / "widths.json"
DEFAULT_NETWORKS = Path("results") / "network_widths.json"
DEFAULT_OUTPUT = Path("results") / "figures" / "latency_vs_bits.png"
# Of all layers in the file this one is drawn, or the first if it is not there.
LAYER = "conv 256->256 14x14 3x3"
# Peer: its name, the width at which it stands, colour and marker; the shape tells it without the colour.
PEERS = {
    "eager": ("PyTorch FP32", "32/32", style.GREY, "s"),
    "openvino": ("OpenVINO FP32", "32/32", style.ORANGE, "D"),
    "openvino int8": ("OpenVINO INT8", "8/8", style.ORANGE, "^"),
    "onnxruntime int8": ("ONNX Runtime INT8", "8/8", style.DARK, "v"),
}
Row = dict[str, Any]


def read(path: Path) -> tuple[list[Row], str]:
    """Return what was timed at one image or vector and one thread, and the CPU; SystemExit names a bad file.

    A row has "name", "widths" {width: (low quartile, median, high quartile)} and "peers" {peer: median}, milliseconds.
    """
    try:
        content = json.loads(path.read_text())
        rows = []
        for row in content["rows"]:
            if (row["batch"], row["threads"]) != (1, 1):
                continue
            times = {
                entry["width"]: tuple(entry["us"][key] / 1e3 for key in ("low_quartile", "median", "high_quartile"))
                for entry in row["widths"]
            }
            peers = {name: peer["us"]["median"] / 1e3 for name, peer in row["peers"].items() if name in PEERS}
            rows.append({"name": row["name"], "widths": times, "peers": peers})
        cpu = content["hardware"]["cpu"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise SystemExit(f"error: {path} is no result of experiments.benchmark suite=widths: {error!r}") from None
    if not rows:
        raise SystemExit(f"error: {path} has nothing of one image and one thread")
    return rows, cpu


def choose(layers: list[Row], networks: list[Row]) -> list[Row]:
    """Return what is drawn: one layer, and all networks."""
    return ([row for row in layers if row["name"] == LAYER][:1] or layers[:1]) + networks


def _panel(axis: Axes, row: Row) -> None:
    names = list(row["widths"])
    low, median, high = zip(*row["widths"].values(), strict=True)
    spread = [[m - a for m, a in zip(median, low, strict=True)], [b - m for m, b in zip(median, high, strict=True)]]
    axis.errorbar(range(len(names)), median, spread, fmt="none", color=style.BLUE, elinewidth=1, capsize=3)
    axis.plot(range(len(names)), median, "o", color=style.BLUE, markersize=5)
    for peer, time in row["peers"].items():
        _, width, color, marker = PEERS[peer]
        if peer == "eager":
            axis.axhline(time, color=color, linestyle="--", linewidth=1.2)
        if width in names:
            axis.plot(names.index(width), time, marker, color=color, markersize=7, fillstyle="none")
    axis.set_xticks(range(len(names)), names, rotation=90)
    axis.set_ylim(0, 1.1 * max(*high, *row["peers"].values()))
    axis.set_title(row["name"])
    axis.grid(axis="x", visible=False)


def plot(rows: list[Row], cpu: str) -> Figure:
    """Return the figure with a panel for each row."""
    columns = min(2, len(rows))
    lines = -(-len(rows) // columns)
    figure, axes = style.panels(lines, columns, 1.0 + 2.9 * lines, squeeze=False)
    for axis, row in zip(axes.flat, rows, strict=False):
        _panel(axis, row)
    for axis in axes.flat[len(rows) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("milliseconds")
    there = {peer for row in rows for peer in row["peers"]}
    handles = [Line2D([], [], color=style.BLUE, marker="o", linestyle="", label="packed")]
    for peer, (label, _, color, marker) in PEERS.items():
        if peer in there:
            line: Any = "--" if peer == "eager" else ""
            handles.append(
                Line2D([], [], color=color, marker=marker, linestyle=line, fillstyle="none", markersize=7, label=label)
            )
    text = f"Latency against bits of weights / inputs, one image, one thread of {cpu}"
    style.legend_with_title(figure, text, handles)
    return figure


def draw(layers: Path, networks: Path, output: Path) -> None:
    """Draw what is there of both files and write the figure; SystemExit if neither is, or if their CPUs differ."""
    found = [read(path) if path.exists() else ([], None) for path in (layers, networks)]
    cpus = {cpu for _, cpu in found if cpu is not None}
    if not cpus:
        raise SystemExit(
            f"error: neither {layers} nor {networks} is there; run bitplanes benchmark suite=widths and "
            "suite=network_widths"
        )
    if len(cpus) > 1:
        raise SystemExit(
            f"error: {layers} and {networks} were measured on different CPUs: {' and '.join(sorted(cpus))}"
        )
    save(plot(choose(found[0][0], found[1][0]), cpus.pop()), output)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=Path, default=DEFAULT_LAYERS, help="written by suite=widths")
    parser.add_argument("--networks", type=Path, default=DEFAULT_NETWORKS, help="written by suite=network_widths")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="picture to write (.png, .pdf, .svg)")
    options = parser.parse_args(arguments)
    draw(options.layers, options.networks, options.output)
    print(f"written: {options.output}")


if __name__ == "__main__":
    sys.exit(main())
