"""The one look of all figures: width, sizes of text, colours, and how axes are drawn.

A figure is WIDTH inches wide and is shown about 900 pixels wide, so 8.5 points are 12 pixels there. The colours are
those of Okabe and Ito (2008), which colour-blind readers tell apart; lightness differs too, for print in grey.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

WIDTH = 9.0
HALF = 5.6  # of a figure that is shown about 560 pixels wide, two in a row
DPI = 200
SMALL, NORMAL, LARGE = 8.5, 9.5, 11.0
BLUE, ORANGE, GREY, DARK, LINES = "#0072b2", "#d55e00", "#8c8c8c", "#444444", "#dddddd"

# Characters of NORMAL text that fit in an inch of a figure.
_CHARACTERS_AN_INCH = 12.5

_SETTINGS: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": DARK,
    "axes.grid": True,
    "axes.labelsize": NORMAL,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": NORMAL,
    "figure.constrained_layout.use": True,
    "figure.titlesize": LARGE,
    "font.size": NORMAL,
    "grid.color": LINES,
    "grid.linewidth": 0.6,
    "legend.fontsize": NORMAL,
    "legend.frameon": False,
    "svg.hashsalt": "bitplanes",  # the same names in every file
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
}


def panels(rows: int, columns: int, height: float, width: float = WIDTH, **options: Any) -> tuple[Figure, Any]:
    """Return a figure of this height and width in inches and its axes, as `plt.subplots` does.

    The figure belongs to nobody but the caller: pyplot does not know it, so one that is dropped is gone.
    """
    figure = empty(height, width)
    return figure, figure.subplots(rows, columns, **options)


def empty(height: float, width: float = WIDTH) -> Figure:
    """Return a figure of this height and width in inches without axes."""
    matplotlib.rcParams.update(_SETTINGS)
    return Figure(figsize=(width, height))


def wrapped(text: str, size: float = NORMAL, inches: float = WIDTH) -> str:
    """Return the text in lines that fit a width in inches at a size in points."""
    return textwrap.fill(text, int(inches * _CHARACTERS_AN_INCH * NORMAL / size))


def title(figure: Figure, text: str) -> None:
    """Write a figure's title, in as many lines as it takes."""
    figure.suptitle(wrapped(text, LARGE), fontsize=LARGE)


def legend_with_title(figure: Figure, text: str, handles: Sequence[Artist], columns: int = 5) -> None:
    """Write a figure's title and below it its legend, above all panels: two texts there know nothing of each other."""
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(len(handles), columns),
        title=wrapped(text, LARGE),
        title_fontsize=LARGE,
        alignment="center",
    )


def logarithmic(axis: Axes, which: str, base: int = 10) -> None:
    """Make "x" or "y" of an axis logarithmic, its ticks plain numbers."""
    getattr(axis, f"set_{which}scale")("log", base=base)
    getattr(axis, f"{which}axis").set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
