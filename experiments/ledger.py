"""Lists, filters and judges results: python -m experiments.ledger ['where={data:mnist}'] [against=METHOD].

Reads every ledger under `source` (files that `collect` or `sweep` wrote) and says of each entry with a published number
whether it is reproduced or short and by how much; recipes whose number nobody here has measured yet are listed with
the command that runs them. against=METHOD tests every other entry of the same data and network against that method, in
pairs of seeds. move=FILE makes a ledger of a table that an older version wrote.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from experiments import cli
from experiments.collect import write_ledger
from experiments.commands import shell_command
from experiments.identity import flat
from experiments.old_tables import entries_of_table
from experiments.published_numbers import in_words, per_cent
from experiments.results import read_json
from experiments.run_records import text_of
from experiments.seed_statistics import Paired, holm, paired
from paper_figures.chance import difference
from paper_figures.ledger_file import ENTRY_FIELDS, SCHEMA, Entry, LedgerError, lower_is_better, read_ledger

REPRODUCED, SHORT, NOT_RUN = "reproduced", "short", "not yet run"


def ledgers(source: Path) -> list[Path]:
    """Return the ledgers that a path names: itself, or those among the JSON files of a folder.

    FileNotFoundError if there is none; LedgerError if a file by itself is none.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(f"source={source} is neither a file nor a folder")
    found = [file for file in sorted(source.rglob("*.json")) if read_json(file).get("schema") == SCHEMA]
    if not found:
        raise FileNotFoundError(f"no ledger under {source}; experiments.collect output=FILE writes one")
    return found


def filtered(entries: Sequence[Entry], where: dict[str, Any]) -> list[Entry]:
    """Return the entries whose fields or settings have these values; ValueError names a field that does not exist."""
    known = {*ENTRY_FIELDS, *(key for entry in entries for key in entry["settings"])}
    unknown = sorted(set(where) - known)
    if unknown:
        raise ValueError(f"no entry has a field {', '.join(unknown)}; there are {', '.join(sorted(known))}")

    def value(entry: Entry, key: str) -> str:
        return text_of(entry[key] if key in entry else entry["settings"].get(key))

    return [entry for entry in entries if all(value(entry, key) == text_of(want) for key, want in where.items())]


def gap(entry: Entry) -> float | None:
    """Return by how much an entry is better than what was published, negative if it is worse; None without either."""
    published = entry["published"]
    if published is None or entry["mean"] is None or published["metric"] != entry["metric"]:
        return None
    found = entry["mean"] - published["value"]
    return -found if lower_is_better(entry["metric"]) else found


def verdict(entry: Entry) -> tuple[str, str]:
    """Return (verdict, why) of an entry against its published number; ("", "") for one that has none.

    Reproduced: the mean is at least the published number to its printed digits, or below it by no more than the choice
    of the test examples explains (`paper_figures.chance`, 95 %).
    """
    if entry["published"] is None:
        return "", ""
    if entry["mean"] is None:
        return NOT_RUN, entry["command"]
    found = gap(entry)
    if found is None:
        return "", f"published is {entry['published']['metric']}"
    value = entry["published"]["value"]
    if round(entry["mean"], _places(value)) == value or found >= 0:
        return REPRODUCED, "" if len(entry["seeds"]) > 1 else "one seed"
    examples = entry["test_examples"]
    if entry["metric"] == "test_accuracy" and examples:
        low, high = difference(entry["mean"], value, examples)
        if low <= 0 <= high:
            return REPRODUCED, f"the gap is within chance of {examples:,} test examples"
    return SHORT, ""


def _places(value: float) -> int:
    """Return how many decimal places a number was printed with."""
    return len(f"{value:.6f}".rstrip("0").partition(".")[2])


