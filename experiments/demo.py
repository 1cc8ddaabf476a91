"""The main job in some minutes: bitplanes demo (or make demo).

Sweeps weight and activation bits on the embedded digits over three seeds, converts every network into bits, checks
parity with PyTorch, times each beside its FP32 twin and draws accuracy against bits. Starting it again runs only what
is missing.
"""

import argparse
import functools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments import cli
from experiments.collect import collect
from experiments.results import read_json, write_json

QUANTIZERS = ("fp32", "dorefa8", "dorefa4", "dorefa2", "twn", "bwn", "xnor")
SEEDS = (0, 1, 2)
FOLDER = Path("runs") / "demo"


def sweep(progress: Progress) -> None:
    """Train what is missing, by Hydra multiruns in two processes with one thread each."""
    total = len(QUANTIZERS) * len(SEEDS)
    bar = progress.add_task("training", total=total)
    command = [sys.executable, "-m", "experiments.train", "-m", "experiment=demo", "trainer.enable_progress_bar=false"]
    # Small networks gain nothing from a second thread, a sweep gains all of it from a second process.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    halves = (QUANTIZERS[::2], QUANTIZERS[1::2])
    seeds = ",".join(map(str, SEEDS))
    logs = [FOLDER / f"sweep{i}.log" for i in range(len(halves))]
    FOLDER.mkdir(parents=True, exist_ok=True)
    processes = []
    try:
        for half, log in zip(halves, logs, strict=True):
            arguments = [*command, f"quantizer={','.join(half)}", f"seed={seeds}"]
            with log.open("w") as file:
                processes.append(subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT, env=environment))
        while any(process.poll() is None for process in processes):
            progress.update(bar, completed=len(list(FOLDER.glob("*/*/seed*/result.json"))))
            time.sleep(0.3)
    finally:
        for process in processes:
            process.terminate()
            process.wait()
    progress.update(bar, completed=len(list(FOLDER.glob("*/*/seed*/result.json"))))
    for process, log in zip(processes, logs, strict=True):
        if process.returncode != 0:
            raise SystemExit(f"error: training failed, the end of {log} is\n{log.read_text()[-2000:]}")


@functools.cache
def runs() -> dict[str, list[Path]]:
    """Return the folders of the sweep, those of a quantizer's seeds together."""
    with initialize_config_dir(str(cli.CONFIGS), **cli.VERSION_BASE):
        return {
            quantizer: [
                Path(compose("train", ["experiment=demo", f"quantizer={quantizer}", f"seed={seed}"]).run_dir)
                for seed in SEEDS
            ]
            for quantizer in QUANTIZERS
        }


def convert_all(progress: Progress) -> None:
    """Convert every run and check its parity on the whole test split."""
    from experiments.convert import convert_run

    bar = progress.add_task("converting, checking", total=len(QUANTIZERS) * len(SEEDS))
    for folder in (folder for folders in runs().values() for folder in folders):
        done = folder / "conversion.json"
        if not done.exists() or done.stat().st_mtime < (folder / "result.json").stat().st_mtime:
            _, text, passes = convert_run(folder, inputs=400)
            if not passes:
                raise SystemExit(f"error: {folder} does not answer like the trained network\n{text}")
        progress.advance(bar)


def time_all(progress: Progress) -> list[dict[str, Any]]:
    """Time one run of each setting beside its FP32 twin in PyTorch."""
    from bnn.training import provenance
    from experiments.benchmark import networks

    rows = []
    bar = progress.add_task("timing beside PyTorch FP32", total=len(QUANTIZERS))
    with initialize_config_dir(str(cli.CONFIGS), **cli.VERSION_BASE):
        config = compose("benchmark", ["threads=[1]", "seconds=0.6", "own_layers=false"])
    for quantizer in QUANTIZERS:
        rows += list(networks(config, runs()[quantizer][0]))
        progress.advance(bar)
    write_json(FOLDER / "benchmark.json", {"command": cli.program("demo"), "networks": rows, **provenance()})
    return rows


def main() -> None:
    """Entry point."""
    cli.print_what_the_terminal_knows()
    parser = argparse.ArgumentParser(
        prog=cli.program("demo"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    from experiments.benchmark import show
    from paper_figures import accuracy_vs_bits

    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        sweep(progress)
        convert_all(progress)
        rows = time_all(progress)
    table, figure = FOLDER / "table.json", FOLDER / "accuracy_vs_bits.png"
    collect(FOLDER, table, [folder / "result.json" for folders in runs().values() for folder in folders])
    cpu = read_json(FOLDER / "benchmark.json")["hardware"]["cpu"]
    show(rows, f"packed networks beside their FP32 twins in PyTorch on {cpu}")
    accuracy_vs_bits.main(["--results", str(table), "--output", str(figure)])
    cli.console().print(
        f"\nfigure        {figure}\npacked files  {FOLDER}/*/*/seed*/packed.safetensors\n"
        f"results       {table}, {table.with_suffix('.csv')}, {FOLDER / 'benchmark.json'}",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(main())
