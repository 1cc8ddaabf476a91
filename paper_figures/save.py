"""Writing a figure: whole or not at all, and the same bytes for the same numbers."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# No time of drawing in the file.
TIMELESS = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def save(figure: Figure, output: Path) -> None:
    """Write the figure in the format of the name's ending (.png, .pdf, .svg; png without one), and close it."""
    kind = output.suffix.lstrip(".") or "png"
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(output.name + ".tmp")
    figure.savefig(temporary, dpi=150, format=kind, metadata=TIMELESS.get(kind))
    plt.close(figure)
    temporary.replace(output)
