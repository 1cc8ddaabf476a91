"""What a report says of finished runs: entries of a ledger, learning curves, findings, times of packed networks."""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.collect import find_results, read_records, unfinished_record, without_mixtures
from experiments.ledger import gap, verdict
from experiments.ledger_entries import make_entries
from experiments.published_numbers import in_words
from experiments.results import done, read_json
from experiments.run_records import text_of
from paper_figures.ledger_file import Entry, Row, run_rows

CURVE = "metrics.csv"


@dataclass
class Experiment:
    """Runs of one config that differ by seed alone.

    entry: as a ledger has it. folders: of its runs, in their order. curves: {column of the learning curve: one list of
    values for each seed, nan where none was measured}. findings: of the doctor, {layer, text, advice, seeds}. speed:
    one row of experiments.benchmark, or None; no_speed: why there is none.
    """

    entry: Entry
    folders: list[Path]
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)
    speed: dict[str, Any] | None = None
    no_speed: str = ""

    @property
    def settings(self) -> dict[str, str]:
        """The options that differ within its task, as text."""
        return {key: text_of(value) for key, value in self.entry["settings"].items()}

    @property
    def name(self) -> str:
        """What tells it from the others of its task: W/A, and the options that differ."""
        options = [f"{key.rpartition('.')[2]} {value}" for key, value in self.settings.items() if value]
        return ", ".join([self.entry["label"], *options])

    @property
    def task(self) -> str:
        """Network and data set: what accuracies may be compared within."""
        return f"{self.entry['model']} on {self.entry['data']}"

    @property
    def verdict(self) -> tuple[str, str]:
        """What is said of it beside its published number, and why."""
        return verdict(self.entry)

    def words(self, value: float | None) -> str:
        """Return a value of its metric as tables show it; nothing for None."""
        return "" if value is None else in_words(self.entry["metric"], value)

    @property
    def spread(self) -> str:
        """The half of the 95 % interval of its mean, as tables show it."""
        interval = self.entry["interval"]
        return "" if interval is None else self.words((interval[1] - interval[0]) / 2)

    @property
    def gap(self) -> str:
        """By how much it is better than what was published, as tables show it."""
        found = gap(self.entry)
        return "" if found is None else f"{'-' if found < 0 else '+'}{self.words(abs(found))}"

    @property
    def epochs(self) -> str:
        """Epochs of its runs: a number, or least and largest."""
        found = sorted({run["epochs"] for run in self.entry["runs"]})
        return "-".join(map(str, dict.fromkeys((found[0], found[-1]))))

    @property
    def file_bytes(self) -> int | None:
        """Bytes of its largest packed file; None if no run was converted."""
        return max((run["file_bytes"] for run in self.entry["runs"] if "file_bytes" in run), default=None)

    @property
    def converted(self) -> dict[str, Any] | None:
        """Its first run that was converted."""
        return next((run for run in self.entry["runs"] if "file_bytes" in run), None)

    @property
    def rows(self) -> list[Row]:
        """Its runs as flat rows."""
        return run_rows([self.entry])


@dataclass
class Gathered:
    """All experiments under a folder, by their tasks, and what was left out, in words."""

    tasks: dict[str, list[Experiment]]
    left_out: list[str]

    @property
    def experiments(self) -> list[Experiment]:
        """The experiments, task by task."""
        return [experiment for members in self.tasks.values() for experiment in members]


def gather(folder: Path) -> Gathered:
    """Return what lies under a folder of runs; FileNotFoundError and ValueError say what is wrong with it."""
    files, open_folders = find_results(folder)
    waiting = [unfinished_record(path)["run"] for path in open_folders]
    left_out = [
        f"{path} is not finished: {run['status']}, {run['reason']}"
        for path, run in zip(open_folders, waiting, strict=True)
    ]
    if not files:
        raise FileNotFoundError("\n  ".join([f"no finished run under {folder}", *left_out]))
    records = read_records(files)
    folders = {
        (record["experiment"], record["run"]["seed"]): file.parent for record, file in zip(records, files, strict=True)
    }
    records, refused = without_mixtures(records, ())
    # The options that differ are told within a task: networks of two tasks differ in everything.
    tasks: dict[tuple[str, str], list[Any]] = {}
    for record in records:
        tasks.setdefault((record["model"], record["data"]), []).append(record)
    found: dict[str, list[Experiment]] = {}
    for members in tasks.values():
        for entry in make_entries(members):
            mine = [folders[entry["experiment"], seed] for seed in entry["seeds"]]
            experiment = Experiment(entry, mine, curves_of(mine), findings_of(mine))
            found.setdefault(experiment.task, []).append(experiment)
    return Gathered(found, [*left_out, *(f"refused: {line}" for line in refused)])


def curves_of(folders: Sequence[Path]) -> dict[str, list[list[float]]]:
    """Return {column: one curve for each run} of the learning curves; columns that a run lacks are left out."""
    curves: dict[str, list[list[float]]] = {}
    for folder in folders:
        if not (folder / CURVE).exists():
            continue
        with (folder / CURVE).open(newline="") as file:
            rows = list(csv.DictReader(file))
        for column in rows[0] if rows else ():
            if column not in ("epoch", "lr"):
                curves.setdefault(column, []).append([float(row[column] or math.nan) for row in rows])
    return curves


def findings_of(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the doctor's findings of the runs of an experiment, each once, with the seeds in which it was found."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for folder in folders:
        result, report = read_json(folder / "result.json"), folder / "doctor.json"
        whole = read_json(report)["findings"] if report.exists() else result.get("findings", [])
        for finding in whole:
            entry = found.setdefault((finding["layer"], finding["kind"]), {"advice": "", **finding, "seeds": []})
            entry["seeds"].append(result["seed"])
    return list(found.values())


def time_packed(experiment: Experiment, seconds: float) -> None:
    """Time the packed network of an experiment's first seed beside its FP32 twin, one input, one thread.

    Sets `speed`, or `no_speed` to the reason. The file is the one that experiments.convert wrote.
    """
    import bnn_kernels as bk

    from experiments.benchmark import compare
    from experiments.images import random_images
    from experiments.runs import fp32_twin, load_run
    from experiments.timing import set_threads

    folder = next((folder for folder in experiment.folders if (folder / "packed.safetensors").exists()), None)
    if folder is None:
        experiment.no_speed = "not converted"
        return
    config, network = load_run(folder)
    shape = getattr(network, "input_shape", None)
    if shape is None or len(shape) < 2:  # tokens
        experiment.no_speed = "neither images nor sounds"
        return
    packed = bk.load(folder / "packed.safetensors")
    set_threads(1)
    images = random_images(network, 1, shape)
    experiment.speed = compare(experiment.name, packed, fp32_twin(config.model), images, 1, seconds)


def told(folder: Path) -> str:
    """Return what a run did, in words."""
    return done(read_json(folder / "result.json"))
