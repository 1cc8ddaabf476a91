"""The commands that time and weigh a training step, on a network of some milliseconds."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from experiments import activation_memory, harness_speed, mixed_precision, training_step
from experiments.timing import Timing

ROOT = Path(__file__).parent.parent.parent
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
    """The ratio is the quantized network's time over its twin's, of medians and of best times."""
    quantized, twin = (Timing(best, median, 7, (best, median)) for best, median in ((0.003, 0.006), (0.002, 0.0016)))

    def timed(first, second, seconds):
        first()
        second()
        return quantized, twin

    monkeypatch.setattr(training_step, "pair", timed)
    done, file = measured(command, tmp_path, monkeypatch, "training_step", "quantizer=bnn")
    assert done.status == 0, done.err
    content = json.loads(file.read_text())
    assert (content["model"], content["quantizer"], content["batch_size"]) == ("DigitsCNN", "bnn", 3)
    assert content["quantized_ms"] == {"best": 3.0, "median": 6.0, "calls": 7}
    assert content["fp32_ms"] == {"best": 2.0, "median": 1.6, "calls": 7}
    assert content["ratio"] == {"best": 1.5, "median": 3.75}
    assert "ratio 3.75 (best 1.50)" in done.out
    assert content["command"].startswith("python -m experiments.training_step model=digits_cnn")


def test_mixed_precision(command, tmp_path, monkeypatch):
    """Each network in each precision, beside itself in FP32; products of a step in BF16 are of BF16."""
    timed = [Timing(0.001 * best, 0.002 * best, 5, (best, best)) for best in (8, 4, 10, 2)]
    seen = []

    def in_turn(steps, seconds):
        assert seconds == 4 * 0.5
        for step in steps:
            with Products() as products:
                step()
            seen.append(products.dtypes)
        return timed

    monkeypatch.setattr(mixed_precision, "in_turn", in_turn)
    options = ("quantizer=lsq2", "seconds=0.5", "memory=false")
    done, file = measured(command, tmp_path, monkeypatch, "mixed_precision", *options)
    assert done.status == 0, done.err
    rows = json.loads(file.read_text())["rows"]
    names = [(row["quantizer"], row["precision"]) for row in rows]
    assert names == [(name, precision) for name in ("fp32", "lsq2") for precision in ("32-true", "bf16-mixed")]
    assert [row["of_fp32"]["median"] for row in rows] == [1, 0.5, 1, 0.2]
    assert seen == [{torch.float32}, {torch.bfloat16}] * 2
    done, _ = measured(command, tmp_path, monkeypatch, "mixed_precision", "precisions=[fp8]")
    assert (done.status, "precisions are 32-true, bf16-mixed, got 'fp8'" in done.err) == (2, True)


class Products(TorchDispatchMode):
    """The dtypes of the weights of all convolutions."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.dtypes.add(args[1].dtype)
        return func(*args, **(kwargs or {}))


def test_activation_memory(command, tmp_path, monkeypatch):
    monkeypatch.setattr(activation_memory, "peak_bytes", lambda config, packs: 2 - packs)
    done, file = measured(command, tmp_path, monkeypatch, "activation_memory")
    assert done.status == 0, done.err
    content = json.loads(file.read_text())
    elements = 3 * (4 * 64 + 8 * 16 + 32)
    assert content["binarized_bytes"] == {"plain": 5 * elements, "packed": elements / 4, "ratio": 20.0}
    # ReLU keeps its output: three layers before pooling.
    windows = 3 * (8 * 64 + 8 * 16 + 16)
    assert content["windows_bytes"] == {"plain": 4 * windows, "packed": windows / 8, "ratio": 32.0}
    saved = content["all_saved_bytes"]
    assert saved["plain"] - saved["packed"] == (5 - 1 / 4) * elements + (4 - 1 / 8) * windows
    assert content["peak_growth_bytes"] == {"plain": 2, "packed": 1, "ratio": 2}


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


def test_the_documents_numbers_are_those_of_the_results():
    text = (ROOT / "docs" / "training.md").read_text()
    memory, step = (
        json.loads((ROOT / "results" / f"{n}.json").read_text()) for n in ("activation_memory", "training_step")
    )
    for label, key in (
        ("binarized inputs and masks of their quantizers", "binarized_bytes"),
        ("windows of Hardtanh", "windows_bytes"),
        ("everything that is saved", "all_saved_bytes"),
        ("peak of a step", "peak_growth_bytes"),
    ):
        row = memory[key]
        assert f"| {label} | {row['plain'] / 1e6:.1f} MB | {row['packed'] / 1e6:.1f} MB | {row['ratio']} |" in text
    assert f"A step takes {memory['time_ratio']['median']:.2f} times as long" in text
    assert f"takes {step['ratio']['median']:.2f} times that of its FP32 twin" in text
    assert memory["binarized_bytes"]["ratio"] >= 8
    assert step["ratio"]["median"] <= 1.35


@pytest.mark.slow
def test_peak_memory_of_a_fresh_process(monkeypatch):
    from hydra import compose, initialize_config_dir

    from experiments import cli

    with initialize_config_dir(str(cli.CONFIGS), **cli.VERSION_BASE):
        config = compose("activation_memory", ["batch_size=16"])
    plain, packed = (activation_memory.peak_bytes(config, packs) for packs in (False, True))
    assert 50e6 < packed < plain < 200e6


def test_harness_speed(command, tmp_path, monkeypatch):
    """Both loops take every step; the first of an epoch is not counted."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    try:
        arguments = ("steps=4", "epochs=2", "quantizer=xnor", "doctor=3", "output=out.json")
        done = command("experiments.harness_speed", *SMALL[:-1], *arguments)
    finally:
        torch.set_num_threads(threads)
    assert done.status == 0, done.err
    assert "equal weights" in done.out
    content = json.loads((tmp_path / "out.json").read_text())
    assert [row["quantizer"] for row in content["rows"]] == ["fp32", "xnor"]
    for row in content["rows"]:
        assert row["bare_ms"]["steps"] == row["harness_ms"]["steps"] == 2 * 3
        for kind in ("best", "median", "mean"):
            ours, theirs = row["harness_ms"][kind], row["bare_ms"][kind]
            assert row["ratio"][kind] == pytest.approx(theirs / ours, rel=0.05)
    assert (content["batch_size"], content["doctor"], content["threads"]) == (3, 3, 1)


def test_loops_that_do_not_do_the_same_are_not_compared(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bare = harness_speed.bare_steps

    def another(network, *arguments):
        next(network.parameters()).data.add_(1e-3)
        return bare(network, *arguments)

    monkeypatch.setattr(harness_speed, "bare_steps", another)
    threads = torch.get_num_threads()
    try:
        with pytest.raises(RuntimeError, match=r"the two loops did not do the same: .* differs"):
            command("experiments.harness_speed", *SMALL[:-1], "steps=3", "epochs=1", "doctor=null")
    finally:
        torch.set_num_threads(threads)
