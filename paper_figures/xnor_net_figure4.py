"""XNOR-Net's figures 4b and 4c: speed-up of a binary convolution against channels and against filter size.

python -m paper_figures.xnor_net_figure4 [--results FILE] [--output FILE]

Theory (Rastegari et al. 2016, section 4.1): S = 64 c N_W / (c N_W + 64), an operation count with 64 binary operations
to one clock. Measured: packed bits in and thresholded bits out beside PyTorch FP32, written by
`python -m experiments.benchmark suite=kernels`.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from paper_figures.from_file import draw_from_file
from paper_figures.save import save

DEFAULT_RESULTS = Path("results") / "kernels.json"
DEFAULT_OUTPUT = Path("results") / "figures" / "xnor_net_figure4.png"
LAYER = re.compile(r"conv (\d+)->256 14x14 (\d+)x\2")
CHANNELS, FILTER = 256, 3
BLUE, ORANGE = "#1f5fa8", "#d9662b"


def theory(channels: Any, filter_size: Any) -> Any:
    """Return the speed-up by operation count of c channels and a square filter."""
    products = np.asarray(channels) * np.asarray(filter_size) ** 2
    return 64 * products / (products + 64)


def read(path: Path) -> tuple[dict[tuple[int, int], float], str]:
    """Return ({(channels, filter size): ratio of medians}, CPU); SystemExit with a message if the file is another."""
    try:
        content = json.loads(path.read_text())
        alone = [row for row in content["layers"] if (row["batch"], row["threads"]) == (1, 1)]
        matches = [(LAYER.fullmatch(row["name"]), row["ratio"]["median"]) for row in alone]
        cpu = content["hardware"]["cpu"]
    except FileNotFoundError:
        raise SystemExit(f"error: {path} is missing; run python -m experiments.benchmark suite=kernels") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"error: {path} is no result of experiments.benchmark: {error!r}") from None
    ratios = {(int(match[1]), int(match[2])): ratio for match, ratio in matches if match}
    if not ratios:
        raise SystemExit(f"error: {path} has no layer of 256 filters on a 14x14 map; run suite=kernels")
    return ratios, cpu


def draw(ratios: dict[tuple[int, int], float], cpu: str, output: Path) -> None:
    """Draw both panels and write them."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4), constrained_layout=True)
    by_channels = sorted((c, ratio) for (c, k), ratio in ratios.items() if k == FILTER)
    by_filter = sorted((k, ratio) for (c, k), ratio in ratios.items() if c == CHANNELS)
    c, k = np.geomspace(1, 1024, 200), np.linspace(1, 20, 200)
    for axis, x, curve, points in (
        (left, c, theory(c, FILTER), by_channels),
        (right, k, theory(CHANNELS, k), by_filter),
    ):
        axis.plot(x, curve, "--", color=ORANGE, label="operation count (paper)")
        axis.plot(*zip(*points, strict=True), "o-", color=BLUE, label="measured")
        axis.set_ylabel("speed-up over FP32")
        axis.set_ylim(0, 70)
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    left.set_xscale("log", base=2)
    left.set_xlabel(f"channels ({FILTER}x{FILTER} filters)")
    right.set_xlabel(f"filter size ({CHANNELS} channels)")
    left.legend(frameon=False, loc="upper left", fontsize=8)
    figure.suptitle(f"256 binary filters on 14x14, one thread of {cpu}, beside PyTorch FP32", fontsize=10)
    save(figure, output)


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
