"""Forward and gradient of every quantizer, drawn from the classes themselves.

python -m paper_figures.quantizer_gallery [--output FILE]

Inputs are 401 numbers from -2 to 2. A quantizer of weights is given them as one filter; where its values depend on all
of them (a mean, a standard deviation), the gradient is that of each value to its own weight.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from bnn import quantizers as q
from bnn.quantizers import Quantizer
from paper_figures.save import save

DEFAULT_OUTPUT = Path("results") / "figures" / "quantizer_gallery.png"
BLUE, ORANGE, GRID = "#1f5fa8", "#d9662b", "#dddddd"
POINTS = 401
COLUMNS = 8
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
    def title(self) -> str:
        """The class and the method."""
        return f"{type(self.variants[0]()).__name__}\n{self.method}"


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


PANELS = (
    # inputs of one bit
    Panel("BNN", (q.SteSign,)),
    Panel("Bi-Real", (q.ApproxSign,)),
    Panel("BNN+", (q.SwishSign,), "5 at its peak"),
    Panel("IR-Net", _schedule(q.EdeSign, "t", 0.5, 1, 3), "t = 0.5, 1, 3"),
    Panel("RBNN", _schedule(q.RbnnSign, "t", 0.5, 1, 3), "t = 0.5, 1, 3"),
    Panel("FDA", _schedule(partial(q.FdaSign, frequency=1.0), "n", 1, 2, 4), "n = 1, 2, 4, w = 1"),
    Panel(
        "FDA, noise adaptation",
        (_set(partial(q.NoiseAdaptedSign, 1, 0, n=2, frequency=1.0, alpha=1.0), reduce=1.0, expand=0.3),),
        "alpha = 1, n = 2, w = 1",
        True,
    ),
    Panel("ReActNet", (_set(partial(q.RSign, channels=1), shift=0.5),), "a = 0.5"),
    Panel("ReCU", (q.RecuSign,), "x / std x", True),
    Panel("AdaBin", (_set(q.AdaBinActivation, alpha=0.8, beta=0.4),), "alpha = 0.8, beta = 0.4"),
    Panel("BNN, random in training", (q.StochasticSign,), "evaluation"),
    Panel("bitorch", _schedule(q.ProgressiveSign, "progress", 0.02, 0.1, 0.5), "p = 0.02, 0.1, 0.5", True),
    # weights of one bit
    Panel("BinaryConnect", (q.BinaryConnect,)),
    Panel("XNOR-Net, BWN", (q.XnorWeight,)),
    Panel("Bi-Real", (q.MagnitudeAwareSign,)),
    Panel("XNOR-Net++", (_set(partial(q.LearnedScaleWeight, channels=1), alpha=0.7),), "alpha = 0.7"),
    Panel("IR-Net", _schedule(q.LibraWeight, "t", 0.5, 1, 3), "t = 0.5, 1, 3"),
    Panel("ReCU", _schedule(partial(q.RecuWeight, 1), "tau", 0.7, 0.85, 0.99), "tau = 0.7, 0.85, 0.99"),
    Panel("RBNN", (partial(q.RotatedWeight, 1, POINTS, t=1.0),), "t = 1; a dot a weight", True, True),
    Panel("AdaBin", _schedule(q.AdaBinWeight, "t", 0.5, 1, 3), "t = 0.5, 1, 3"),
    # three values
    Panel("TWN", (q.TernaryWeight,)),
    Panel("TTQ", (_set(partial(q.TrainedTernary, t=0.25), wp=1.5, wn=0.8),), "Wp = 1.5, Wn = 0.8, t = 0.25"),
    Panel("BitNet b1.58", (q.AbsmeanTernary,)),
    Panel("TBN", (partial(q.TernaryActivation, threshold=0.4),), "delta = 0.4"),
    # few bits
    Panel("DoReFa-Net", (partial(q.DoReFaWeight, 2),), "2 bits"),
    Panel("DoReFa-Net", (partial(q.DoReFaActivation, 2),), "2 bits"),
    Panel("PACT", (partial(q.Pact, 2, alpha=1.5),), "2 bits, alpha = 1.5"),
    Panel("LSQ", (_set(partial(q.LsqWeight, 3), step=0.4),), "3 bits, s = 0.4"),
    Panel("LSQ", (_set(partial(q.LsqActivation, 2), step=0.5),), "2 bits, s = 0.5"),
    Panel("LQ-Net", (partial(q.LqWeight, 2, 1, momentum=1.0),), "2 bits", True),
    Panel("LQ-Net", (partial(q.LqActivation, 2),), "2 bits"),
    Panel("ABC-Net", (partial(q.AbcWeight, 3),), "3 bases"),
    Panel("ABC-Net", (partial(q.AbcActivation, 3),), "3 bases"),
    Panel("BitNet b1.58", (partial(q.AbsmaxActivation, 3),), "3 bits here, 8 in the paper"),
)


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


def _draw_panel(axis: plt.Axes, panel: Panel) -> None:
    """Draw forward and gradient of each variant."""
    for make, strength in zip(panel.variants, SHADES[-len(panel.variants) :], strict=True):
        torch.manual_seed(0)  # of rotations
        x, y, gradient = curves(make().train(panel.training))
        line = {"linestyle": "", "marker": ".", "markersize": 1.5} if panel.dots else {}
        axis.plot(x, gradient, color=ORANGE, alpha=strength, linewidth=1.2, **line)
        axis.plot(x, y, color=BLUE, alpha=strength, linewidth=1.6, **line)
    axis.set_title(panel.title, fontsize=8)
    axis.text(0.03, 0.95, panel.note, transform=axis.transAxes, va="top", fontsize=6.5, color="#555555")
    axis.set_xlim(-2, 2)
    axis.set_ylim(-2.2, 3.2)
    axis.set_xticks([-1, 0, 1])
    axis.set_yticks([-2, -1, 0, 1, 2, 3])
    axis.tick_params(labelsize=6.5, length=2)
    axis.grid(color=GRID, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def draw(output: Path) -> None:
    """Draw all panels and write them."""
    rows = -(-len(PANELS) // COLUMNS)
    with torch.random.fork_rng():
        figure, axes = plt.subplots(
            rows, COLUMNS, figsize=(2 * COLUMNS, 2.15 * rows + 0.4), constrained_layout=True, sharex=True, sharey=True
        )
        for axis, panel in zip(axes.flat, PANELS, strict=False):
            _draw_panel(axis, panel)
    for axis in axes.flat[len(PANELS) :]:
        axis.set_visible(False)
    lines = [plt.Line2D([], [], color=BLUE, label="forward q(x)"), plt.Line2D([], [], color=ORANGE, label="gradient")]
    figure.legend(handles=lines, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    save(figure, output)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="picture to write (.png, .pdf, .svg)")
    options = parser.parse_args(arguments)
    draw(options.output)
    print(f"written: {options.output}")


if __name__ == "__main__":
    sys.exit(main())
