"""XNOR-Net's figures 4b and 4c: speed-up of a binary convolution against channels and against filter size.

bitplanes figures xnor_net_figure4 [--results FILE] [--output FILE]

Theory (Rastegari et al. 2016, section 4.1): S = 64 c N_W / (c N_W + 64), an operation count with 64 binary operations
to one clock. Measured: packed bits in and thresholded bits out beside PyTorch FP32, written by
`bitplanes benchmark suite=kernels`: a dot is the ratio of medians, a line goes to the ratio of best times.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.from_file import draw_from_file
from paper_figures.save import save

DEFAULT_RESULTS = Path("results") / "kernels.json"
DEFAULT_OUTPUT = Path("results") / "figures" / "xnor_net_figure4.png"
LAYER = re.compile(r"conv (\d+)->256 14x14 (\d+)x\2")
CHANNELS, FILTER = 256, 3
Ratio = dict[str, float]  # "median": of median times, "best": of best times


def theory(channels: Any, filter_size: Any) -> Any:
    """Return the speed-up by operation count of c channels and a square filter."""
    products = np.asarray(channels) * np.asarray(filter_size) ** 2
    return 64 * products / (products + 64)


def read(path: Path) -> tuple[dict[tuple[int, int], Ratio], str]:
    """Return ({(channels, filter size): ratios}, CPU); SystemExit with a message if the file is another."""
    try:
        content = json.loads(path.read_text())
        alone = [row for row in content["layers"] if (row["batch"], row["threads"]) == (1, 1)]
        matches = [
            (LAYER.fullmatch(row["name"]), {key: float(row["ratio"][key]) for key in ("median", "best")})
            for row in alone
        ]
        cpu = content["hardware"]["cpu"]
    except FileNotFoundError:
        raise SystemExit(f"error: {path} is missing; run bitplanes benchmark suite=kernels") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"error: {path} is no result of experiments.benchmark: {error!r}") from None
    ratios = {(int(match[1]), int(match[2])): ratio for match, ratio in matches if match}
    if not ratios:
        raise SystemExit(f"error: {path} has no layer of 256 filters on a 14x14 map; run suite=kernels")
    return ratios, cpu


def plot(ratios: dict[tuple[int, int], Ratio], cpu: str) -> Figure:
    """Return the figure with both panels."""
    figure, (left, right) = style.panels(1, 2, 3.9, sharey=True)
    by_channels = sorted((c, ratio) for (c, k), ratio in ratios.items() if k == FILTER)
    by_filter = sorted((k, ratio) for (c, k), ratio in ratios.items() if c == CHANNELS)
    c, k = np.geomspace(1, 1024, 200), np.linspace(1, 20, 200)
    for axis, x, curve, points in (
        (left, c, theory(c, FILTER), by_channels),
        (right, k, theory(CHANNELS, k), by_filter),
    ):
        axis.plot(x, curve, "--", color=style.ORANGE, label="operation count (paper)")
        if points:
            sizes, medians = [size for size, _ in points], np.array([ratio["median"] for _, ratio in points])
            best = np.array([ratio["best"] for _, ratio in points])
            spread = np.abs([np.minimum(best, medians) - medians, np.maximum(best, medians) - medians])
            axis.plot(sizes, medians, "o-", color=style.BLUE, label="measured: medians, best times", markersize=5)
            axis.errorbar(sizes, medians, spread, fmt="none", color=style.BLUE, capsize=4)
    left.set_ylim(0, max(70.0, 1.1 * max(ratio["median"] for ratio in ratios.values())))
    left.set_ylabel("times faster than FP32")
    style.logarithmic(left, "x", 2)
    left.set_xticks([1, 4, 16, 64, 256, 1024])
    right.set_xticks([1, 5, 10, 15, 20])
    left.set_xlabel(f"channels ({FILTER}x{FILTER} filters)")
    right.set_xlabel(f"filter size ({CHANNELS} channels)")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    style.title(figure, f"256 binary filters on 14x14, one thread of {cpu}, beside PyTorch FP32")
    return figure


def draw(ratios: dict[tuple[int, int], Ratio], cpu: str, output: Path) -> None:
    """Draw both panels and write them."""
    save(plot(ratios, cpu), output)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    draw_from_file(
        __doc__,
        DEFAULT_RESULTS,
        DEFAULT_OUTPUT,
        "written by experiments.benchmark",
        lambda results, output: draw(*read(results), output),
        arguments,
    )


if __name__ == "__main__":
    sys.exit(main())
