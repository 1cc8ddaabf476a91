"""The command line of a figure that is drawn from one result file."""

import argparse
from collections.abc import Callable
from pathlib import Path

from paper_figures.ledger_file import Entry, LedgerError, read_ledger


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


def read_entries(results: Path) -> list[Entry]:
    """Return the entries of a ledger; SystemExit with a message if the file is missing or no ledger."""
    try:
        return read_ledger(results)
    except FileNotFoundError:
        raise SystemExit(f"error: {results} is missing; experiments.collect output={results} writes it") from None
    except LedgerError as error:
        raise SystemExit(f"error: {error}") from None
