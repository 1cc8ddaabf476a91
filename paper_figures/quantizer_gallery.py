"""Forward and gradient of every quantizer, drawn from the classes themselves.

bitplanes figures quantizer_gallery [--classes CLASS ...] [--output FILE]

What a panel shows is said by the class's description. Inputs are 401 numbers from -2 to 2. A quantizer of weights is
given them as one filter; where its values depend on all of them (a mean, a standard deviation), the gradient is that of
each value to its own weight.
"""

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from bnn import quantizers
from bnn.layers.base import make_quantizer
from bnn.quantizers import Quantizer
from bnn.quantizers.description import BINARY_INPUTS, Panel, describe, described
from paper_figures import style
from paper_figures.save import save

DEFAULT_OUTPUT = Path("results") / "figures" / "quantizer_gallery.png"
POINTS = 401
COLUMNS = 4
LOW, HIGH = -2.2, 3.2
# Strength of the line that begins a schedule; its end has 1.
PALEST = 0.35


def build(cls: type[Quantizer], options: Mapping[str, Any], learned: Mapping[str, float], fan_in: int) -> Quantizer:
    """Return a quantizer of one filter of `fan_in` weights, or of one channel, with these learned values."""
    found = describe(cls)
    # fan_in says that it is for weights.
    facts = {} if found is not None and found.group == BINARY_INPUTS else {"fan_in": fan_in}
    quantizer = make_quantizer(partial(cls, **options), cls.__name__, None, channels=1, channel_axis=0, **facts)
    with torch.no_grad():
        for name, value in learned.items():
            getattr(quantizer, name).fill_(value)
    return quantizer


def panel_of(cls: type[Quantizer]) -> Panel:
    """Return how a class is drawn: as its description says, or as it is where it has none."""
    found = describe(cls)
    return found.panel if found else Panel()


def variants(cls: type[Quantizer]) -> list[Quantizer]:
    """Return the quantizers of which a panel shows one line each, the strongest last."""
    panel = panel_of(cls)
    name, values = panel.schedule or ("", (None,))
    made = []
    for value in values:
        torch.manual_seed(0)  # of rotations
        options = {**panel.options, name: value} if name else panel.options
        made.append(build(cls, options, panel.learned, POINTS).train(panel.training))
    return made


def sections(classes: Sequence[type[Quantizer]]) -> dict[str, list[type[Quantizer]]]:
    """Return the classes by group: what stands before the colon of its name."""
    found: dict[str, list[type[Quantizer]]] = {}
    for cls in classes:
        text = describe(cls)
        found.setdefault(text.group.partition(":")[0] if text else "Others", []).append(cls)
    return found


def curves(quantizer: Quantizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x, q(x) and dq/dx, each (POINTS,); dq/dx in training if there is none in evaluation."""
    x = torch.linspace(-2, 2, POINTS, dtype=torch.float64)[None].requires_grad_()
    y: Tensor = quantizer.double()(x)
    differentiable = y if y.requires_grad else quantizer.train()(x)
    if quantizer.elementwise:
        (gradient,) = torch.autograd.grad(differentiable.sum(), x)
    else:
        # Each output's gradient to all inputs, in one batched call; of these, the one to its own input.
        each = torch.eye(POINTS, dtype=x.dtype)[:, None]
        (rows,) = torch.autograd.grad(differentiable, x, each, is_grads_batched=True)
        gradient = rows[:, 0].diagonal()[None]
    return x[0].detach().numpy(), y[0].detach().numpy(), gradient[0].numpy()


def _draw_panel(axis: Axes, cls: type[Quantizer]) -> None:
    """Draw forward and gradient of each variant."""
    panel, text, made = panel_of(cls), describe(cls), variants(cls)
    for quantizer, strength in zip(made, np.linspace(PALEST, 1, len(made)) if len(made) > 1 else (1.0,), strict=True):
        x, y, gradient = curves(quantizer)
        line: dict[str, Any] = {"linestyle": "", "marker": ".", "markersize": 1.5} if panel.dots else {}
        axis.plot(x, gradient, color=style.ORANGE, alpha=strength, linewidth=1.2, **line)
        axis.plot(x, y, color=style.BLUE, alpha=strength, linewidth=1.6, **line)
    axis.set_title(cls.__name__, loc="left", fontweight="bold", pad=27)
    lines = f"{text.method if text else ''}\n{panel.note}"
    axis.text(0, 1.03, lines, transform=axis.transAxes, va="bottom", fontsize=style.SMALL)
    axis.set(xlim=(-2, 2), ylim=(LOW, HIGH), xticks=[-2, -1, 0, 1, 2], yticks=[-2, -1, 0, 1, 2, 3])


def plot(classes: Sequence[type[Quantizer]]) -> Figure:
    """Return the figure: a block of panels for each group."""
    blocks = sections(classes)
    rows = [-(-len(block) // COLUMNS) for block in blocks.values()]
    figure = style.empty(1.95 * sum(rows) + 0.35 * len(rows) + 0.5)
    parts: Any = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=[1.95 * n + 0.35 for n in rows])
    with torch.random.fork_rng():
        for part, count, (name, block) in zip(parts.flat, rows, blocks.items(), strict=True):
            axes = part.subplots(count, COLUMNS, squeeze=False)
            part.suptitle(name, x=0.01, ha="left", fontsize=style.LARGE, fontweight="bold", color=style.BLUE)
            for axis, cls in zip(axes.flat, block, strict=False):
                _draw_panel(axis, cls)
            for axis in axes.flat[len(block) :]:
                axis.set_axis_off()
    lines = [
        Line2D([], [], color=style.BLUE, label="forward q(x)"),
        Line2D([], [], color=style.ORANGE, label=f"gradient (cut at {HIGH})"),
        Line2D([], [], color=style.GREY, alpha=PALEST, label="paler: earlier in a schedule"),
    ]
    figure.legend(handles=lines, loc="outside upper center", ncols=3)
    return figure


def find_class(name: str) -> type[Quantizer]:
    """Return the quantizer of a dotted name, or of a name in bnn.quantizers; SystemExit says what is wrong."""
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module or "bnn.quantizers"), attribute, None)
    except ImportError as error:
        raise SystemExit(f"error: {name}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Quantizer)):
        raise SystemExit(f"error: {name} is no class of quantizers; name one of bnn.quantizers, or MODULE.CLASS")
    return found


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", nargs="+", metavar="CLASS", help="draw these alone, MODULE.CLASS for your own")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="picture to write (.png, .pdf, .svg)")
    options = parser.parse_args(arguments)
    classes = [find_class(name) for name in options.classes] if options.classes else described(quantizers)
    save(plot(classes), options.output)
    print(f"written: {options.output}")


if __name__ == "__main__":
    sys.exit(main())
