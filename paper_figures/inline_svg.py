"""A figure as SVG text that stands within an HTML page and takes the page's colours, light or dark."""

import io
import re

import matplotlib
from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.save import TIMELESS

# Colours of a page, by the colours that they stand for in a figure: CSS gives both their values.
_OF_THE_PAGE = {
    style.DARK: "currentColor",
    "#000000": "currentColor",
    style.LINES: "var(--line)",
    "#ffffff": "var(--paper)",
}


def inline_svg(figure: Figure, says: str) -> str:
    """Return the figure as an <svg> element of its own shape, with text as text.

    says: what stands for it where it is not seen. Grid, axes and text take the page's colours; data keep theirs.
    """
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata=TIMELESS["svg"])
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    # The drawing's own shape at the page's width.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, name in _OF_THE_PAGE.items():
        text = text.replace(colour, name)
    label = says.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
