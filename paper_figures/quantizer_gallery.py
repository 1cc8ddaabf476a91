"""Forward and gradient of every quantizer, drawn from the classes themselves.

bitplanes figures quantizer_gallery [--output FILE]

Inputs are 401 numbers from -2 to 2. A quantizer of weights is given them as one filter; where its values depend on all
of them (a mean, a standard deviation), the gradient is that of each value to its own weight.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from bnn import quantizers as q
from bnn.quantizers import Quantizer
from paper_figures import style
from paper_figures.save import save

DEFAULT_OUTPUT = Path("results") / "figures" / "quantizer_gallery.png"
POINTS = 401
COLUMNS = 4
LOW, HIGH = -2.2, 3.2
# Strength of the lines where a panel shows a schedule: from its start to its end.
SHADES = (0.35, 0.65, 1.0)


@dataclass(frozen=True)
class Panel:
    """One quantizer: its method and note, and the variants of which one line each is drawn, the strongest last.

    dots: the value of a weight depends on others so much that no line connects neighbours.
    """

    method: str
    variants: tuple[Callable[[], Quantizer], ...]
    note: str = ""
    training: bool = False
    dots: bool = False

    @property
    def name(self) -> str:
        """The class."""
        return type(self.variants[0]()).__name__


def _set(make: Callable[[], Quantizer], **values: float) -> Callable[[], Quantizer]:
    """Return a factory whose learned values are these instead of their start."""

    def made() -> Quantizer:
        quantizer = make()
        with torch.no_grad():
            for name, value in values.items():
                getattr(quantizer, name).fill_(value)
        return quantizer

    return made


def _schedule(make: Callable[..., Quantizer], attribute: str, *values: float) -> tuple[Callable[[], Quantizer], ...]:
    return tuple(partial(make, **{attribute: value}) for value in values)


SECTIONS = {
    "Inputs of one bit": (
        Panel("BNN", (q.SteSign,)),
        Panel("Bi-Real", (q.ApproxSign,)),
        Panel("BNN+", (q.SwishSign,), r"$\beta$ = 5: 5 at the peak"),
        Panel("IR-Net", _schedule(q.EdeSign, "t", 0.5, 1, 3), "t = 0.5, 1, 3"),
        Panel("RBNN", _schedule(q.RbnnSign, "t", 0.5, 1, 3), "t = 0.5, 1, 3"),
        Panel("FDA", _schedule(partial(q.FdaSign, frequency=1.0), "n", 1, 2, 4), r"n = 1, 2, 4, $\omega$ = 1"),
        Panel(
            "FDA, noise adaptation",
            (_set(partial(q.NoiseAdaptedSign, 1, 0, n=2, frequency=1.0, alpha=1.0), reduce=1.0, expand=0.3),),
            r"$\alpha$ = 1, n = 2, $\omega$ = 1",
            True,
        ),
        Panel("ReActNet", (_set(partial(q.RSign, channels=1), shift=0.5),), "a = 0.5"),
        Panel("ReCU", (q.RecuSign,), "input divided by its deviation", True),
        Panel("AdaBin", (_set(q.AdaBinActivation, alpha=0.8, beta=0.4),), r"$\alpha$ = 0.8, $\beta$ = 0.4"),
        Panel("BNN, random in training", (q.StochasticSign,), "here in evaluation"),
        Panel("bitorch", _schedule(q.ProgressiveSign, "progress", 0.02, 0.1, 0.5), "p = 0.02, 0.1, 0.5", True),
    ),
    "Weights of one bit": (
        Panel("BinaryConnect", (q.BinaryConnect,)),
        Panel("XNOR-Net, BWN", (q.XnorWeight,)),
        Panel("Bi-Real", (q.MagnitudeAwareSign,)),
        Panel("XNOR-Net++", (_set(partial(q.LearnedScaleWeight, channels=1), alpha=0.7),), r"$\alpha$ = 0.7"),
        Panel("IR-Net", _schedule(q.LibraWeight, "t", 0.5, 1, 3), "t = 0.5, 1, 3"),
        Panel("ReCU", _schedule(partial(q.RecuWeight, 1), "tau", 0.7, 0.85, 0.99), r"$\tau$ = 0.7, 0.85, 0.99"),
        Panel("RBNN", (partial(q.RotatedWeight, 1, POINTS, t=1.0),), "t = 1, a dot for each weight", True, True),
        Panel("AdaBin", _schedule(q.AdaBinWeight, "t", 0.5, 1, 3), "t = 0.5, 1, 3"),
    ),
    "Three values": (
        Panel("TWN", (q.TernaryWeight,)),
        Panel("TTQ", (_set(partial(q.TrainedTernary, t=0.25), wp=1.5, wn=0.8),), r"$W_p$ = 1.5, $W_n$ = 0.8, t = 0.25"),
        Panel("BitNet b1.58", (q.AbsmeanTernary,)),
        Panel("TBN", (partial(q.TernaryActivation, threshold=0.4),), r"$\Delta$ = 0.4"),
    ),
    "Few bits": (
        Panel("DoReFa-Net", (partial(q.DoReFaWeight, 2),), "2 bits"),
        Panel("DoReFa-Net", (partial(q.DoReFaActivation, 2),), "2 bits"),
        Panel("PACT", (partial(q.Pact, 2, alpha=1.5),), r"2 bits, $\alpha$ = 1.5"),
        Panel("LSQ", (_set(partial(q.LsqWeight, 3), step=0.4),), "3 bits, s = 0.4"),
        Panel("LSQ", (_set(partial(q.LsqActivation, 2), step=0.5),), "2 bits, s = 0.5"),
        Panel("LQ-Net", (partial(q.LqWeight, 2, 1, momentum=1.0),), "2 bits", True),
        Panel("LQ-Net", (partial(q.LqActivation, 2),), "2 bits"),
        Panel("ABC-Net", (partial(q.AbcWeight, 3),), "3 bases"),
        Panel("ABC-Net", (partial(q.AbcActivation, 3),), "3 bases"),
        Panel("BitNet b1.58", (partial(q.AbsmaxActivation, 3),), "3 bits here, 8 in the paper"),
    ),
}

PANELS = tuple(panel for panels in SECTIONS.values() for panel in panels)


def curves(quantizer: Quantizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x, q(x) and dq/dx, each (POINTS,)."""
    x = torch.linspace(-2, 2, POINTS, dtype=torch.float64)[None].requires_grad_()
    y: Tensor = quantizer.double()(x)
    if quantizer.elementwise:
        (gradient,) = torch.autograd.grad(y.sum(), x)
    else:
        rows = [torch.autograd.grad(y[0, i], x, retain_graph=True)[0][0, i] for i in range(POINTS)]
        gradient = torch.stack(rows)[None]
    return x[0].detach().numpy(), y[0].detach().numpy(), gradient[0].numpy()


