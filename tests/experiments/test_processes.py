"""Two processes that train one run: equal to one process, one of them writes, both end together."""

import csv
import json
import os
import subprocess
import sys
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
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *before, "-m", "experiments.train", *arguments],
        cwd=folder, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
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
            assert seen[1]["layers"][name].get(metric) == pytest.approx(layer.get(metric), rel=1e-5), metric
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
