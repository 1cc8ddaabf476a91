"""Quality against bytes of the packed file and against measured latency, with the front that nothing beats.

bitplanes figures pareto [--results LEDGER.json] [--output FIGURE.png]

A point is an entry of a ledger: the mean over seeds with its 95 % interval, and the largest file or the median latency
of its runs with its quartiles. One network and data set to a figure. Of many points only those of the front are named.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.from_file import draw_from_file, read_entries
from paper_figures.ledger_file import Entry, lower_is_better
from paper_figures.save import save
from paper_figures.tradeoff import MOST_NAMED, Point, draw_points, name_all

DEFAULT_RESULTS = Path("results") / "digits_accuracy_vs_bits.json"
DEFAULT_OUTPUT = Path("results") / "figures" / "pareto.png"


def _name(entry: Entry) -> str:
    options = [f"{key.rpartition('.')[2]} {value}" for key, value in entry["settings"].items() if value is not None]
    return ", ".join([entry["label"], *options])


def by_bytes(entries: list[Entry]) -> list[Point]:
    """Return a point for each entry whose runs were converted: bytes of its largest file."""
    found = []
    for entry in entries:
        sizes = [run["file_bytes"] for run in entry["runs"] if "file_bytes" in run]
        if sizes:
            found.append(Point(_name(entry), max(sizes), _values(entry), interval=_interval(entry)))
    return found


def by_latency(entries: list[Entry]) -> list[Point]:
    """Return a point for each entry with a timed run: microseconds for one input, median and quartiles."""
    found = []
    for entry in entries:
        times = [run["latency_us"] for run in entry["runs"] if "latency_us" in run]
        if times:
            best = min(times, key=lambda time: time["median"])
            spread = (best["low"], best["high"])
            found.append(Point(_name(entry), best["median"], _values(entry), spread, _interval(entry)))
    return found


def _scale(entry: Entry) -> float:
    return 1 if lower_is_better(entry["metric"]) else 100


def _values(entry: Entry) -> tuple[float, ...]:
    return tuple(_scale(entry) * run["value"] for run in entry["runs"])


def _interval(entry: Entry) -> tuple[float, float] | None:
    interval = entry["interval"]
    return None if interval is None else (_scale(entry) * interval[0], _scale(entry) * interval[1])


def plot(entries: list[Entry]) -> Figure:
    """Return the figure of a ledger's entries: one panel, or two if latencies are known."""
    tasks = sorted({f"{entry['model']} on {entry['data']}" for entry in entries})
    if len(tasks) > 1:
        raise SystemExit(f"error: the ledger mixes {', '.join(tasks)}; collect the runs of one")
    panels = [(by_bytes(entries), "bytes of the packed file"), (by_latency(entries), "microseconds for one input")]
    panels = [(points, label) for points, label in panels if points]
    if not panels:
        raise SystemExit(
            "error: no run of the ledger was converted, so nothing has a size: experiments.convert run=PATH"
        )
    lower = lower_is_better(entries[0]["metric"])
    figure, axes = style.panels(1, len(panels), 4.2, sharey=True, squeeze=False)
    for axis, (points, label) in zip(axes[0], panels, strict=True):
        draw_points(axis, points, lower)
        axis.set_xlabel(label)
    axes[0, 0].set_ylabel("test, bits a token" if lower else "test accuracy (%)")
    seeds = sorted({len(entry["seeds"]) for entry in entries if entry["seeds"]})
    words = f"{seeds[0]} seed{'s' if seeds[-1] > 1 else ''}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    pale = "; pale: beaten at their cost" if len(entries) > MOST_NAMED else ""
    style.title(figure, f"{tasks[0]}, {words}: means and 95 % intervals; dashed: nothing is better at this cost{pale}")
    for axis, (points, _) in zip(axes[0], panels, strict=True):
        name_all(axis, points, lower)
    return figure


def draw(results: Path, output: Path) -> None:
    """Draw a ledger's file."""
    entries = read_entries(results)
    if not entries:
        raise SystemExit(f"error: {results} has no entries")
    save(plot(entries), output)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    draw_from_file(__doc__, DEFAULT_RESULTS, DEFAULT_OUTPUT, "a ledger of experiments.collect", draw, arguments)


if __name__ == "__main__":
    sys.exit(main())
