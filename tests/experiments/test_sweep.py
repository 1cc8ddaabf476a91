"""Sweeps: what their cells are, that nothing is run twice, and that neither kills nor company change the ledger."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments import cli, sweep
from experiments.config_values import ConfigError
from experiments.lock import run_lock
from experiments.sweep_plan import cells_of, jobs_of
from paper_figures.ledger_file import read_ledger

TINY = """# a tiny sweep
name: tiny
options: [model.width=4, epochs=1, batch_size=400, doctor.every=null, trainer.accelerator=cpu]
cells:
  one: [quantizer=xnor]
  two: [quantizer=dorefa2]
seeds: [0]
convert: true
"""
SWEEPS = sorted(file.stem for file in (cli.CONFIGS / "sweep").glob("*.yaml"))


def planned(name, *options):
    with initialize_config_dir(str(cli.CONFIGS), **cli.VERSION_BASE):
        return jobs_of(compose("sweep", [f"sweep={name}", *options]))


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", SWEEPS)
def test_every_cell_of_a_sweep_is_an_experiment_that_can_be_built(name):
    """The options compose, no two cells are the same experiment, and each network can be made."""
    from experiments.hydra_versions import instantiate

    jobs = planned(name, "seeds=[0]")
    assert len(jobs) > 1
    for job in jobs:
        instantiate(job.config.model, _convert_="object")
    text = (cli.CONFIGS / "sweep" / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    assert OmegaConf.create(text).name == name


def test_the_grid_of_bits_is_whole():
    jobs = planned("accuracy_vs_bits", "seeds=[0]", "only=['t/*','*/8']")
    assert {job.cell for job in jobs} == {*(f"t/{a}" for a in (1, 2, 4, 8, 32)), *(f"{w}/8" for w in (1, 2, 4, 8, 32))}
    for job in jobs:
        weight, inputs = job.cell.split("/")
        assert job.config.quantizer.label == job.cell
        assert job.config.quantizer.weight.get("bits") == (None if weight in ("t", "32") else int(weight))
        assert job.config.quantizer.input.get("bits") == (None if inputs == "32" else int(inputs))


def test_cells_are_combinations_and_their_own_options_win():
    found = cells_of(
        OmegaConf.create(
            {"name": "s", "options": ["a=0", "label='$x-$y'"], "axes": {"x": {1: ["a=1"], 2: []}, "y": {"p": ["b=$x"]}}}
        )
    )
    assert found == {"1/p": ["label='1-p'", "a=1", "b=1"], "2/p": ["a=0", "label='2-p'", "b=2"]}
    for wrong, words in (
        ({"name": "s"}, "neither axes nor cells"),
        ({"cell": {}}, "sweep has no cell"),
        ({"axes": {"x": {"1": []}}, "cells": {"1": []}}, "a combination of axes already"),
    ):
        with pytest.raises(ConfigError, match=words):
            cells_of(OmegaConf.create(wrong))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder with conf/sweep/tiny.yaml."""
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "sweep" / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def comparable_entries(path):
    """The entries of a ledger without what tells when, how long and how often they were trained."""
    entries = read_ledger(path)
    for entry in entries:
        entry.pop("train_seconds")
        for run in entry["runs"]:
            for key in ("train_seconds", "finished", "hardware"):
                run.pop(key)
    return entries


