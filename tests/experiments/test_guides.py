"""The guides that end in numbers: their commands are run in order as they stand, on small data and with short times.

test_docs.py checks that the commands of every page compose. Here they run, with options added that make them quick.
"""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch

import bnn.data
from bnn.data.image_data import ImageData, Split
from experiments import cli, sweep
from paper_figures.ledger_file import read_ledger

GUIDES = cli.CONFIGS.parent / "docs" / "guides"
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```', re.M | re.S)

# Options that are added to a command of a guide.
TRAINING = (
    "epochs=1",
    "batch_size=50",
    "doctor.every=null",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
)
SHORT = ("seconds=0.002", "batch_sizes=[1]", "threads=[1]")
ADDED = {
    "train": TRAINING,
    "sweep": ("overrides=['epochs=1','batch_size=50','doctor.every=null','trainer.accelerator=cpu']", "seeds=[0,1]"),
    "benchmark": (*SHORT, "layers=[]"),
    "benchmark suite=kernels": (*SHORT, "layers=[[3,256,14,3]]", "variants=[]", "with_peers=0", "batch_sizes=[]"),
    "benchmark suite=networks": (*SHORT, "networks=[digits_cnn]", "least_calls=1"),
    "benchmark suite=widths": (*SHORT, "layers=[[8,8,5,3]]", "variants=[]", "widths=[1/1,8/8]", "least_calls=1"),
    "benchmark suite=network_widths": (*SHORT, "networks=[digits_cnn]", "widths=[1/1,8/8]", "least_calls=1"),
    "benchmark suite=costs": ("seconds=0.002", "costs_file=costs.json"),
    "report": ("speed=false",),
}


def commands_of(page):
    """The command lines of a guide, as lists of words, in order."""
    text = (GUIDES / page).read_text()
    lines = [line for language, _, code in BLOCK.findall(text) if not language for line in code.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("bitplanes ")]


def few_images(root=None, download=True):
    """Handwritten digits of scikit-learn, in the size of MNIST's: 200 to train, 50 and 50."""
    digits = bnn.data.digits()
    images = torch.nn.functional.interpolate(digits.train.images.float(), (28, 28)).byte() * 15
    labels, splits = digits.train.labels, ((0, 200), (200, 250), (250, 300))
    return ImageData("mnist", *(Split(images[a:b], labels[a:b]) for a, b in splits), num_classes=10)


@pytest.fixture
def follow(tmp_path, monkeypatch, command):
    """follow(page, leave_out) runs a guide's commands in an empty folder and returns what each printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bnn.data, "mnist", few_images)
    monkeypatch.setattr(sweep, "LATENCY_SECONDS", 0.002)

    def run(page, wanted=lambda words: True):
        for _, title, code in BLOCK.findall((GUIDES / page).read_text()):
            if title:
                Path(title).parent.mkdir(parents=True, exist_ok=True)
                Path(title).write_text(code)
        said = []
        for words in filter(wanted, commands_of(page)):
            name, *options = words
            if name == "figures":
                importlib.import_module(f"paper_figures.{options[0].replace('-', '_')}").main(options[1:])
                assert Path(options[options.index("--output") + 1]).stat().st_size > 100
                continue
            more = ADDED.get(" ".join(words[:2]), ADDED.get(name, ()))
            done = command(f"experiments.{name.replace('-', '_')}", *options, *more)
            assert done.status == 0, (words, done.err)
            said.append((words, done.out))
        return said

    return run


def test_reproduce_xnor_net(follow, tmp_path):
    said = follow("xnor_net.md", lambda words: words[0] != "sweep" and "results/xnor_ablations.json" not in words)
    entries = {entry["method"]: entry for entry in read_ledger(tmp_path / "lenet5.json")}
    assert {method: entry["published"]["value"] for method, entry in entries.items()} == {
        "xnor": 0.9923,
        "fp32": 0.9934,
    }
    assert all(entry["runs"][0]["parity_ok"] for entry in entries.values())
    (shown,) = [out for words, out in said if words[0] == "ledger"]
    assert "99.23" in shown and "short" in shown  # after one epoch of 200 images


@pytest.mark.slow
def test_reproduce_xnor_net_part_by_part(follow, tmp_path):
    follow("xnor_net.md", lambda words: words[0] == "sweep" or "results/xnor_ablations.json" in words)
    cells = [entry["method"] for entry in read_ledger(tmp_path / "results" / "xnor_ablations.json")]
    assert len(cells) == 6 and "alpha closed, K" in cells
    assert (tmp_path / "ablations.pdf").exists()


@pytest.mark.slow
def test_compare_a_method(follow, tmp_path):
    said = follow("compare.md")
    rates = (tmp_path / "results" / "rates.csv").read_text().splitlines()
    assert "validation_accuracy" in rates[0] and len(rates) == 1 + 9 * 2
    entries = {entry["method"]: entry for entry in read_ledger(tmp_path / "results" / "mine.json")}
    assert entries["mine"]["config"]["quantizer"]["input"]["clip"] == 1.5
    assert all(run["parity_ok"] and run["latency_us"] for entry in entries.values() for run in entry["runs"])
    (shown,) = [out for words, out in said if words[0] == "ledger"]
    assert "within chance" in shown
    assert "mine" in (tmp_path / "mine.html").read_text()


def test_read_a_benchmark(follow, trained, monkeypatch):
    monkeypatch.chdir(trained)
    said = follow("benchmark.md", lambda words: not any("suite=" in word for word in words))
    assert len(said) == 2
    assert "LeNet5 xnor, untrained" in said[0][1] and "DigitsCNN xnor" in said[1][1]
    for _, shown in said:
        assert all(column in shown for column in ("packed us", "FP32 us", "ratio of medians", "of best times"))


@pytest.mark.slow
def test_read_a_benchmark_of_suites(follow, tmp_path):
    said = follow("benchmark.md", lambda words: any("suite=" in word for word in words))
    names = [words[1].removeprefix("suite=") for words, _ in said]
    assert names == ["kernels", "networks", "widths", "network_widths", "costs"]
    assert all((tmp_path / "results" / f"{name}.json").exists() for name in names)
