"""Runs of each kind that has a state of its own, killed at random moments: they end with the weights of a whole run.

Stages, teachers, averages, accumulation, augmentation, mixup and drawn signs are killed in test_stages.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bnn.training import read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")]

QUIET = ("trainer.enable_progress_bar=false", "trainer.accelerator=cpu")
DIGITS = ("model.width=4", "batch_size=200", "epochs=3", *QUIET)
TEXT = (
    *("experiment=bitlinear_tinyshakespeare", "data=text", "data.file=poem.txt", "data.context=8", "name=poem"),
    *("model.num_classes=30", "model.width=16", "model.layers=1", "model.heads=2", "model.hidden=16"),
    *("epochs=3", "scheduler.warmup=0", *QUIET),
)
FILES = (
    *("data=folder", "data.root=images", "data.in_memory=false", "data.size=8", "data.channels=1"),
    *("+model.num_classes=10", "augment=resized_crop", "model.width=4", "batch_size=10", "epochs=4", *QUIET),
)
KINDS = {
    "optimizer without latents": (*DIGITS, "quantizer=bnn", "optimizer=bop2", "trainer.gradient_clip_val=1.0"),
    "optimizer with latents of its own": (*DIGITS, "quantizer=relaxed2", "optimizer=parq"),
    "frozen weights": (*DIGITS, "quantizer=lsq2", "+oscillation=freeze", "doctor.every=2"),
    "buffers of quantizers": (*DIGITS, "quantizer=lqnet2", "ema=0.9"),
    "schedules": (*DIGITS, "quantizer=irnet", "augment=crop"),
    "text": TEXT,
    "images in files": (*FILES, "data.num_workers=0"),
    "images that others decode": (*FILES, "data.num_workers=1"),
    "two processes": (*DIGITS, "quantizer=bnn_stochastic", "augment=crop", "trainer.devices=2"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a text and with images in files."""
    top = tmp_path_factory.mktemp("kinds")
    (top / "poem.txt").write_text("two roads diverged in a yellow wood, and sorry i could not travel both\n" * 20)
    draws = np.random.default_rng(0)
    for name in ("a", "b"):
        (top / "images" / name).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(draws.integers(0, 256, (12, 10), np.uint8)).save(top / "images" / name / f"{number}.png")
    return top


def train(folder, seed, most, *arguments):
    """Train, killed at random moments if `most` events are few; returns how often."""
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "kernels")])
    script = Path(__file__).with_name("killed_runs.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(seed), str(most), *arguments],
        cwd=folder, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return len(done.stdout.split("killed at")[1].split())


def assert_same(one, other, where):
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for place, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{place}]")
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, where


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_ends_with_the_same_weights_and_states(kind, folder):
    name = kind.replace(" ", "_")
    assert train(folder, 0, 10**6, *KINDS[kind], f"run_dir={name}/whole") == 0
    times, seed = 0, 1
    while times == 0:  # a short run may end before what was drawn
        times = train(folder, seed, 25, *KINDS[kind], f"run_dir={name}/killed{seed}")
        seed += 1
    runs = [folder / name / "whole", folder / name / f"killed{seed - 1}"]
    states = [read_checkpoint(run) for run in runs]
    for key in ("state_dict", "optimizer_states", "random_numbers"):
        assert_same(states[0][key], states[1][key], key)
    frozen = [[state for name, state in of["callbacks"].items() if "Freeze" in name] for of in states]
    assert_same(*frozen, "FreezeOscillations")
    assert (runs[0] / "metrics.csv").read_bytes() == (runs[1] / "metrics.csv").read_bytes()
    results = [json.loads((run / "result.json").read_text()) for run in runs]
    assert results[0]["accuracy"] == results[1]["accuracy"]
