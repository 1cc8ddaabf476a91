"""XNOR-Net's tables 1 to 3, published beside reproduced, as Markdown or LaTeX.

bitplanes figures xnor_net_tables [--results LEDGER.json ...] [--output TABLES.md or .tex]

Numbers of ours come from ledgers that `experiments.collect` wrote; a row that nobody has run says which command does.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from paper_figures.ledger_file import Entry, LedgerError, read_ledger
from paper_figures.text_table import latex_table, markdown_table, write_table

DEFAULT_OUTPUT = Path("results") / "tables" / "xnor_net.md"


@dataclass(frozen=True)
class Line:
    """A row of the paper: method, W/A bits, published top-1 and top-5 in per cent.

    recipe: the experiment that reproduces it, or None where there is none. model, quantizer, options: what the entry of
    that recipe has.
    """

    method: str
    bits: str
    top1: float
    top5: float
    recipe: str | None = None
    model: str = ""
    quantizer: str = ""
    options: tuple[tuple[str, str], ...] = ()


# Rastegari et al. 2016, tables 1 to 3 (ImageNet).
TABLES: dict[str, tuple[Line, ...]] = {
    "Table 1: AlexNet": (
        Line("BWN", "1/32", 56.8, 79.4, "bwn_alexnet_imagenet", "AlexNet", "bwn"),
        Line("BinaryConnect, theirs", "1/32", 35.4, 61.0),
        Line("XNOR-Net", "1/1", 44.2, 69.2, "xnor_alexnet_imagenet", "AlexNet", "xnor", (("model.order", "bacp"),)),
        Line("BNN, theirs", "1/1", 27.9, 50.42),
        Line("full precision", "32/32", 56.6, 80.2, "fp32_alexnet_imagenet", "AlexNet", "fp32"),
    ),
    "Table 2: ResNet-18": (
        Line("BWN", "1/32", 60.8, 83.0, "bwn_resnet18_imagenet", "ResNet18", "bwn"),
        Line("XNOR-Net", "1/1", 51.2, 73.2, "xnor_resnet18_imagenet", "ResNet18", "xnor"),
        Line("full precision", "32/32", 69.3, 89.2, "fp32_resnet18_imagenet", "ResNet18", "fp32"),
    ),
    "Table 2: the GoogLeNet variant": (
        Line("BWN", "1/32", 65.5, 86.1, "bwn_darknet_imagenet", "DarknetExtraction", "bwn"),
        Line("full precision", "32/32", 71.3, 90.0, "fp32_darknet_imagenet", "DarknetExtraction", "fp32"),
    ),
    "Table 3a: the scale of BWN, AlexNet": (
        Line("alpha = mean of |W|", "1/32", 56.8, 79.4, "bwn_alexnet_imagenet", "AlexNet", "bwn"),
        Line("alpha learned", "1/32", 46.2, 69.5, "bwn_learned_alexnet_imagenet", "AlexNet", "bwn_learned"),
    ),
    "Table 3b: the order of a block, AlexNet": (
        Line("C-B-A-P", "1/1", 30.3, 57.5, "xnor_cbap_alexnet_imagenet", "AlexNet", "xnor", (("model.order", "cbap"),)),
        Line("B-A-C-P", "1/1", 44.2, 69.2, "xnor_alexnet_imagenet", "AlexNet", "xnor", (("model.order", "bacp"),)),
    ),
}
COLUMNS = ("method", "W/A", "published top-1", "published top-5", "ours top-1", "seeds", "gap")


def find(line: Line, entries: list[Entry]) -> Entry | None:
    """Return the entry on ImageNet of a row's network, method and options; None if nobody has run it."""

    def option(entry: Entry, dotted: str) -> object:
        node: object = entry["config"]
        for part in dotted.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    for entry in entries:
        same = (entry["data"], entry["model"], entry["method"]) == ("imagenet", line.model, line.quantizer)
        if same and entry["mean"] is not None and all(option(entry, key) == value for key, value in line.options):
            return entry
    return None


def rows(lines: tuple[Line, ...], entries: list[Entry]) -> list[tuple[str, ...]]:
    """Return a table's rows, cells as text."""
    found: list[tuple[str, ...]] = []
    for line in lines:
        entry = find(line, entries) if line.recipe else None
        if entry is not None:
            mean = 100 * entry["mean"]
            spread = "" if entry["std"] is None else f" ± {100 * entry['std']:.2f}"
            ours = (f"{mean:.2f}{spread}", str(len(entry["seeds"])), f"{mean - line.top1:+.2f}")
        else:
            ours = (f"not yet run: experiment={line.recipe}" if line.recipe else "no recipe", "", "")
        found.append((line.method, line.bits, f"{line.top1:g}", f"{line.top5:g}", *ours))
    return found


def markdown(entries: list[Entry]) -> str:
    """Return all tables as Markdown."""
    tables = [markdown_table(title, COLUMNS, rows(lines, entries)) for title, lines in TABLES.items()]
    return "\n".join(["XNOR-Net (Rastegari et al. 2016) on ImageNet, per cent: published beside ours\n", *tables])


def latex(entries: list[Entry]) -> str:
    """Return all tables as LaTeX, for `booktabs`."""
    tables = (
        latex_table(f"XNOR-Net on ImageNet. {title}", COLUMNS, rows(lines, entries)) for title, lines in TABLES.items()
    )
    return "\n".join(tables)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, nargs="*", default=[], help="ledgers that experiments.collect wrote")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="file to write (.md, .tex)")
    options = parser.parse_args(arguments)
    try:
        entries = [entry for path in options.results for entry in read_ledger(path)]
    except (FileNotFoundError, LedgerError) as error:
        raise SystemExit(f"error: {error}") from None
    write_table(options.output, {".md": lambda: markdown(entries), ".tex": lambda: latex(entries)})


if __name__ == "__main__":
    sys.exit(main())
