"""Tables of docs/quantizers.md, made from the classes' descriptions and the files of configs/quantizer.

bitplanes figures quantizer_table [--output FILE]

The tables stand between lines of comments in the page; what is written around them stays.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bnn import quantizers
from bnn.layers.base import make_quantizer
from bnn.presets import preset, preset_comment, preset_names
from bnn.quantizers.description import BINARY_INPUTS, FEW_BITS, GROUPS, describe, described

DEFAULT_OUTPUT = Path("docs") / "quantizers.md"
TABLE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("| --- ", "|---").replace("|--- |", "|---|")


def class_table(group: str) -> str:
    """Return the table of a group's classes in Markdown."""
    rows = []
    for cls in described(quantizers):
        found = describe(cls)
        if found is None or found.group != group:
            continue
        others = [name for name, value in vars(quantizers).items() if value is cls and name != cls.__name__]
        name = f"`{cls.__name__}`" + "".join(f" (`{other}`)" for other in others)
        method = found.method if found.year is None else f"{found.method}, {found.year}"
        storage = [] if group == BINARY_INPUTS else [found.storage]
        rows.append([name, found.forward, *storage, found.gradient, method, found.published])
    between = {BINARY_INPUTS: [], FEW_BITS: ["planes"]}.get(group, ["scale"])
    return _table(["class", "q", *between, "gradient", "method, year", "published"], rows)


def config_table() -> str:
    """Return the table of all configs in Markdown, those with the same precision together."""
    rows = []
    for name in preset_names():
        options = preset(name)
        weight, given = options["weight_quantizer"], options["input_quantizer"]
        pair = (
            make_quantizer(weight, name, channels=1, channel_axis=0, fan_in=1),
            make_quantizer(given, name, channels=1, channel_axis=0),
        )
        bits, _, method = preset_comment(name).partition(": ")
        packs = "yes" if any(quantizer.eval().packable for quantizer in pair) else "yes, as floats"
        classes = [f"`{type(quantizer).__name__}`" for quantizer in pair]
        rows.append([f"`{name}`", bits, method.rstrip(";"), *classes, packs])
    rows.sort(key=lambda row: row[1])
    return _table(["config", "W/A", "method", "weights", "inputs", "becomes bits"], rows)


def page(text: str) -> str:
    """Return the page with its tables made anew; ValueError for a table that is unknown, or that the page lacks."""
    tables: dict[str, Callable[[], str]] = {
        "configs": config_table,
        **{group: partial(class_table, group) for group in GROUPS},
    }
    found = {name for _, name, _ in TABLE.findall(text)}
    if found != set(tables):
        raise ValueError(f"the page must have a table for each of {sorted(tables)}, it has {sorted(found)}")
    return TABLE.sub(lambda match: f"{match[1]}\n{tables[match[2]]()}\n\n{match[3]}", text)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="page to rewrite, which has the tables")
    output: Path = parser.parse_args(arguments).output
    try:
        text = page(output.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {output}: {error}") from error
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(output)
    print(f"written: {output}")


if __name__ == "__main__":
    sys.exit(main())
