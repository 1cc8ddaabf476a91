"""Who a run is: its experiment's hash, its recorded command, its lock, and what its result says was done."""

import json
import os
import shlex
import subprocess
import sys
import threading

import pytest
from conftest import TINY
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.collect import find_results, read_records
from experiments.commands import quoted
from experiments.identity import comparable, experiment_id
from experiments.ledger_entries import make_entries
from experiments.lock import run_lock

ONE = (*TINY, "epochs=1", "batch_size=400", "quantizer=xnor")
CONFIG = {"seed": 0, "name": "a", "optimizer": {"lr": 0.1}, "trainer": {"precision": "32-true"}, "data": {}}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"seed": 1}, True),
        ({"run_dir": "x/y"}, True),
        ({"trainer": {"precision": "32-true", "max_time": "1", "accelerator": "gpu"}}, True),
        ({"data": {"root": "x"}}, True),
        ({"doctor": {"every": None}}, True),
        ({"optimizer": {"lr": 0.2}}, False),
        ({"name": "b"}, False),
        ({"trainer": {"precision": "32-true", "max_steps": 5}}, False),
        ({"ema": None, "compile": True, "trainer": {"precision": "32-true", "accumulate_grad_batches": 1}}, True),
        ({"channels_last": True}, True),
        ({"ema": 0.9}, False),
        ({"trainer": {"precision": "32-true", "accumulate_grad_batches": 2}}, False),
    ],
)
def test_what_makes_an_experiment(change, same):
    assert (experiment_id(CONFIG | change) == experiment_id(CONFIG)) == same


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ({}, {"stem": "fp32", "pixels": False}, True),
        ({"stem": "cifar"}, {"layout": "cifar", "stem": "fp32", "pixels": False}, True),
        ({"stem": "imagenet"}, {"layout": "cifar", "stem": "fp32", "pixels": False}, False),
        ({}, {"stem": "int8", "pixels": False}, False),
        ({}, {"stem": "fp32", "pixels": True}, False),
    ],
)
def test_runs_from_before_models_had_stems_are_the_same_experiments(before, now, same):
    old, new = ({**CONFIG, "model": {"_target_": "M", **model}} for model in (before, now))
    assert (experiment_id(old) == experiment_id(new)) == same


def test_equal_numbers_are_one_experiment_whatever_their_order():
    other = {"optimizer": {"lr": 1.0}, "seed": 3, "a": float("inf")}
    assert experiment_id(other) == experiment_id({"a": float("inf"), "seed": 0, "optimizer": {"lr": 1}})
    json.dumps(comparable(other), allow_nan=False)
    inside = {"run_dir": "runs/x", "callbacks": {"dirpath": "runs/x/c"}}
    assert experiment_id(inside) == experiment_id({"run_dir": "o/y", "callbacks": {"dirpath": "o/y/c"}})


@pytest.mark.parametrize("text", ["a b", "it's", "back\\slash", "end\\", "\\'", "runs/demo", "a,b", "1e3", "$x"])
def test_quoted_values_come_back(text):
    value = OverridesParser.create().parse_override(f"x={quoted(text)}").value()
    assert str(value) == text


def result_files(folder):
    return sorted(folder.rglob("result.json"))


def test_learning_rates_are_experiments_of_their_own(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    sweep = ("-m", *ONE, "optimizer.lr=0.01,0.001", "seed=0,1")
    assert command("experiments.train", *sweep).status == 0
    assert len(result_files(tmp_path)) == 4
    assert command("experiments.train", *sweep).out.count("already finished") == 4
    entries = make_entries(read_records(find_results(tmp_path / "runs")[0]))
    assert {(len(e["seeds"]), e["settings"]["optimizer.lr"]) for e in entries} == {(2, 0.01), (2, 0.001)}
    assert list(entries[0]["settings"]) == ["optimizer.lr"]
    done = command("experiments.collect", "output=table.json")
    assert "optimizer.lr" in done.out
    assert "optimizer.lr" in (tmp_path / "table.csv").read_text().splitlines()[0].split(",")
    assert json.loads((tmp_path / "table.json").read_text())["command"].endswith("folder=runs output=table.json")
    several = command("experiments.convert", "run=runs/default/xnor/seed0")
    assert several.status == 2
    assert "holds 2 runs" in several.err
    assert "optimizer.lr=0.001" in several.err
    first = result_files(tmp_path)[0].parent
    (tmp_path / "runs" / "copy").mkdir()
    (tmp_path / "runs" / "copy" / "result.json").write_bytes((first / "result.json").read_bytes())
    twice = command("experiments.collect")
    assert (twice.status, "the same run twice" in twice.err) == (2, True)


def test_a_run_cut_by_time_is_not_finished_and_goes_on(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    arguments = (*ONE, "epochs=2", "run_dir=r", "name='a b'")
    assert command("experiments.train", *arguments, "+trainer.max_time={microseconds:1}").status == 0
    cut = json.loads((tmp_path / "r" / "result.json").read_text())
    assert (cut["epochs"], cut["steps"], cut["finished"], cut["stopped_by"]) == (1, 3, None, "trainer.max_time")
    refused = command("experiments.collect", "folder=.")
    assert (refused.status, "1 of 2 epochs" in refused.err) == (2, True)
    assert command("experiments.train", *arguments).status == 0
    whole = json.loads((tmp_path / "r" / "result.json").read_text())
    assert (whole["epochs"], whole["stopped_by"], whole["experiment"]) == (2, None, cut["experiment"])
    assert whole["finished"]
    words = shlex.split(whole["command"])
    again = command("experiments.train", *words[3:], "run_dir=r", "trainer.enable_progress_bar=false")
    assert "already finished" in again.out
    for name in ("result.json", "config.yaml", "checkpoints/last.ckpt"):
        file = tmp_path / "r" / name
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 3])
        module = "experiments.train" if name == "result.json" else "experiments.convert"
        damaged = command(module, *(arguments if name == "result.json" else ["run=r"]))
        assert damaged.status == 2
        assert "is damaged; remove it" in damaged.err
        file.write_bytes(content)


def test_a_second_process_is_refused_where_it_should_not_wait(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    with run_lock(tmp_path / "r"):
        refused = command("experiments.train", *ONE, "run_dir=r", "lock=refuse")
    assert (refused.status, refused.err.count("error:")) == (2, 1)
    assert f"r: process {os.getpid()} on " in refused.err
    assert not list(tmp_path.rglob("result.json"))


@pytest.mark.parametrize("where", ["afile", "afile/x"])
def test_a_file_in_the_way_is_named(where, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").write_text("")
    failed = command("experiments.train", *ONE, f"run_dir={where}")
    assert failed.status == 2
    assert f"run_dir={where} cannot be made" in failed.err


def test_a_second_process_waits_and_a_killed_one_blocks_nothing(tmp_path, capfd):
    code = (
        "import pathlib, sys, time\nfrom experiments.lock import run_lock\n"
        "with run_lock(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline().strip() == b"held"
    timer = threading.Timer(1.0, other.kill)
    timer.start()
    with run_lock(tmp_path):
        assert not timer.is_alive()
        assert json.loads((tmp_path / ".lock.owner").read_text())["pid"] == os.getpid()
    other.wait()
    other.stdout.close()
    said = capfd.readouterr().err
    assert said.count(f"process {other.pid} on ") == 1
    assert str(tmp_path) in said
    assert not (tmp_path / ".lock.owner").exists()
