"""Learning curves: accuracy or bits of the validation split against epochs, one colour for each experiment."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from paper_figures import style

# Okabe and Ito's colours that are neither too light on white nor too dark on black.
COLOURS = (style.BLUE, style.ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", style.GREY)


def plot(curves: Mapping[str, Sequence[Sequence[float]]], what: str) -> Figure:
    """Return a figure of {experiment: one curve for each seed}, each curve a value for each epoch from the first on.

    Thin lines are seeds, the thick line their mean as far as all have come. nan is an epoch without a measurement.
    what: the label of the values.
    """
    figure, axis = style.panels(1, 1, 3.8, style.HALF)
    for place, (name, seeds) in enumerate(curves.items()):
        colour = COLOURS[place % len(COLOURS)]
        dash = ("-", "--", ":", "-.")[place // len(COLOURS) % 4]
        for values in seeds:
            there = np.flatnonzero(np.isfinite(values))
            axis.plot(there + 1, np.asarray(values)[there], color=colour, linewidth=0.7, alpha=0.5, linestyle=dash)
        length = min(map(len, seeds))
        mean = np.mean([values[:length] for values in seeds], axis=0)
        there = np.flatnonzero(np.isfinite(mean))
        marker = "o" if len(there) == 1 else None
        axis.plot(there + 1, mean[there], color=colour, linewidth=2, linestyle=dash, marker=marker, label=name)
    axis.set_xlabel("epoch")
    axis.set_ylabel(what)
    figure.legend(loc="outside upper center", ncols=3)
    return figure
