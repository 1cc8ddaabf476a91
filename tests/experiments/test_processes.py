"""Two processes that train one run: equal to one process, one of them writes, both end together."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY

from bnn.training import read_checkpoint

ROOT = Path(__file__).parents[2]
QUICK = (*TINY, "trainer.accelerator=cpu")
# 64 bits: where sums round otherwise, no sign of a latent or of an input becomes another one.
PLAIN = (*QUICK, "model._target_=plain_network.PlainNetwork", "model.width=16", "trainer.precision=64-true")
TWO = ("trainer.devices=2", "trainer.strategy=ddp")


def start(folder, *arguments, torchrun=False):
    """The command in processes of its own."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "kernels", Path(__file__).parent)))
    before = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if torchrun else []
    rest = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *before, "-m", "experiments.train", *arguments],
        cwd=folder, env=rest | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def read(folder):
    return json.loads((folder / "result.json").read_text())


def curve(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def weights(folder):
    return read_checkpoint(folder)["state_dict"]


def assert_alike(one, two):
    """Two runs are the same but for rounding."""
    assert len(curve(one)) == len(curve(two)) > 0
    for row, other in zip(curve(one), curve(two), strict=True):
        assert row == pytest.approx(other, rel=1e-5)
    assert read(one)["accuracy"] == read(two)["accuracy"]
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-9, atol=1e-11, msg=name)


def assert_together_as_one(command, folder, *options):
    """Train by one process and by two; their results are the same but for rounding."""
    # Of the last batch's one image the second process has none.
    arguments = (*PLAIN, "batch_size=299", "trainer.accumulate_grad_batches=2", "doctor.every=2", *options)
    for name, more in (("one", ()), ("two", TWO)):
        done = command("experiments.train", *arguments, *more, f"run_dir={name}")
        assert done.status == 0, done.err
    one, two = folder / "one", folder / "two"
    assert_alike(one, two)
    assert (read(one)["processes"], read(two)["processes"]) == (1, 2)
    assert read(two)["command"].endswith("trainer.devices=2")
    assert not [name for name in os.environ if name in ("LOCAL_RANK", "MASTER_PORT")]
    assert {file.name for file in two.iterdir()} == {file.name for file in one.iterdir()}
    seen = [json.loads((run / "doctor.json").read_text()) for run in (one, two)]
    assert seen[0]["steps"] == seen[1]["steps"]
    assert seen[1]["loss"] == pytest.approx(seen[0]["loss"], rel=1e-5)
    for name, layer in seen[0]["layers"].items():
        for metric in ("flip_rate", "weight_entropy", "distance", "no_gradient", "saturated"):
            if metric in layer:
                assert seen[1]["layers"][name][metric] == pytest.approx(layer[metric], rel=1e-5), metric
        assert seen[1]["layers"][name]["input_entropy"] == pytest.approx(layer["input_entropy"], rel=0.1)
    return seen


def test_two_processes_train_as_one(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_together_as_one(command, tmp_path, "quantizer=xnor", "ema=0.8")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["bop", "bop2", "adam_sgd"])
def test_optimizers_see_the_gradients_of_both(optimizer, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = assert_together_as_one(command, tmp_path, "quantizer=bnn", f"optimizer={optimizer}")
    assert max(rate for layer in seen[0]["layers"].values() for rate in layer["flip_rate"]) > 0


RANDOM = ("quantizer=bnn_stochastic", "augment=crop", "classifier.mixup=0.2", "ema=0.8", "keep_best=true")


@pytest.mark.slow
def test_torchrun_starts_the_same_and_what_is_stopped_goes_on_to_the_same_weights(tmp_path):
    arguments = (*QUICK, *RANDOM, "epochs=3")
    status, _, err = finished(start(tmp_path, *arguments, "run_dir=torchrun", torchrun=True))
    assert status == 0, err
    cut = start(tmp_path, *arguments, *TWO, "+trainer.max_time={microseconds:1}", "run_dir=parts")
    status, _, err = finished(cut)
    assert status == 0, err
    assert read(tmp_path / "parts")["epochs"] == 1
    status, _, err = finished(start(tmp_path, *arguments, *TWO, "run_dir=parts"))
    assert status == 0, err
    whole, parts = (read(tmp_path / name) for name in ("torchrun", "parts"))
    assert parts["interruptions"] == 1
    assert (whole["processes"], parts["processes"]) == (2, 2)
    assert whole["accuracy"] == parts["accuracy"]
    assert whole["command"].startswith("torchrun --nnodes=1 --nproc-per-node=2 -m experiments.train ")
    assert whole["experiment"] == parts["experiment"]
    for name, value in weights(tmp_path / "torchrun").items():
        assert torch.equal(weights(tmp_path / "parts")[name], value), name
    states = read_checkpoint(tmp_path / "parts")
    (other,) = states["random_numbers_of_others"]
    assert not torch.equal(states["random_numbers"]["cpu"], other["cpu"])
    status, _, err = finished(start(tmp_path, *arguments, "run_dir=parts"))
    assert (status, "trainer.devices is 2 there and absent here" in err) == (2, True), err


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [False, True])
def test_a_loss_that_is_not_finite_is_told_once(torchrun, tmp_path):
    more = () if torchrun else TWO
    status, _, err = finished(
        start(tmp_path, *QUICK, "quantizer=xnor", "optimizer.lr=1e30", *more, "run_dir=r", torchrun=torchrun)
    )
    assert (status == 2) or torchrun
    assert err.count("the loss is not finite at epoch 0, step 1") == 1, err
    assert "it begins in the output of " in err


@pytest.mark.slow
def test_a_process_that_fails_is_named_and_none_is_left(tmp_path):
    status, _, err = finished(start(tmp_path, *PLAIN, *TWO, "+model.fails_in=1", "run_dir=r"))
    assert status == 2, err
    assert "error in process 1: " in err
    assert "this process has no network" in err
    assert "error: process 1 of 2 (from 0) ended with status 2" in err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 130), ("SIGINT", 130), ("SIGKILL", -9)])
def test_the_others_end_with_the_first(name, status, tmp_path):
    process = start(tmp_path, *QUICK, *TWO, "epochs=5000", "run_dir=r")
    while not (tmp_path / "r" / "metrics.csv").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(getattr(signal, name))
    # The pipe ends with the last process that may write to it.
    assert finished(process)[0] == status


@pytest.mark.slow
def test_stages_and_teachers_and_data_that_begin_quantizers(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "staged.yaml").write_text(
        "# @package _global_\nname: staged\nstages:\n"
        "  first: {quantizer: fp32}\n"
        "  second: {quantizer: lsq2, loss: kl, start: last, teacher: {stage: first}}\n"
    )
    done = command("experiments.train", "--config-dir", "mine", "experiment=staged", *QUICK, *TWO, "run_dir=r")
    assert done.status == 0, done.err
    stages = read(tmp_path / "r")["stages"]
    assert [stage["name"] for stage in stages] == ["first", "second"]
    assert (read(tmp_path / "r")["processes"], read(tmp_path / "r" / "stages" / "first")["processes"]) == (2, 2)
    assert command("experiments.convert", "run=r", "parity=20").status == 0
    swept = command("experiments.train", "-m", *QUICK, *TWO, "epochs=1", "quantizer=xnor,fp32")
    assert swept.status == 0, swept.err
    assert len(list((tmp_path / "runs").rglob("result.json"))) == 2
