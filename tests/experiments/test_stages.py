"""Staged recipes: each stage begins with the weights of the one before; killed anywhere, the command ends alike."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY
from hydra import compose, initialize_config_dir

import bnn
from bnn.models import DigitsCNN
from bnn.quantizers import FullPrecision, LsqWeight, SteSign
from bnn.training import begin_with, read_checkpoint
from experiments import cli
from experiments.run_parts import build_parts

# Everything at once: stages, a teacher, an average of weights, accumulation, augmentation, mixup, drawn signs.
RECIPE = """\
# @package _global_
defaults:
  - override /quantizer: bnn_stochastic
  - override /loss: kl
  - override /augment: crop

name: everything
epochs: 2
ema: 0.8
classifier: {mixup: 0.2}
trainer: {accumulate_grad_batches: 2}
stages:
  teacher: {quantizer: fp32, loss: cross_entropy, epochs: 1}
  first: {quantizer: lsq2, start: none, teacher: {stage: teacher}}
  second: {start: best, teacher: {stage: first}, optimizer: {lr: 0.001}}
"""
QUICK = ("model.width=4", "batch_size=200", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu")
COMMAND = ("--config-dir", "mine", "experiment=everything", *QUICK)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A folder with the recipe."""
    folder = tmp_path_factory.mktemp("staged")
    (folder / "mine" / "experiment").mkdir(parents=True)
    (folder / "mine" / "experiment" / "everything.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def whole(recipe, module_command):
    """The folder with a run of it that nothing interrupted."""
    done = module_command("experiments.train", *COMMAND, "run_dir=whole", folder=recipe)
    assert done.status == 0, done.err
    return recipe


def start(folder, seed, most, *arguments):
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "kernels")])
    script = Path(__file__).with_name("killed_runs.py")
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(seed), str(most), *arguments],
        cwd=folder, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def read(folder):
    return json.loads((folder / "result.json").read_text())


def assert_equal(one, other, where=""):
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, where


def test_a_result_tells_of_the_stages(whole):
    result = read(whole / "whole")
    stages = {stage["name"]: stage for stage in result["stages"]}
    assert list(stages) == ["teacher", "first", "second"]
    assert [stage["quantizer"] for stage in stages.values()] == ["fp32", "lsq2", "bnn_stochastic"]
    assert [stage["epochs"] for stage in stages.values()] == [1, 2, 2]
    assert stages["second"]["accuracy"] == result["accuracy"]
    start = stages["second"]["start"]
    assert (start["run"], start["weights"], start["observer"]) == ("whole/stages/first", "best", None)
    assert stages["first"]["teacher"]["run"] == "whole/stages/teacher"
    assert "start" not in stages["first"]
    assert result["quantizer"] == "bnn_stochastic"
    assert (result["config"]["optimizer"]["lr"], result["interruptions"]) == (0.001, 0)
    assert (whole / "whole" / "stages" / "first" / "checkpoints" / "best.ckpt").exists()


def test_a_staged_run_is_one_run_for_the_other_commands(whole, command, monkeypatch):
    monkeypatch.chdir(whole)
    assert command("experiments.train", *COMMAND, "run_dir=whole").out.count("already finished") == 1
    assert command("experiments.convert", "run=whole", "parity=20").status == 0
    done = command("experiments.collect", "folder=whole", "output=table.json")
    assert done.status == 0, done.err
    assert len((whole / "table.csv").read_text().splitlines()) == 2  # a head and one run


