"""The command line of a figure that is drawn from one result file."""

import argparse
from collections.abc import Callable
from pathlib import Path


def draw_from_file(
    description: str | None,
    results: Path,
    output: Path,
    file_help: str,
    draw: Callable[[Path, Path], None],
    arguments: list[str] | None,
) -> None:
    """Parse --results and --output, with these defaults, and draw(results, output)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=results, help=file_help)
    parser.add_argument("--output", type=Path, default=output, help="picture to write (.png, .pdf, .svg)")
    options = parser.parse_args(arguments)
    draw(options.results, options.output)
    print(f"written: {options.output}")
