"""Finished runs as one web page that needs no network: python -m experiments.report [runs=FOLDER] [output=PAGE.html].

Results beside published numbers, figures, learning curves, the doctor's findings, parity of the packed networks and
their speed on this machine, what differs between the configs, and every run with its command.
"""

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.progress import track

from experiments import cli
from experiments.commands import this_command
from experiments.report_data import Experiment, Gathered, gather, time_packed, told

TEMPLATE = "report.html"
# More experiments than this make no readable figure of learning curves.
_MOST_CURVES = 21


def figures(name: str, members: list[Experiment]) -> list[dict[str, Any]]:
    """Return the figures of a task's experiments: {title, svg, note, full}; full: as wide as the page."""
    from paper_figures import accuracy_vs_bits, learning_curves, tradeoff
    from paper_figures.inline_svg import inline_svg

    found: list[dict[str, Any]] = []

    def add(title: str, figure: Any, note: str = "", full: bool = False) -> None:
        found.append({"title": title, "svg": inline_svg(figure, f"{name}: {title}"), "note": note, "full": full})

    classifies = members[0].entry["metric"] == "test_accuracy"
    value = "test accuracy (%)" if classifies else "test, bits a token"
    if len(members) > 1 and classifies:
        rows = [row for member in members for row in member.rows]
        add("Accuracy against bits", accuracy_vs_bits.plot(rows), full=True)

    def values(member: Experiment) -> tuple[float, ...]:
        return tuple((100 if classifies else 1) * run["value"] for run in member.entry["runs"])

    def points(cost: Callable[[Experiment], float | None]) -> list[tradeoff.Point]:
        return [
            tradeoff.Point(member.name, found_cost, values(member))
            for member in members
            if (found_cost := cost(member)) is not None
        ]

    sized = points(lambda member: member.file_bytes)
    if len(sized) > 1:
        figure = tradeoff.plot(sized, "bytes of the packed file", value, lower_is_better=not classifies)
        add("Quality against the packed file", figure)
    timed = points(lambda member: member.speed["packed_us"]["median"] if member.speed else None)
    if len(timed) > 1:
        label = "microseconds for one input, one thread, median"
        figure = tradeoff.plot(timed, label, value, lower_is_better=not classifies)
        add("Quality against latency", figure, "Measured on this machine.")
    for column, what, factor in (
        ("validation_bits", "validation, bits a token", 1.0),
        ("validation_accuracy", "validation accuracy (%)", 100.0),
        ("train_loss", "loss of training", 1.0),
    ):
        curves = {
            member.name: [[factor * value for value in curve] for curve in member.curves[column]]
            for member in members[:_MOST_CURVES]
            if column in member.curves
        }
        if curves:
            note = f"The first {_MOST_CURVES} of {len(members)} experiments." if len(members) > _MOST_CURVES else ""
            add(f"Learning curves: {what}", learning_curves.plot(curves, what), note)
    return found


def page(gathered: Gathered, title: str, origin: dict[str, Any], command: str) -> str:
    """Return the page: one HTML file with everything in it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    tasks = [
        {"name": name, "experiments": members, "figures": figures(name, members)}
        for name, members in gathered.tasks.items()
    ]
    runs = [
        {"experiment": member, "run": run, "folder": folder, "told": told(folder)}
        for member in gathered.experiments
        for run, folder in zip(member.entry["runs"], member.folders, strict=True)
    ]
    return environment.get_template(TEMPLATE).render(
        title=title,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        origin=origin,
        command=command,
        tasks=tasks,
        experiments=gathered.experiments,
        runs=runs,
        left_out=gathered.left_out,
    )


def task(config: DictConfig) -> None:
    """Gather, time and write."""
    from bnn.training import provenance
    from bnn.training.files import whole_file

    gathered = gather(Path(config.runs))
    if config.speed:
        for experiment in track(gathered.experiments, "timing packed networks", transient=True, console=cli.console()):
            time_packed(experiment, config.seconds)
    output = Path(config.output)
    text = page(gathered, config.title, provenance(), this_command())
    with whole_file(output) as file:
        file.write(text)
    for line in gathered.left_out:
        print(f"left out: {line}", file=sys.stderr)
    count = sum(len(experiment.folders) for experiment in gathered.experiments)
    print(f"written: {output}, {len(gathered.experiments)} experiments of {count} runs, {len(text) / 1000:,.0f} kB")


def main() -> None:
    """Entry point."""
    from bnn.training import RunError

    cli.run(task, "report", expected=(RunError, OSError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
