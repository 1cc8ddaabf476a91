"""What is wrong with a figure as it is drawn: text that is cut, small, over other text, or with a line through it."""

from functools import lru_cache
from itertools import combinations
from unittest.mock import patch

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.text import Text
from matplotlib.transforms import Bbox

SMALLEST = 8  # points, in a figure of WIDTH inches
WIDTH = 9


@lru_cache(maxsize=4)
def drawn_texts(figure):
    """Return (text, its box in pixels) of everything that is written when the figure is drawn."""
    found = []
    draw = Text.draw

    def keep(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            found.append(self)
        draw(self, renderer, *args, **kwargs)

    with patch.object(Text, "draw", keep):
        FigureCanvasAgg(figure).draw()
    return [(text, text.get_window_extent()) for text in dict.fromkeys(found)]


def words(figure):
    """Return all that is written, as a list of strings."""
    return [text.get_text() for text, _ in drawn_texts(figure)]


def _paths(axes):
    """Yield (path in pixels, whether neighbours are joined) of the lines of an axes: curves, rules, bars of errors."""
    for line in axes.lines:
        yield line.get_transform().transform_path(line.get_path()), line.get_linestyle() not in ("", " ", "None")
    for collection in axes.collections:
        if isinstance(collection, LineCollection):
            yield from ((collection.get_transform().transform_path(path), True) for path in collection.get_paths())


def _crosses(path, joined, box):
    return path.intersects_bbox(box, filled=False) if joined else any(box.contains(x, y) for x, y in path.vertices)


def faults(figure):
    """Return a line for each text that cannot be read; [] for a figure that can."""
    texts = drawn_texts(figure)
    found = [] if figure.get_figwidth() == WIDTH else [f"{figure.get_figwidth()} inches wide"]
    found += [f"small: {t.get_text()!r}" for t, _ in texts if t.get_fontsize() < SMALLEST]
    page = figure.bbox.padded(1)
    found += [f"cut: {t.get_text()!r}" for t, b in texts if not all(page.contains(*corner) for corner in b.corners())]
    inner = [(text, box.padded(-1)) for text, box in texts if box.width > 2 and box.height > 2]
    for (one, first), (other, second) in combinations(inner, 2):
        if first.overlaps(second):
            found.append(f"over each other: {one.get_text()!r} and {other.get_text()!r}")
    for axes in figure.findobj(lambda artist: hasattr(artist, "lines") and hasattr(artist, "transAxes")):
        for text, box in inner:
            inside = Bbox.intersection(box, axes.bbox)  # lines end at the edge of their axes
            if inside is not None and any(_crosses(path, joined, inside) for path, joined in _paths(axes)):
                found.append(f"a line through {text.get_text()!r}")
    return found
