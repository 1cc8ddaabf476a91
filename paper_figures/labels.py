"""Names beside the points of a plot, each on the side where it covers no other name and no point, if there is one."""

from collections.abc import Sequence
from itertools import product

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

from paper_figures import style

# Where a name may stand, in points from its point: distances to the right or left, above or below.
_PLACES = tuple((x * side, y) for y, x, side in product((5, -12, 14, -21, 23), (6, 14), (1, -1)))


def name_points(axis: Axes, names: Sequence[tuple[str, float, float]], others: Sequence[tuple[float, float]]) -> None:
    """Write names at points of a drawn axis.

    names: (name, x, y), in coordinates of the data. others: points without names, which names leave free if they can.
    """
    figure = axis.figure.get_figure(root=True)
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # settles where the axes lie
    marks = [axis.transData.transform(place) for place in [*((x, y) for _, x, y in names), *others]]
    taken: list[Bbox] = []
    for name, x, y in names:
        best, least = None, None
        for across, up in _PLACES:
            text = axis.annotate(
                name, (x, y), (across, up), textcoords="offset points", fontsize=style.SMALL,
                ha="left" if across > 0 else "right",
            )  # fmt: skip
            box = text.get_window_extent(canvas.get_renderer()).padded(2)
            covered = 10 * sum(box.overlaps(other) for other in taken) + sum(box.contains(*mark) for mark in marks)
            covered += 10 * (not (axis.bbox.containsx(box.x0) and axis.bbox.containsx(box.x1)))
            text.remove()
            if least is None or covered < least:
                best, least = (across, up, box), covered
            if covered == 0:
                break
        assert best is not None
        across, up, box = best
        taken.append(box)
        axis.annotate(
            name, (x, y), (across, up), textcoords="offset points", fontsize=style.SMALL,
            ha="left" if across > 0 else "right",
        )  # fmt: skip
