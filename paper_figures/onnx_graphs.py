"""The ONNX graph of LeNet-5 before and after Q/DQ nodes are put in: bitplanes figures onnx-graphs [--output FILE].

Both are what `python -m bnn_kernels onnx` writes of LeNet-5 with FP32 quantizers and with those of 8 bits, the state of
a trained network in it (`bnn.models.trained_like`); first and last layer are floats. Shaded is what ONNX Runtime fuses
into one operator of integers.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from bnn_kernels.onnx_file.export import graph_of
from bnn_kernels.onnx_file.graph import Graph, Node
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

import bnn
from bnn import quantizers as q
from paper_figures import style
from paper_figures.save import save

DEFAULT_OUTPUT = Path("results") / "figures" / "onnx_graphs.png"
FLOAT, LEVELS, LAYER, FUSED = "#f4f4f4", "#fde3cf", "#d4e6f3", "#eef6ee"
GREEN = "#2f6b2f"
BOX, GAP = 0.62, 1.0  # height of a box and distance of two, in rows
HALF_WIDTH, SIDE = 1.55, 1.62  # of a box, and of one that is beside the others, in columns


class Row(NamedTuple):
    """An operator of the chain: its text and colour, and the text of a weight that is dequantized for it."""

    text: str
    color: str
    weight: str = ""


class Span(NamedTuple):
    """Rows that a runtime fuses, first and last, and into what."""

    first: int
    last: int
    operator: str


def network(bits: int) -> Any:
    """Return LeNet-5, packed, with weights and inputs of so many bits, 32 for floats."""
    torch.manual_seed(0)
    images = torch.randn(64, 1, 28, 28)
    few: dict[str, Any] = {
        "weight_quantizer": (lambda: q.LsqWeight(bits)) if bits < 32 else q.FullPrecision,
        "input_quantizer": (lambda: q.LsqActivation(bits)) if bits < 32 else q.FullPrecision,
    }
    model = bnn.models.LeNet5(**few).eval()
    if bits < 32:
        bnn.calibrate(model, images)
    return bnn.convert(bnn.models.trained_like(model, images), images)


def _sides(value: np.ndarray) -> str:
    return " x ".join(map(str, value.shape))


def _is_weight(node: Node, graph: Graph) -> bool:
    return node.op == "DequantizeLinear" and node.inputs[0] in graph.constants


def rows_of(graph: Graph) -> tuple[list[Row], list[Span]]:
    """Return the operators of a graph without branches in order, and what of it a runtime fuses."""
    weights = {node.outputs[0]: graph.constants[node.inputs[0]] for node in graph.nodes if _is_weight(node, graph)}
    chain = [node for node in graph.nodes if not _is_weight(node, graph)]
    rows, spans = [], []
    for i, node in enumerate(chain):
        given = [name for name in node.inputs if name in weights]
        is_layer = node.op in ("Conv", "MatMul")
        text, color = node.op, FLOAT
        if node.op in ("QuantizeLinear", "DequantizeLinear"):
            scale = float(graph.constants[node.inputs[1]])
            text, color = f"{node.op}  {scale:.3g}", LEVELS
        elif is_layer and given:
            color = LAYER
            ends = node.op == "Conv" and chain[i + 1].op == "QuantizeLinear"
            spans.append(Span(i - 1, i + ends, "QLinearConv" if ends else "MatMulIntegerToFloat"))
        elif is_layer:
            text = f"{node.op}  {_sides(graph.constants[node.inputs[1]])}"
        weight = weights[given[0]] if given else None
        rows.append(Row(text, color, "" if weight is None else f"{weight.dtype}  {_sides(weight)}"))
    return rows, spans


def _box(axis: Axes, x: float, y: float, half: float, text: str, color: str, height: float = BOX) -> None:
    corner = (x - half, y - height / 2)
    axis.add_patch(
        FancyBboxPatch(
            corner, 2 * half, height, boxstyle="round,pad=0,rounding_size=0.15", facecolor=color,
            edgecolor=style.GREY, linewidth=0.8, zorder=2,
        )
    )  # fmt: skip
    axis.text(x, y, text, ha="center", va="center", fontsize=style.SMALL, zorder=3, linespacing=1.0)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    line = {"arrowstyle": "-|>", "color": style.DARK, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops=line, zorder=1)


def _chain(axis: Axes, graph: Graph, title: str, most: int) -> None:
    """Draw a graph from top to bottom; most: the rows of the longer one."""
    rows, spans = rows_of(graph)
    for first, last, name in spans:
        low, high = last * GAP + GAP / 2 - 0.04, first * GAP - GAP / 2 + 0.04
        left = -HALF_WIDTH - 0.2
        axis.add_patch(
            Rectangle((left, high), 2 * HALF_WIDTH + 4.15, low - high, facecolor=FUSED, edgecolor=GREEN,
                      linewidth=0.8, linestyle=(0, (4, 2)), zorder=0)
        )  # fmt: skip
        axis.text(HALF_WIDTH + 0.35, high + 0.42, name, color=GREEN, fontsize=style.SMALL, va="center")
    for i, row in enumerate(rows):
        y = i * GAP
        _box(axis, 0, y, HALF_WIDTH, row.text, row.color)
        _arrow(axis, (0, y - GAP + BOX / 2 if i else -0.9), (0, y - BOX / 2))
        if row.weight:
            x = HALF_WIDTH + 0.42 + SIDE
            _box(axis, x, y, SIDE, f"DequantizeLinear\n{row.weight}", LEVELS, 0.86)
            _arrow(axis, (x - SIDE, y), (HALF_WIDTH, y))
    end = (len(rows) - 1) * GAP + BOX / 2
    _arrow(axis, (0, end), (0, end + 0.6))
    axis.text(0, -1.0, "images", ha="center", va="bottom", fontsize=style.SMALL)
    axis.text(0, end + 0.7, "logits", ha="center", va="top", fontsize=style.SMALL)
    axis.set_title(title)
    axis.set_ylim(most * GAP + 0.3, -1.7)
    axis.axis("off")


def draw(before: Graph, after: Graph) -> Figure:
    """Return the figure of two graphs side by side."""
    most = max(len(rows_of(graph)[0]) for graph in (before, after))
    figure, axes = style.panels(1, 2, 0.33 * most + 1.2, width_ratios=(3.6, 6.2))
    _chain(axes[0], before, f"FP32: {len(before.nodes)} nodes", most)
    _chain(axes[1], after, f"8 bits with Q/DQ: {len(after.nodes)} nodes", most)
    axes[0].set_xlim(-1.95, 1.95)
    axes[1].set_xlim(-1.9, 5.75)
    style.title(figure, "LeNet-5 as ONNX before and after Q/DQ nodes are put in")
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Draw the figure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help=f"({DEFAULT_OUTPUT})")
    output = options.parse_args(arguments).output
    graphs = [graph_of(network(bits), "qdq")[0] for bits in (32, 8)]
    save(draw(*graphs), output)
    print(f"written: {output}")


if __name__ == "__main__":
    sys.exit(main())
