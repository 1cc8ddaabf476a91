"""Accuracy against what it costs, bytes or time: a point for each experiment, and the front that nothing beats."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from paper_figures import style
from paper_figures.labels import name_points

# Of more points than these only those of the front get names, the others are pale.
MOST_NAMED = 12


@dataclass(frozen=True)
class Point:
    """One experiment.

    name: label. cost: bytes or time, positive. values: one for each seed. spread: (least, largest) cost, if known.
    interval: of the mean, if it is known; else the bar is the standard deviation of the values.
    """

    name: str
    cost: float
    values: tuple[float, ...]
    spread: tuple[float, float] | None = None
    interval: tuple[float, float] | None = None

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return float(np.mean(self.values))


def front(points: Sequence[Point], lower_is_better: bool = False) -> list[Point]:
    """Return the points that no other beats: none costs at most as much and is better, or less and is as good.

    lower_is_better: of the values, as of bits a token.

    >>> [p.name for p in front([Point("a", 1, (0.5,)), Point("b", 2, (0.4,)), Point("c", 3, (0.9,))])]
    ['a', 'c']
    """
    sign = -1 if lower_is_better else 1
    best, found = -np.inf, []
    for point in sorted(points, key=lambda p: (p.cost, -sign * p.mean)):
        if sign * point.mean > best:
            best = sign * point.mean
            found.append(point)
    return found


def draw_points(axis: Axes, points: Sequence[Point], lower_is_better: bool = False) -> None:
    """Draw points on an axis, costs logarithmic, and the step line of their front; `name_all` writes their names."""
    edge = front(points, lower_is_better)
    line = ([point.cost for point in edge], [point.mean for point in edge])
    axis.step(
        *line, where="post", color=style.GREY, linewidth=1, linestyle="--", label="nothing is better at this cost"
    )
    crowded = len(points) > MOST_NAMED
    for point in points:
        sideways = upright = None
        if point.spread is not None:
            sideways = [[point.cost - point.spread[0]], [point.spread[1] - point.cost]]
        if point.interval is not None:
            upright = [[point.mean - point.interval[0]], [point.interval[1] - point.mean]]
        elif len(point.values) > 1:
            upright = [[float(np.std(point.values, ddof=1))]] * 2
        look: dict[str, Any] = {"color": style.BLUE, "capsize": 3, "markersize": 6, "zorder": 3}
        if point not in edge:
            look = {"color": style.GREY, "capsize": 3, "markersize": 6}
            if crowded:
                look = {"color": style.GREY, "alpha": 0.45, "capsize": 0, "markersize": 4, "elinewidth": 0.8}
        axis.errorbar(point.cost, point.mean, upright, sideways, fmt="o", **look)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.12g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(0.15)


def name_all(axis: Axes, points: Sequence[Point], lower_is_better: bool = False) -> None:
    """Write the names of points that `draw_points` drew: of all, or of many those of the front alone."""
    named = points if len(points) <= MOST_NAMED else front(points, lower_is_better)
    others = [(point.cost, point.mean) for point in points if point not in named]
    name_points(axis, [(point.name, point.cost, point.mean) for point in named], others)


def plot(points: Sequence[Point], cost: str, value: str, lower_is_better: bool = False) -> Figure:
    """Return a figure of quality against cost; see `draw_points`. cost, value: labels of the axes."""
    figure, axis = style.panels(1, 1, 3.8, style.HALF)
    draw_points(axis, points, lower_is_better)
    axis.set_xlabel(cost)
    axis.set_ylabel(value)
    figure.legend(loc="outside upper center")
    name_all(axis, points, lower_is_better)
    return figure
