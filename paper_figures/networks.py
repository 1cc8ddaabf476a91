"""Time and size of whole networks: python -m paper_figures.networks [--results FILE] [--output FILE].

Left: milliseconds for one image on one thread, packed beside PyTorch FP32 (eager) and OpenVINO FP32; the number is
packed's speed-up over the faster of them. Right: the packed file beside the FP32 weights. FILE was written by
`python -m experiments.benchmark suite=networks`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from paper_figures.from_file import draw_from_file
from paper_figures.save import save

DEFAULT_RESULTS = Path("results") / "networks.json"
DEFAULT_OUTPUT = Path("results") / "figures" / "networks.png"
SIDES = {
    "eager": ("PyTorch FP32", "#999999"),
    "openvino": ("OpenVINO FP32", "#d9662b"),
    "packed": ("packed", "#1f5fa8"),
}
Row = dict[str, Any]


def read(path: Path) -> tuple[list[Row], str]:
    """Return a row for each network, with milliseconds and bytes by side, and the CPU; SystemExit names a bad file."""
    try:
        content = json.loads(path.read_text())
        times = {row["name"]: row for row in content["latency"] if (row["batch"], row["threads"]) == (1, 1)}
        rows = []
        for network in content["networks"]:
            row = times[network["name"]]
            sides = {side: row[side]["median"] / 1e3 for side in ("eager", "openvino") if side in row}
            sides["packed"] = row["packed_us"]["median"] / 1e3
            sizes = {"eager": network["fp32_bytes"], "packed": network["file_bytes"]}
            rows.append({"name": network["name"].partition(" ")[0], "ms": sides, "bytes": sizes})
        cpu = content["hardware"]["cpu"]
    except FileNotFoundError:
        raise SystemExit(f"error: {path} is missing; run python -m experiments.benchmark suite=networks") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"error: {path} is no result of experiments.benchmark suite=networks: {error!r}") from None
    if not rows:
        raise SystemExit(f"error: {path} has no networks")
    return rows, cpu


def _bars(axis: Axes, values: list[dict[str, float]], unit: str) -> None:
    """Draw a group of bars for each network, best side below, on a logarithmic axis."""
    sides = [side for side in SIDES if any(side in row for row in values)]
    height = 0.8 / len(sides)
    for i, side in enumerate(sides):
        label, color = SIDES[side]
        y = np.arange(len(values)) + (i - (len(sides) - 1) / 2) * height
        axis.barh(y, [row.get(side, np.nan) for row in values], height, color=color, label=label)
    for y, row in enumerate(values):
        ratio = min(value for side, value in row.items() if side != "packed") / row["packed"]
        axis.text(row["packed"] * 1.08, y + (len(sides) - 1) / 2 * height, f"{ratio:.2g}x", va="center", fontsize=8)
    axis.set_xscale("log")
    axis.set_xlabel(unit)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def draw(rows: list[Row], cpu: str, output: Path) -> None:
    """Draw both panels and write them."""
    height = 1.4 + 0.45 * len(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, height), constrained_layout=True, sharey=True)
    _bars(left, [row["ms"] for row in rows], f"ms an image, one thread of {cpu}")
    _bars(right, [{side: size / 1e6 for side, size in row["bytes"].items()} for row in rows], "MB")
    left.set_yticks(range(len(rows)), [row["name"] for row in rows])
    left.invert_yaxis()
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)
    save(figure, output)


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
