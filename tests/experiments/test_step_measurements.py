"""The two commands that time and weigh a training step, on a network of some milliseconds."""

import json

import pytest
import torch
from torch import nn

from experiments import activation_memory

SMALL = ("model=digits_cnn", "model.width=4", "input_shape=[1,8,8]", "batch_size=3", "threads=1", "seconds=0.05")


def measured(command, tmp_path, monkeypatch, name, *arguments):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    try:
        done = command(f"experiments.{name}", *SMALL, "output=out.json", *arguments)
    finally:
        torch.set_num_threads(threads)
    return done, tmp_path / "out.json"


def test_training_step(command, tmp_path, monkeypatch):
    done, file = measured(command, tmp_path, monkeypatch, "training_step", "quantizer=bnn")
    assert done.status == 0, done.err
    content = json.loads(file.read_text())
    assert (content["model"], content["quantizer"], content["batch_size"]) == ("DigitsCNN", "bnn", 3)
    assert content["ratio"]["median"] == pytest.approx(
        content["quantized_ms"]["median"] / content["fp32_ms"]["median"], rel=0.05
    )
    assert content["command"].startswith("python -m experiments.training_step model=digits_cnn")


def test_activation_memory(command, tmp_path, monkeypatch):
    monkeypatch.setattr(activation_memory, "peak_bytes", lambda config, packs: 2 - packs)
    done, file = measured(command, tmp_path, monkeypatch, "activation_memory")
    assert done.status == 0, done.err
    content = json.loads(file.read_text())
    elements = 3 * (4 * 64 + 8 * 16 + 32)
    assert content["binarized_bytes"] == {"plain": 5 * elements, "packed": elements / 4, "ratio": 20.0}
    saved = content["all_saved_bytes"]
    assert saved["plain"] - saved["packed"] == 5 * elements - elements / 4
    assert content["peak_growth_bytes"]["ratio"] == 2


def test_different_gradients_are_not_weighed(command, tmp_path, monkeypatch):
    from bnn.memory.bits import PackedTensor

    right = PackedTensor.unpack
    monkeypatch.setattr(PackedTensor, "unpack", lambda self: right(self).clone().logical_not_().to(right(self).dtype))
    with pytest.raises(RuntimeError, match="nothing to weigh"):
        measured(command, tmp_path, monkeypatch, "activation_memory")


def test_saved_bytes_are_those_of_the_graph():
    """Linear saves its input and weight, Hardtanh its input: two maps of 5x4 and 5x3, no parameters, no images."""
    network = nn.Sequential(nn.Linear(7, 4), nn.Hardtanh(), nn.Linear(4, 3), nn.Hardtanh())
    images = torch.randn(5, 7)
    # Input of the first hardtanh and of the second linear layer (5x4 each), input of the last hardtanh (5x3).
    assert activation_memory.saved_bytes(network, images) == 4 * (20 + 20 + 15)


@pytest.mark.slow
def test_peak_memory_of_a_fresh_process(monkeypatch):
    from hydra import compose, initialize_config_dir

    from experiments import cli

    with initialize_config_dir(str(cli.CONFIGS), version_base="1.3"):
        config = compose("activation_memory", ["batch_size=16"])
    plain, packed = (activation_memory.peak_bytes(config, packs) for packs in (False, True))
    assert 50e6 < packed < plain < 200e6
