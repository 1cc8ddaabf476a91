"""Writing a figure: whole or not at all, and the same bytes for the same numbers."""

import os
from pathlib import Path

from matplotlib.figure import Figure

from paper_figures.style import DPI

# No time of drawing in the file.
TIMELESS = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def save(figure: Figure, output: Path) -> None:
    """Write the figure in the format of the name's ending (.png, .pdf, .svg; png without one).

    SystemExit says what hinders it; a figure that was there stays as it was then.
    """
    kind = output.suffix.lstrip(".") or "png"
    if kind not in TIMELESS:
        raise SystemExit(f"error: {output} should end in {', '.join('.' + name for name in TIMELESS)}")
    # The name of this process: two that draw the same figure write two files.
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, dpi=DPI, format=kind, metadata=TIMELESS[kind])
        temporary.replace(output)
    except OSError as error:
        raise SystemExit(f"error: {output} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
