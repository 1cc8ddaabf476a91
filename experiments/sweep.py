"""Run a sweep that a config describes: python -m experiments.sweep sweep=NAME [seeds=[0,1,2]] [only=['1/*']].

Trains what is missing, converts it where the sweep wants packed networks, and writes a ledger with an entry for each
cell. Started again it runs only what is missing, and goes on with what was interrupted. Started twice, also on several
machines that share the folder, the processes share the jobs: a run is held by one of them, and one whose process was
killed is free again. collect_only=true writes the ledger of what is there, with the cells that are running, failed or
missing. A sweep is a file of configs/sweep; docs/guides/sweeps.md shows how to write one.
"""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from omegaconf import DictConfig
from rich.live import Live
from rich.table import Table

from experiments import cli
from experiments.collect import FAILURE, read_records, show, state_of, without_mixtures, write_ledger
from experiments.commands import this_command
from experiments.config_values import ConfigError
from experiments.ledger_entries import make_entries
from experiments.lock import HeldError, is_held, run_lock
from experiments.results import read_json, write_json
from experiments.run_records import described
from experiments.sweep_plan import Job, jobs_of
from paper_figures.ledger_file import Entry

# Seconds between two looks at what other processes hold; inputs whose layers are compared before a packed file counts.
POLL_SECONDS = 0.5
PARITY_INPUTS = 16
# Seconds of timing for each packed network.
LATENCY_SECONDS = 0.5


def run_jobs(jobs: list[Job], report: Callable[[Job], None] = lambda job: None) -> list[str]:
    """Run the jobs that have not ended and nobody else runs, until none is left; return a line for each that failed.

    The first seed of every cell comes first, so that a table of fewer seeds is there early. A job that another process
    failed at meanwhile is not tried again; one that failed in an earlier sweep is. report: is told each job that ended.
    """
    start = time.time()
    order = sorted(jobs, key=lambda job: [other.seed for other in jobs].index(job.seed))
    failed: dict[Path, str] = {}
    while True:
        left = [job for job in order if job.folder not in failed and not job.ended()]
        worked = False
        for job in left:
            if (reason := _failed_since(job, start)) is not None:
                failed[job.folder] = f"{job.folder}: {reason}"
                continue
            if is_held(job.folder) or job.ended():
                continue
            try:
                run_job(job)
                report(job)
            except HeldError:
                continue  # another process was faster
            except Exception as error:  # one broken cell must not cost the others their runs
                reason = f"{type(error).__name__}: {error}"
                job.folder.mkdir(parents=True, exist_ok=True)
                write_json(job.folder / FAILURE, {"reason": reason, "command": job.command})
                failed[job.folder] = f"{job.folder}: {reason}"
                print(f"failed: {failed[job.folder]}", file=sys.stderr)
            worked = True
        if not left:
            return list(failed.values())
        if not worked:
            time.sleep(POLL_SECONDS)


