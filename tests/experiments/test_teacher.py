"""Distillation by the command: teachers from runs and from files of weights, and what the result says of them."""

import hashlib
import json
import shutil

import pytest
from conftest import TINY

STUDENT = (*TINY, "quantizer=xnor", "run_dir=student")


@pytest.fixture
def runs(trained, tmp_path, monkeypatch):
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "default"


def test_a_run_teaches_and_its_hash_is_recorded(runs, command, tmp_path):
    options = ("loss=attention", "loss.attention=3", "loss.maps=[conv2,conv3]", "teacher.run=runs/default/fp32/seed0")
    done = command("experiments.train", *STUDENT, *options)
    assert done.status == 0, done.err
    result = json.loads((tmp_path / "student" / "result.json").read_text())
    (checkpoint,) = runs.glob("fp32/*/seed0/checkpoints/last.ckpt")
    taught = json.loads((checkpoint.parent.parent / "result.json").read_text())
    assert result["teacher"] == {
        "run": "runs/default/fp32/seed0",
        "model": "DigitsCNN",
        "quantizer": "fp32",
        "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "test_accuracy": taught["accuracy"]["test"],
    }
    assert "already finished" in command("experiments.train", *STUDENT, *options).out
    converted = command("experiments.convert", "run=student", "parity=20")
    assert converted.status == 0, converted.err


def test_a_config_with_a_file_of_weights_teaches(runs, command, tmp_path):
    (checkpoint,) = runs.glob("fp32/*/seed0/checkpoints/last.ckpt")
    teacher = ("model@teacher.model=digits_cnn", "teacher.model.width=4", f"teacher.weights={checkpoint}")
    done = command("experiments.train", *STUDENT, "epochs=1", "loss=kl", *teacher)
    assert done.status == 0, done.err
    found = json.loads((tmp_path / "student" / "result.json").read_text())["teacher"]
    assert (found["model"], found["sha256"]) == ("DigitsCNN", hashlib.sha256(checkpoint.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["loss=distillation"], ["needs a teacher", "teacher.run=FOLDER"]),
        (["teacher.run=runs/default/fp32"], ["the loss does not ask it", "loss=distillation"]),
        (["loss=kl", "teacher.run=nowhere"], ["nowhere is no run"]),
        (["loss=kl", "teacher.weights=x.pt"], ["teacher.model"]),
        (["loss=kl", "model@teacher.model=digits_cnn"], ["teacher.weights=FILE"]),
        (["loss=kl", "model@teacher.model=digits_cnn", "teacher.weights=x.pt"], ["x.pt is no file of weights"]),
        (["loss=kl", "teacher.run=runs", "teacher.weights=x.pt"], ["teacher.run is a whole network"]),
        (["loss=attention", "teacher.run=runs/default/fp32"], ["attention=1.0 and maps=[]"]),
        (["loss=kl", "teacher.run=runs/default/fp32", "model.pixels=true"], ["both pixels"]),
    ],
)
def test_mistakes_get_one_message(options, words, runs, command, tmp_path):
    failed = command("experiments.train", *STUDENT, *options)
    assert failed.status == 2
    assert failed.err.count("error:") == 1
    for word in words:
        assert word in failed.err
    assert not (tmp_path / "student").exists()