def test_a_sweep_runs_what_is_missing_once(folder, command, monkeypatch):
    arguments = ("--config-dir", "conf", "sweep=tiny")
    before = command("experiments.sweep", *arguments, "collect_only=true")
    assert before.status == 0, before.err
    entries = read_ledger(folder / "results" / "tiny.json")
    assert [(entry["method"], entry["status"], entry["mean"]) for entry in entries] == [
        ("one", "missing", None),
        ("two", "missing", None),
    ]
    assert all("quantizer=" in run["command"] for entry in entries for run in entry["unfinished"])
    # Somebody else holds the first job for a while.
    one, run_jobs, ran, held = sweep.run_job, sweep.run_jobs, [], threading.Event()

    def hold(job):
        with run_lock(job.folder):
            held.set()
            time.sleep(1.0)

    def beside_another(jobs, report):
        thread = threading.Thread(target=hold, args=(jobs[0],))
        thread.start()
        held.wait()
        try:
            return run_jobs(jobs, report)
        finally:
            thread.join()

    def counted(job):
        ran.append(job.cell)
        one(job)

    monkeypatch.setattr(sweep, "run_jobs", beside_another)
    monkeypatch.setattr(sweep, "run_job", counted)
    done = command("experiments.sweep", *arguments)
    assert done.status == 0, done.err
    assert ran == ["two", "one"]  # the held one came last, when it was free
    assert "2 of 2: " in done.out
    entries = read_ledger(folder / "results" / "tiny.json")
    assert [(entry["method"], entry["status"]) for entry in entries] == [("one", "complete"), ("two", "complete")]
    assert all(entry["runs"][0]["parity_ok"] and entry["runs"][0]["file_bytes"] > 0 for entry in entries)
    assert all("sweep" not in entry["command"] for entry in entries)
    monkeypatch.setattr(sweep, "run_jobs", run_jobs)
    ran.clear()
    assert command("experiments.sweep", *arguments).status == 0
    assert ran == []
    # A cell that fails is named, marked and costs no other; the next sweep tries it again.
    failed = command("experiments.sweep", *arguments, "seeds=[0,1]", "only=[one]", "overrides=['epochs=0']")
    assert failed.status == 1
    assert "ConfigError: epochs must be at least 1" in failed.err
    assert ran == ["one", "one"]
    (entry,) = read_ledger(folder / "results" / "tiny.json")
    assert (entry["status"], [run["status"] for run in entry["unfinished"]]) == ("failed", ["failed", "failed"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a sweep"),
        (["sweep=seeds", "seeds=[]"], "seeds must be different numbers"),
        (["sweep=seeds", "only=[nothing]"], "no cell of the sweep is nothing; cells are fp32, xnor"),
        (["sweep=seeds", "overrides=['quantizer=xnor']"], "cells fp32 and xnor of the sweep are the same experiment"),
    ],
)
def test_mistakes_get_one_message(arguments, words, folder, command):
    failed = command("experiments.sweep", *arguments)
    assert (failed.status, words in failed.err) == (2, True), failed.err
    assert not (folder / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_kills_and_company_do_not_change_the_ledger(seed, folder):
    """Killed three times at random and then run by two processes at once, as an undisturbed sweep."""
    text = TINY.replace("epochs=1, batch_size=400", "epochs=3, batch_size=200").replace("[0]", "[0, 1, 2]")
    (folder / "conf" / "sweep" / "tiny.yaml").write_text(text)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for name, script in (("quiet", ["-m", "experiments.sweep"]), ("killed", [])):
        (folder / name).mkdir()
        start = script or [str(Path(__file__).with_name("killed_sweeps.py")), str(seed), "3"]
        command = [sys.executable, "-W", "ignore", *start, "--config-dir", "../conf", "sweep=tiny"]
        done = subprocess.run(command, cwd=folder / name, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert any(line[:2] == ["killed", "after"] and len(line) == 6 for line in lines)
    (both,) = [line[2:] for line in lines if line[:2] == ["finished", "by"]]
    at = next(number for number, line in enumerate(lines) if line[:1] == ["killed"])
    ran = [line[1:] for line in lines[at:] if line[:1] == ["trains"]]
    assert {pid for pid, *_ in ran} == set(both)  # both did a share
    assert len({tuple(job) for _, *job in ran}) == len(ran)  # and no job was done twice
    quiet, killed = (comparable_entries(folder / name / "results" / "tiny.json") for name in ("quiet", "killed"))
    assert quiet == killed
    assert json.dumps(quiet).count('"seed"') == 6