def assert_killed_runs_end_alike(whole, seed, most):
    done = start(whole, seed, most, *COMMAND, f"run_dir=killed{seed}")
    assert done.returncode == 0, done.stderr
    killed = done.stdout.split("killed at")[1].split()
    assert killed
    for stage in ("stages/teacher", "stages/first", "."):
        folders = [whole / name / stage for name in ("whole", f"killed{seed}")]
        states = [read_checkpoint(folder) for folder in folders]
        for key in ("state_dict", "current_model_state", "averaging_state"):
            assert_equal(dict(states[0][key]), dict(states[1][key]), f"{stage}: {key}")
        assert (folders[0] / "metrics.csv").read_bytes() == (folders[1] / "metrics.csv").read_bytes()
        assert read(folders[0])["accuracy"] == read(folders[1])["accuracy"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(whole):
    assert_killed_runs_end_alike(whole, 1, 60)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize("seed", range(2, 22))
def test_many_runs_killed_at_random_moments_end_with_the_same_weights(whole, seed):
    assert_killed_runs_end_alike(whole, seed, 30)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["stages.second.epochz=3"], ["stages.second.epochz|epochz"]),
        (["+stages.second.epochz=3"], ["stages.second: there is no option 'epochz'", "Did you mean epochs?"]),
        (["optimizer.lr=0.1"], ["optimizer.lr=0.1 is set by a stage", "stages.second.optimizer.lr="]),
        (["stages.second.start=middle"], ["stages.second.start is last, best or none"]),
        (["+stages.teacher.start=last"], ["the first stage's is none"]),
        (["stages.first.teacher.stage=second"], ["stages.first.teacher.stage must be an earlier stage"]),
        (["stages=3"], ["stages must be"]),
        (["stages.teacher.epochs=0"], ["epochs must be at least 1"]),
    ],
)
def test_mistakes_are_told_before_anything_trains(options, words, recipe, command, monkeypatch):
    monkeypatch.chdir(recipe)
    failed = command("experiments.train", *COMMAND, "run_dir=bad", *options)
    assert (failed.status, failed.err.count("error:")) == (2, 1), failed.err
    assert all(any(part in failed.err for part in word.split("|")) for word in words), failed.err
    assert not (recipe / "bad").exists()


def test_a_run_may_begin_with_the_weights_of_another(trained, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start_run = f"start.run={trained / 'runs' / 'default' / 'fp32' / 'seed0'}"
    done = command("experiments.train", "quantizer=xnor", *TINY, "epochs=1", start_run, "run_dir=r")
    assert done.status == 0, done.err
    assert read(tmp_path / "r")["start"]["weights"] == "last"
    for options, words in (
        (["start.run=nowhere"], "nowhere is no run"),
        (["start.observer=mse"], "start.run=FOLDER, which is not given"),
        ([start_run, "start.observer=mse"], "no quantizer with evenly spaced levels"),
        ([start_run, "start.observer=mse", "start.batches=0"], "start.batches must be at least 1"),
        ([start_run, "model.width=5"], "cannot begin with the weights"),
        ([start_run, "start.weights=best"], "holds no checkpoints"),
    ):
        failed = command("experiments.train", "quantizer=xnor", *TINY, *options, "run_dir=s")
        assert (failed.status, words in failed.err) == (2, True), failed.err


def test_training_may_begin_with_calibrated_steps(trained, monkeypatch):
    monkeypatch.chdir(trained)
    options = ["quantizer=lsq2", *TINY, "start.run=runs/default/fp32", "batch_size=50", "run_dir=unused"]
    with initialize_config_dir(str(cli.CONFIGS), **cli.VERSION_BASE):
        found = build_parts(compose("train", [*options, "start.observer=percentile", "start.batches=3"]))
        plain = build_parts(compose("train", options))
    batches = itertools.islice(found.data.batches("train", 50, shuffle=True, seed=0), 3)
    expected = bnn.calibrate(plain.network, [x for x, _ in batches], "percentile").state_dict()
    steps = [name for name in expected if name.endswith("quantizer.step")]
    assert len(steps) == 6
    assert all(torch.equal(found.network.state_dict()[name], expected[name]) for name in expected)


def test_quantizers_of_another_kind_begin_as_new():
    torch.manual_seed(0)
    source = DigitsCNN(width=4, weight_quantizer=FullPrecision, input_quantizer=SteSign)
    network = DigitsCNN(width=4, weight_quantizer=lambda: LsqWeight(bits=2), input_quantizer=SteSign)
    other = DigitsCNN(width=4, weight_quantizer=lambda: LsqWeight(bits=4), input_quantizer=SteSign)
    begin_with(network, source)
    assert torch.equal(network.conv2.weight, source.conv2.weight)
    network.train()(torch.randn(8, 1, 8, 8))
    again = DigitsCNN(width=4, weight_quantizer=lambda: LsqWeight(bits=2), input_quantizer=SteSign)
    begin_with(again, network)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in again.state_dict().items())
    fresh = other.conv2.weight_quantizer.step.clone()
    begin_with(other, network)
    assert other.conv2.weight_quantizer.step == fresh != network.conv2.weight_quantizer.step
