"""Methods of one network and data set in order: means with 95 % intervals over seeds, and what was published.

bitplanes figures method_ranking [--results LEDGER.json] [--output FIGURE.png]

A line is an entry of a ledger, best first: its mean and interval, every seed as a dot, and the published number as a
diamond where there is one. Whether two methods differ by more than chance is said by experiments.ledger against=METHOD.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.from_file import draw_from_file, read_entries
from paper_figures.ledger_file import Entry, lower_is_better
from paper_figures.save import save

DEFAULT_RESULTS = Path("results") / "digits_accuracy_vs_bits.json"
DEFAULT_OUTPUT = Path("results") / "figures" / "method_ranking.png"


def ranked(entries: list[Entry]) -> list[Entry]:
    """Return the entries that have a mean, best first."""
    done = [entry for entry in entries if entry["mean"] is not None]
    return sorted(done, key=lambda entry: entry["mean"], reverse=not (done and lower_is_better(done[0]["metric"])))


def plot(entries: list[Entry]) -> Figure:
    """Return the figure; SystemExit if the entries are of several networks, data sets or metrics, or none has ended."""
    found = ranked(entries)
    if not found:
        raise SystemExit("error: the ledger has no finished run; experiments.sweep or experiments.train make some")
    tasks = sorted({f"{entry['model']} on {entry['data']}, {entry['metric']}" for entry in found})
    if len(tasks) > 1:
        raise SystemExit(f"error: the ledger mixes {'; '.join(tasks)}: collect the runs of one")
    bits = lower_is_better(found[0]["metric"])
    scale = 1 if bits else 100
    figure, axis = style.panels(1, 1, 1.6 + 0.3 * len(found))
    for place, entry in enumerate(found):
        values = [scale * run["value"] for run in entry["runs"]]
        axis.plot(values, [place] * len(values), ".", color=style.GREY, zorder=2)
        mean = scale * entry["mean"]
        ends = None
        if entry["interval"] is not None:
            low, high = (scale * end for end in entry["interval"])
            ends = [[mean - low], [high - mean]]
        label = "mean, 95 % interval over seeds" if place == 0 else None
        axis.errorbar(mean, place, xerr=ends, fmt="o", color=style.BLUE, capsize=3, markersize=6, zorder=3, label=label)
    published = [
        (scale * entry["published"]["value"], place) for place, entry in enumerate(found) if _comparable(entry)
    ]
    if published:
        shares, places = zip(*published, strict=True)
        axis.plot(shares, places, "D", color=style.ORANGE, markersize=6, zorder=4, label="published")
    axis.set_yticks(range(len(found)), [_name(entry) for entry in found])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("test, bits a token" if bits else "test accuracy (%)")
    counts = sorted({len(entry["seeds"]) for entry in found})
    seeds = "/".join(map(str, counts)) + (" seed" if counts == [1] else " seeds")
    handles, _ = axis.get_legend_handles_labels()
    style.legend_with_title(figure, f"{found[0]['model']} on {found[0]['data']}, {seeds} (grey), best first", handles)
    return figure


def _comparable(entry: Entry) -> bool:
    return entry["published"] is not None and entry["published"]["metric"] == entry["metric"]


def _name(entry: Entry) -> str:
    options = [f"{key.rpartition('.')[2]} {value}" for key, value in entry["settings"].items() if value is not None]
    return ", ".join([f"{entry['method']} ({entry['label']})", *options])


def draw(results: Path, output: Path) -> None:
    """Draw a ledger's file."""
    entries = read_entries(results)
    save(plot(entries), output)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    draw_from_file(__doc__, DEFAULT_RESULTS, DEFAULT_OUTPUT, "a ledger of experiments.collect", draw, arguments)


if __name__ == "__main__":
    sys.exit(main())
