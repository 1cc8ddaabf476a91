"""Pruning by the commands: pruned channels are gone from the packed file, whose answers are those of the masked run."""

import json

import bnn_kernels as bk
import pytest
from conftest import TINY

PRUNED = (*TINY[1:], "pruning=channels", "doctor.every=1")


def read(file):
    return json.loads(file.read_text())


ALL = {"conv1": [8, 4], "conv2": [16, 8], "conv3": [16, 8], "linear4": [32, 16]}
# A map of signs that is padded with 0: the constant would be wrong at the border.
UNPADDED = {name: ALL[name] for name in ("conv3", "linear4")}


@pytest.mark.parametrize(("quantizer", "left", "share"), [("lsq4", ALL, 0.45), ("xnor", UNPADDED, 0.9)])
def test_pruned_channels_leave_the_packed_network(quantizer, left, share, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    sizes = {}
    for name, options in (("whole", TINY[1:]), ("pruned", PRUNED)):
        done = command("experiments.train", *options, f"quantizer={quantizer}", "model.width=8", f"run_dir={name}")
        assert done.status == 0, done.err
        done = command("experiments.convert", f"run={name}", "parity=50")
        assert done.status == 0, done.err
        assert "parity holds" in done.out
        conversion = read(tmp_path / name / "conversion.json")
        assert conversion["same_predictions"] == conversion["test_images"]
        assert conversion["test_accuracy_packed"] == read(tmp_path / name / "result.json")["accuracy"]["test"]
        sizes[name] = (tmp_path / name / "packed.safetensors").stat().st_size
        channels = conversion.get("channels")
    assert channels == left
    assert "conv3: 8 of 16 channels are left" in done.out
    assert ("conv1: its pruned channels stay, as conv2 pads" in done.out) == ("conv1" not in left)
    assert sizes["pruned"] < 0.95 * sizes["whole"]
    packed, whole = (bk.load(tmp_path / name / "packed.safetensors") for name in ("pruned", "whole"))
    assert packed.nbytes < share * whole.nbytes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["pruning=unstructured", "quantizer=xnor"], ["pruning: conv2", "ternary"]),
        (["pruning=channels", "pruning.epoch=2"], ["there are 2 epochs"]),
        (["pruning=channels", "pruning.amount=2"], ["amount must be a share"]),
        (["pruning=channels", "pruning.layers=[conv9]"], ["conv9"]),
    ],
)
def test_mistakes_get_one_message(options, words, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    failed = command("experiments.train", *TINY, *options)
    assert failed.status == 2
    assert failed.err.count("error:") == 1
    for word in words:
        assert word in failed.err
    assert not (tmp_path / "runs").exists()