def _failed_since(job: Job, start: float) -> str | None:
    """Return why another process failed at the job since then; None if it did not."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        if (job.folder / FAILURE).stat().st_mtime >= start:
            return str(read_json(job.folder / FAILURE)["reason"])
    return None


def run_job(job: Job) -> None:
    """Do what is left of a job. HeldError if another process works on it; ValueError if the packed network is wrong."""
    from experiments import train
    from experiments.convert import convert_held_run

    if not job.trained():
        train.run(job.config, job.command, wait=False)
    if not job.trained():
        raise ValueError("training stopped before its end")
    with run_lock(job.folder, wait=False):
        if not job.converted():
            _, text, passes = convert_held_run(job.folder, PARITY_INPUTS)
            if not passes:
                (job.folder / "conversion.json").unlink()
                raise ValueError(f"the packed network does not answer like the trained one\n{text}")
        (job.folder / FAILURE).unlink(missing_ok=True)


def states(jobs: list[Job]) -> dict[tuple[str, int], tuple[str, str]]:
    """Return {(cell, seed): (status, reason)} of all jobs; complete, or what `state_of` says."""
    return {(job.cell, job.seed): ("complete", "") if job.ended() else _state(job) for job in jobs}


def _state(job: Job) -> tuple[str, str]:
    status, reason = state_of(job.folder)
    return (status, "it is not converted") if status == "stopped" and job.trained() else (status, reason)


def remaining_seconds(jobs: list[Job], running: int) -> float | None:
    """Return about how long the sweep still takes, by the mean of the runs that ended; None before the first.

    running: how many jobs are at work now, of which half is taken as done.
    """
    ended = [job for job in jobs if job.trained()]
    if not ended:
        return None
    seconds = sum(read_json(job.folder / "result.json")["train_seconds"] for job in ended) / len(ended)
    left = len(jobs) - len(ended) - running / 2
    return max(0.0, seconds * left / max(1, running))


def progress_table(jobs: list[Job]) -> Table:
    """Return the state of a sweep as a table: cells by seeds, and the remaining time in its title."""
    found = states(jobs)
    counts = {name: sum(status == name for status, _ in found.values()) for name in ("complete", "running", "failed")}
    left = remaining_seconds(jobs, counts["running"])
    about = "" if left is None else f", about {_duration(left)} left"
    words = ", ".join(f"{count} {name}" for name, count in counts.items())
    table = Table(title=f"{words} of {len(jobs)} runs{about}")
    seeds = list(dict.fromkeys(job.seed for job in jobs))
    table.add_column("cell")
    for seed in seeds:
        table.add_column(f"seed {seed}", justify="right")
    accuracy = {(job.cell, job.seed): _accuracy(job) for job in jobs if found[job.cell, job.seed][0] == "complete"}
    for cell in dict.fromkeys(job.cell for job in jobs):
        table.add_row(cell, *(accuracy.get((cell, seed), found[cell, seed][0]) for seed in seeds))
    return table


def _accuracy(job: Job) -> str:
    return f"{100 * read_json(job.folder / 'result.json')['accuracy']['test']:.2f} %"


def _duration(seconds: float) -> str:
    """Return seconds in words.

    >>> _duration(42), _duration(600), _duration(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def shown(jobs: list[Job]) -> Iterator[Callable[[Job], None]]:
    """Show the table while the jobs run, on a terminal; elsewhere give a line for each job that ended."""
    console = cli.console()
    if console.is_terminal:
        with Live(get_renderable=lambda: progress_table(jobs), console=console, refresh_per_second=0.5):
            yield lambda job: None
    else:

        def line(job: Job) -> None:
            done = sum(other.ended() for other in jobs)
            left = remaining_seconds(jobs, 1)
            about = "" if left is None or done == len(jobs) else f", about {_duration(left)} left for one process"
            print(f"{done} of {len(jobs)}: {job.cell} seed {job.seed} {_accuracy(job)}{about}", flush=True)

        yield line


def measure_latency(jobs: list[Job], folder: Path) -> None:
    """Time the packed networks of ended jobs, one input and one thread, all in turn; one process at a time does so."""
    import bnn_kernels as bk
    from bnn_kernels.model.warm import example_inputs

    from bnn.training import provenance
    from experiments.timing import in_turn

    def steps(job: Job) -> int:
        return int(read_json(job.folder / "result.json")["steps"])

    def timed(job: Job) -> bool:
        file = job.folder / "latency.json"
        return file.exists() and read_json(file)["steps"] == steps(job)

    with run_lock(folder):
        ready = [job for job in jobs if job.ended()]
        if all(timed(job) for job in ready):
            return
        packed = [bk.load(job.folder / "packed.safetensors") for job in ready]  # all anew: only so do they compare
        inputs = [example_inputs(model, 1) for model in packed]
        calls = [functools.partial(model, *x) for model, x in zip(packed, inputs, strict=True)]
        threads = bk.get_num_threads()
        bk.set_num_threads(1)
        try:
            timings = in_turn(calls, LATENCY_SECONDS * len(calls))
        finally:
            bk.set_num_threads(threads)
        origin = provenance()
        for job, timing in zip(ready, timings, strict=True):
            low, high = timing.quartiles
            times = {"median": timing.median, "low": low, "high": high, "best": timing.best}
            content = {name: round(1e6 * value, 2) for name, value in times.items()}
            content |= {"calls": timing.calls, "cpu": origin["hardware"]["cpu"], "steps": steps(job), **origin}
            write_json(job.folder / "latency.json", content)


def entries_of(jobs: list[Job], mixed: list[str]) -> tuple[list[Entry], list[str]]:
    """Return the entries of a sweep, each named by its cell, with what has not ended; and what was refused, and why."""
    names = {job.experiment: job.cell for job in jobs}
    ended = [job for job in jobs if job.ended()]
    records = read_records([job.folder / "result.json" for job in ended])
    unfinished = []
    for job in (job for job in jobs if job not in ended):
        status, reason = _state(job)
        run = {"seed": job.seed, "status": status, "reason": reason, "command": job.command}
        unfinished.append({**described(job.same), "run": run})
    for record in (*records, *unfinished):
        record["method"] = names[record["experiment"]]
    kept, refused = without_mixtures(records, mixed)
    order = list(names)
    return sorted(make_entries(kept, unfinished), key=lambda entry: order.index(entry["experiment"])), refused


def task(config: DictConfig) -> None:
    """Run what is missing, then write the ledger."""
    jobs = jobs_of(config)
    output = Path(config.output or f"results/{config.sweep.name}.json")
    failed: list[str] = []
    if not config.collect_only:
        with shown(jobs) as report:
            failed = run_jobs(jobs, report)
        if config.sweep.get("latency"):
            if not config.sweep.get("convert"):
                raise ConfigError("sweep.latency needs sweep.convert=true: what is timed is the packed network")
            measure_latency(jobs, Path("runs") / str(config.sweep.name) / ".latency")
    entries, refused = entries_of(jobs, list(config.mixed))
    if entries:
        show(entries)
        write_ledger(entries, this_command(["collect_only"]), output)
        print(f"written: {output} and {output.with_suffix('.csv')}")
    for text in refused:
        print(f"refused: {text}", file=sys.stderr)
    if failed:
        print("\n".join(["error: of the sweep's jobs failed:", *failed]), file=sys.stderr)
    if failed or not entries:
        sys.exit(1)


def main() -> None:
    """Entry point."""
    import logging

    from bnn.data import DataError
    from bnn.training import RunError

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    cli.run(task, "sweep", expected=(DataError, RunError, OSError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
