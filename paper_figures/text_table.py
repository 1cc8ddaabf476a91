"""Tables as text, Markdown or LaTeX for booktabs, and the file that they are written to."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

Cells = Sequence[Sequence[str]]


def markdown_table(title: str, columns: Sequence[str], rows: Cells) -> str:
    """Return a table with its title above it, a blank line behind it."""
    # A bar in a cell, as in |W|, would end it.
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"**{title}**\n", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *body, ""])


def latex_table(caption: str, columns: Sequence[str], rows: Cells, left: int = 2) -> str:
    """Return a table for LaTeX's booktabs; left: columns of words, the others are of numbers."""
    body = [" & ".join(map(_escaped, row)) + r" \\" for row in rows]
    lines = [
        r"\begin{table}", rf"\caption{{{_escaped(caption)}}}",
        rf"\begin{{tabular}}{{{'l' * left}{'r' * (len(columns) - left)}}}", r"\toprule",
        " & ".join(map(_escaped, columns)) + r" \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}",
        r"\end{table}", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _escaped(cell: str) -> str:
    cell = cell.replace("\\", r"\textbackslash{}").replace("_", r"\_").replace("%", r"\%").replace("&", r"\&")
    return cell.replace("±", r"$\pm$").replace("|W|", "$|W|$").replace("<", "$<$")


def write_table(output: Path, kinds: dict[str, Callable[[], str]]) -> None:
    """Write what the kind of a file's ending makes, whole or not at all; SystemExit says what is wrong with the file.

    kinds: {".md": ..., ".tex": ...}.
    """
    if output.suffix not in kinds:
        raise SystemExit(f"error: {output} should end in {', '.join(kinds)}")
    text = kinds[output.suffix]()
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(output)
    except OSError as error:
        raise SystemExit(f"error: {output} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    print(f"written: {output}")