def not_yet_run(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return {data, model, method, label, published, command} of each recipe whose number no entry has."""
    known = [entry for entry in entries if entry["published"]]
    have = {_key(entry["published"], entry["data"], entry["model"], entry["method"]) for entry in known}
    rows = []
    for file in sorted((cli.CONFIGS / "experiment").glob("*.yaml")):
        if "\npublished:" not in file.read_text(encoding="utf-8"):  # to read YAML takes long
            continue
        published: Any = OmegaConf.select(OmegaConf.load(file), "published")
        data, model, method = (published[key] for key in ("data", "model", "quantizer"))
        if _key(published, data, model, method) in have:
            continue
        quantizer = cli.CONFIGS / "quantizer" / f"{method}.yaml"  # a recipe may name one of its own
        label: Any = OmegaConf.select(OmegaConf.load(quantizer), "label") if quantizer.exists() else ""
        rows.append(
            {
                "data": data,
                "model": model,
                "method": method,
                "label": label,
                "published": OmegaConf.to_container(published),
                "command": shell_command("train", [f"experiment={file.stem}"]),
            }
        )
    return rows


def _key(published: dict[str, Any], *of: str) -> tuple[Any, ...]:
    return (published["metric"], published["value"], published["source"], *of)


def compared(entries: Sequence[Entry], against: str) -> list[tuple[Entry, Paired | None, float | None]]:
    """Return (entry, paired test against the method's entry, p adjusted by Holm) of each entry that can be compared.

    Two entries can be compared if data, network, metric and settings are the same; the test is None if they have no
    seed in common. ValueError if the method has no entry.
    """

    def field(entry: Entry) -> tuple[Any, ...]:
        return entry["data"], entry["model"], entry["metric"], entry["name"], repr(sorted(entry["settings"].items()))

    bases = {field(entry): entry for entry in entries if entry["method"] == against and entry["runs"]}
    if not bases:
        there = ", ".join(sorted({entry["method"] for entry in entries}))
        raise ValueError(f"no entry has the method {against!r}; there are {there}")
    found = []
    for entry in entries:
        base = bases.get(field(entry))
        if base is None or entry is base or not entry["runs"]:
            continue
        values = [{run["seed"]: run["value"] for run in one["runs"]} for one in (entry, base)]
        found.append((entry, paired(*values) if set(values[0]) & set(values[1]) else None))
    adjusted = holm([test.p if test else None for _, test in found])
    return [(entry, test, p) for (entry, test), p in zip(found, adjusted, strict=True)]


def _told(entry: Entry) -> str:
    if entry["mean"] is None:
        return ""
    value = in_words(entry["metric"], entry["mean"])
    if entry["interval"] is None:
        return value
    return f"{value} ({' .. '.join(in_words(entry['metric'], end) for end in entry['interval'])})"


def _names(entry: dict[str, Any]) -> list[str]:
    settings = entry.get("settings", {}).items()
    options = ", ".join(f"{key.rpartition('.')[2]}={text_of(value)}" for key, value in settings)
    return [entry["data"], entry["model"], entry["method"], entry["label"], options]


def show(entries: Sequence[Entry], missing: Sequence[dict[str, Any]]) -> None:
    """Print the entries, what was published beside them, and the recipes that were not run."""
    table = Table(title="ledger: mean (95 % interval over seeds); gap: positive is better than published")
    for column in ("data", "network", "method", "W/A", "options"):
        table.add_column(column, overflow="fold")
    for column in ("seeds", "test", "published", "gap"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict")
    for entry in entries:
        value = (entry["published"] or {}).get("value")
        found = gap(entry)
        scale, digits = (100, 2) if entry["metric"] == "test_accuracy" else (1, 3)
        points = "" if found is None else f"{scale * found:+.{digits}f}"
        words = ". ".join(filter(None, verdict(entry)))
        still = ", ".join(f"seed {run['seed']} {run['status']}" for run in entry["unfinished"])
        beside = "" if value is None else in_words(entry["metric"], value)
        said = "; ".join(filter(None, (words, still)))
        table.add_row(*_names(entry), str(len(entry["seeds"])), _told(entry), beside, points, said)
    cli.console().print(table)
    for row in missing:
        value = row["published"]["value"]
        shown = f"{per_cent(value)} %" if row["published"]["metric"] == "test_accuracy" else f"{value:g} bits"
        what = f"{row['method']} ({row['label']}) {row['model']} on {row['data']}"
        print(f"{NOT_RUN}: {what}, published {shown}: {row['command']}")


def show_compared(found: list[tuple[Entry, Paired | None, float | None]], against: str) -> None:
    """Print the paired tests."""
    table = Table(title=f"difference to {against}, paired over seeds (t-test; p adjusted by Holm)")
    for column in ("data", "network", "method", "W/A", "options"):
        table.add_column(column, overflow="fold")
    for column in ("seeds", "difference", "95 % interval", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict")
    for entry, test, p in found:
        scale, digits = (100, 2) if entry["metric"] == "test_accuracy" else (1, 3)
        if test is None:
            table.add_row(*_names(entry), "0", "", "", "", "no seed in common")
            continue
        interval = "" if test.interval is None else " .. ".join(f"{scale * end:+.{digits}f}" for end in test.interval)
        better = (test.difference < 0) == lower_is_better(entry["metric"])
        said = "within chance" if p is None or p > 0.05 else "better" if better else "worse"
        if test.p is None:
            said += " (one seed says nothing of chance)"
        shown = f"{scale * test.difference:+.{digits}f}"
        table.add_row(*_names(entry), str(test.seeds), shown, interval, "" if p is None else f"{p:.3f}", said)
    cli.console().print(table)


def move(file: Path) -> None:
    """Make a ledger of an old table, in its place; one that is a ledger already stays. ValueError if it is neither."""
    content = read_json(file)
    if content.get("schema") == SCHEMA:
        print(f"{file} is a ledger already")
        return
    try:
        entries = entries_of_table(content)
    except ValueError as error:
        raise ValueError(f"{file} is no table that could be moved: {error}") from error
    for entry in entries:
        if entry["published"] is None:
            entry["published"] = _recipe_number(entry)
    write_ledger(entries, content["command"], file)
    print(f"moved: {file}, {len(entries)} entries of {sum(len(entry['runs']) for entry in entries)} runs")


def _recipe_number(entry: Entry) -> dict[str, Any] | None:
    """Return what was published for the recipe that an entry's command names, if the entry is of its setting."""
    recipe = re.search(r"experiment=(\w+)", entry["command"])
    file = cli.CONFIGS / "experiment" / f"{recipe[1] if recipe else ''}.yaml"
    published: Any = OmegaConf.select(OmegaConf.load(file), "published") if file.exists() else None
    setting = [entry[key] for key in ("method", "model", "data")]
    if published is None or [published[key] for key in ("quantizer", "model", "data")] != setting:
        return None
    return {key: published[key] for key in ("metric", "value", "source")}


def task(config: DictConfig) -> None:
    """Move, or read, filter and show."""
    if config.move is not None:
        files = [config.move] if isinstance(config.move, str) else list(config.move)
        for file in files:
            move(Path(file))
        return
    entries = [entry for file in ledgers(Path(config.source)) for entry in read_ledger(file)]
    given: Any = None if config.where is None else OmegaConf.to_container(config.where)
    where = flat(given or {})
    chosen = filtered(entries, where)
    if config.verdict is not None and config.verdict not in (REPRODUCED, SHORT, NOT_RUN):
        raise ValueError(f"verdict is {REPRODUCED}, {SHORT} or {NOT_RUN!r}, got {config.verdict!r}")
    missing = [
        row
        for row in not_yet_run(entries)
        if all(text_of(row.get(key)) == text_of(want) for key, want in where.items())
    ]
    if config.verdict is not None:
        chosen = [entry for entry in chosen if verdict(entry)[0] == config.verdict]
        missing = missing if config.verdict == NOT_RUN else []
    show(chosen, missing)
    if config.against is not None:
        show_compared(compared(chosen, config.against), config.against)


def main() -> None:
    """Entry point."""
    cli.run(task, "ledger", expected=(LedgerError, OSError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