def _draw_panel(axis: Axes, panel: Panel) -> None:
    """Draw forward and gradient of each variant."""
    for make, strength in zip(panel.variants, SHADES[-len(panel.variants) :], strict=True):
        torch.manual_seed(0)  # of rotations
        x, y, gradient = curves(make().train(panel.training))
        line: dict[str, Any] = {"linestyle": "", "marker": ".", "markersize": 1.5} if panel.dots else {}
        axis.plot(x, gradient, color=style.ORANGE, alpha=strength, linewidth=1.2, **line)
        axis.plot(x, y, color=style.BLUE, alpha=strength, linewidth=1.6, **line)
    axis.set_title(panel.name, loc="left", fontweight="bold", pad=27)
    axis.text(0, 1.03, f"{panel.method}\n{panel.note}", transform=axis.transAxes, va="bottom", fontsize=style.SMALL)
    axis.set(xlim=(-2, 2), ylim=(LOW, HIGH), xticks=[-2, -1, 0, 1, 2], yticks=[-2, -1, 0, 1, 2, 3])


def plot() -> Figure:
    """Return the figure: a block of panels for each section."""
    rows = [-(-len(panels) // COLUMNS) for panels in SECTIONS.values()]
    figure = style.empty(1.95 * sum(rows) + 0.35 * len(rows) + 0.5)
    parts: Any = figure.subfigures(len(rows), 1, height_ratios=[1.95 * n + 0.35 for n in rows])
    with torch.random.fork_rng():
        for part, count, (name, panels) in zip(parts, rows, SECTIONS.items(), strict=True):
            axes = part.subplots(count, COLUMNS, squeeze=False)
            part.suptitle(name, x=0.01, ha="left", fontsize=style.LARGE, fontweight="bold", color=style.BLUE)
            for axis, panel in zip(axes.flat, panels, strict=False):
                _draw_panel(axis, panel)
            for axis in axes.flat[len(panels) :]:
                axis.set_axis_off()
    lines = [
        Line2D([], [], color=style.BLUE, label="forward q(x)"),
        Line2D([], [], color=style.ORANGE, label=f"gradient (cut at {HIGH})"),
        Line2D([], [], color=style.GREY, alpha=SHADES[0], label="paler: earlier in a schedule"),
    ]
    figure.legend(handles=lines, loc="outside upper center", ncols=3)
    return figure


def draw(output: Path) -> None:
    """Draw all panels and write them."""
    save(plot(), output)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="picture to write (.png, .pdf, .svg)")
    options = parser.parse_args(arguments)
    draw(options.output)
    print(f"written: {options.output}")


if __name__ == "__main__":
    sys.exit(main())
