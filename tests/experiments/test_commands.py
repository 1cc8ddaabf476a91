"""The commands from the outside: train, convert, benchmark, collect and the figure, and mistakes that users make."""

import csv
import json
import shutil

import bnn_kernels as bk
import numpy as np
import pytest
from conftest import TINY
from omegaconf import OmegaConf

from bnn.data.digits import digits
from paper_figures.ledger_file import read_ledger, run_rows

FAST = ("batch_sizes=[1]", "threads=[1]", "seconds=0.02", "own_layers=true", "layers=[]")
# The command in a result leaves out what only says how loudly it ran.
REPEATED = [text for text in TINY if "progress" not in text]


def read(path):
    return json.loads(path.read_text())


def run_of(runs, quantizer):
    """The folder of the one run of a quantizer: its seed below its experiment."""
    (folder,) = runs.glob(f"{quantizer}/*/seed0")
    return folder


@pytest.fixture
def runs(trained, tmp_path, monkeypatch):
    """A copy of the finished runs, as the current folder."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "default"


def test_an_int8_stem_is_trained_on_pixels_of_the_data_and_packed_for_them(tmp_path, monkeypatch, command):
    """model.stem=int8 alone: statistics of the data in the network, crops as pixels, a file that takes uint8."""
    monkeypatch.chdir(tmp_path)
    done = command("experiments.train", "model.stem=int8", "quantizer=xnor", "augment=crop", *TINY)
    assert done.status == 0, done.err
    (folder,) = (tmp_path / "runs").glob("default/xnor/*/seed0")
    done = command("experiments.convert", f"run={folder}", "parity=50")
    assert done.status == 0, done.out + done.err
    packed = bk.load(folder / "packed.safetensors")
    images, labels = digits().test.images.numpy(), digits().test.labels.numpy()
    assert packed.input_dtypes == ["uint8"]
    found = read(folder / "conversion.json")
    assert found["same_predictions"] == 400
    assert (packed(images).argmax(1) == labels).mean() == pytest.approx(found["test_accuracy_packed"], abs=1e-6)
    assert packed.steps[0].attrs["zero_points"] == [round(64 * 16 * float(digits().mean))]
    done = command("experiments.benchmark", "suite=network", f"run={folder}", *FAST)
    assert done.status == 0, done.err


# -- train ------------------------------------------------------------------------------------------------------------


def test_a_sweep_leaves_one_folder_a_run(runs):
    for quantizer, label in (("xnor", "1/1"), ("fp32", "32/32")):
        folder = run_of(runs, quantizer)
        result = read(folder / "result.json")
        assert (result["quantizer"], result["label"], result["seed"], result["epochs"]) == (quantizer, label, 0, 2)
        assert set(result["accuracy"]) == {"train", "validation", "test"}
        assert all(0 <= value <= 1 for value in result["accuracy"].values())
        assert (result["data"]["train"], result["data"]["test"]) == (1197, 400)
        assert result["versions"]["torch"]
        assert result["hardware"]["cpu"]
        assert result["config"]["epochs"] == 2
        assert result["command"] == f"python -m experiments.train quantizer={quantizer} " + " ".join(REPEATED)
        assert OmegaConf.load(folder / "config.yaml").quantizer.name == quantizer
        with (folder / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["epoch"] for row in rows] == ["0", "1"]
        assert (folder / "checkpoints" / "last.ckpt").exists()
        assert all({"layer", "kind", "text"} == set(finding) for finding in result["findings"])
    seen = read(run_of(runs, "xnor") / "doctor.json")
    assert seen["steps"] == [0]
    assert (seen["quantizer"], set(seen["layers"])) == ("xnor", {"conv2", "conv3", "linear4"})
    assert not (run_of(runs, "fp32") / "doctor.json").exists()
    packed, plain = (read(run_of(runs, q) / "result.json") for q in ("xnor", "fp32"))
    assert packed["bops"] < plain["bops"] / 10
    assert packed["bytes"] < plain["bytes"]
    assert sorted(p.name for p in runs.parent.parent.iterdir()) == ["runs"]


def test_a_finished_run_is_not_run_again(runs, command):
    before = (run_of(runs, "xnor") / "result.json").read_bytes()
    done = command("experiments.train", "quantizer=xnor", *TINY)
    assert (done.status, "already finished" in done.out) == (0, True)
    assert (run_of(runs, "xnor") / "result.json").read_bytes() == before


def test_a_run_that_lost_its_result_writes_it_again(runs, command):
    folder = run_of(runs, "xnor")
    before = read(folder / "result.json")
    (folder / "result.json").unlink()
    assert command("experiments.train", "quantizer=xnor", *TINY).status == 0
    after = read(folder / "result.json")
    assert (after["accuracy"], after["epochs"]) == (before["accuracy"], 2)


def test_another_config_does_not_overwrite_a_run(runs, command):
    folder = run_of(runs, "xnor")
    before = (folder / "result.json").read_bytes()
    for option, words in (("epochs=3", "epochs is 2 there and 3 here"), ("seed=1", "seed is 0 there and 1 here")):
        failed = command("experiments.train", "quantizer=xnor", *TINY, option, f"run_dir={folder}")
        assert failed.status == 2
        assert f"another config ({words}" in failed.err
        assert "run_dir=" in failed.err
    assert (folder / "result.json").read_bytes() == before


def test_an_interrupted_run_goes_on_to_the_same_result(tmp_path, monkeypatch, command):
    from bnn.training import Classifier

    monkeypatch.chdir(tmp_path)
    arguments = ("quantizer=xnor", *TINY, "epochs=3", "batch_size=300")
    assert command("experiments.train", *arguments, "run_dir=whole").status == 0

    def stop(self):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        original(self)

    original = Classifier.on_train_epoch_start
    monkeypatch.setattr(Classifier, "on_train_epoch_start", stop)
    stopped = command("experiments.train", *arguments, "run_dir=parts")
    assert stopped.status == 130
    assert "goes on from the last checkpoint" in stopped.err
    assert not (tmp_path / "parts" / "result.json").exists()
    assert (tmp_path / "parts" / "checkpoints" / "last.ckpt").exists()
    assert len((tmp_path / "parts" / "metrics.csv").read_text().splitlines()) == 2
    monkeypatch.setattr(Classifier, "on_train_epoch_start", original)
    assert command("experiments.train", *arguments, "run_dir=parts").status == 0
    whole, parts = (read(tmp_path / name / "result.json") for name in ("whole", "parts"))
    assert parts["accuracy"] == whole["accuracy"]
    assert (tmp_path / "parts" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["epoch=3"], ["no option 'epoch'", "Did you mean epochs?", "batch_size"]),
        (["optimizer.learning_rate=3"], ["no option 'optimizer.learning_rate'", "optimizer.lr"]),
        (["quantizer=xnorr"], ["xnorr", "xnor", "dorefa2"]),
        (["experiment=nothing"], ["nothing", "xnor_lenet5_mnist"]),
        (["data=mnist", "data.root=no/such/folder"], ["data.root=no/such/folder is no folder"]),
        (["epochs=0"], ["epochs must be at least 1"]),
        (["batch_size=0"], ["batch_size must be at least 1"]),
        (["seed"], ["seed"]),
        (["model=lenet5", "epochs=1"], ["lenet5|LeNet5"]),
    ],
)
def test_mistakes_get_one_message(arguments, words, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    failed = command("experiments.train", "trainer.enable_progress_bar=false", *arguments)
    assert failed.status == 2
    assert "Traceback" not in failed.err
    for word in words:
        assert any(part in failed.err for part in word.split("|"))
    assert not list(tmp_path.rglob("result.json"))


def test_a_run_depends_on_its_seed_alone(runs, command):
    """Trained alone or second in a sweep, with other random numbers drawn before: the same result."""
    import torch

    torch.rand(7)
    expected = {q: read(run_of(runs, q) / "result.json")["accuracy"] for q in ("fp32", "xnor")}
    assert command("experiments.train", "quantizer=fp32", *TINY, "run_dir=again").status == 0
    again = read(runs.parent.parent / "again" / "result.json")
    assert again["accuracy"] == expected["fp32"]
    assert command("experiments.train", "quantizer=fp32", *TINY, "seed=1", "run_dir=other").status == 0
    curves = [(runs.parent.parent / name / "metrics.csv").read_text() for name in ("again", "other")]
    assert curves[0] == (run_of(runs, "fp32") / "metrics.csv").read_text() != curves[1]


def test_a_mistake_does_not_take_the_folder(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    assert command("experiments.train", "quantizer=xnor", *TINY, "epochs=0").status == 2
    assert command("experiments.train", "quantizer=xnor", *TINY, "epochs=1").status == 0


# -- convert ----------------------------------------------------------------------------------------------------------


def test_convert_writes_a_file_that_answers_the_same(runs, command):
    folder = run_of(runs, "xnor")
    done = command("experiments.convert", f"run={folder}", "parity=50")
    assert done.status == 0, done.err
    assert "parity holds" in done.out
    conversion = read(folder / "conversion.json")
    assert conversion["same_predictions"] == conversion["test_images"] == 400
    assert conversion["test_accuracy_packed"] == read(folder / "result.json")["accuracy"]["test"]
    assert conversion["parity"]["inputs"] == 50
    assert conversion["file_bytes"] == (folder / "packed.safetensors").stat().st_size
    model = bk.load(folder / "packed.safetensors")
    assert model.info["quantizer"] == "xnor"
    assert model(np.zeros((3, 1, 8, 8), np.float32)).shape == (3, 10)


def test_convert_fails_aloud_when_answers_differ(runs, command, monkeypatch):
    from bnn_kernels.model.packed_model import PackedModel

    right = PackedModel.__call__
    monkeypatch.setattr(PackedModel, "__call__", lambda self, x: -right(self, x))
    failed = command("experiments.convert", f"run={runs / 'xnor' / 'seed0'}", "parity=50")
    assert failed.status == 1
    assert "does not answer like the trained one" in failed.err
    tolerant = command("experiments.convert", f"run={runs / 'xnor' / 'seed0'}", "parity=50", "tolerance=1.0")
    assert tolerant.status == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "run"),
        (["run=nothing"], "nothing is no run"),
        (["run=runs/default/xnor/seed0", "data_root=x"], "root"),
        (["run=runs/default/xnor/seed0", "output=no/folder/file"], "no/folder"),
    ],
)
def test_convert_refuses(arguments, words, runs, command):
    failed = command("experiments.convert", *arguments)
    assert failed.status == 2
    assert words in failed.err
    assert "Traceback" not in failed.err


def test_convert_refuses_a_run_without_weights(runs, command):
    (run_of(runs, "xnor") / "checkpoints" / "last.ckpt").unlink()
    failed = command("experiments.convert", f"run={runs / 'xnor' / 'seed0'}")
    assert failed.status == 2
    assert "holds no checkpoints" in failed.err


# -- benchmark, collect, figure ---------------------------------------------------------------------------------------


def test_benchmark_writes_ratios(runs, command, monkeypatch):
    monkeypatch.chdir(runs.parent.parent)
    arguments = ["batch_sizes=[1,3]", "threads=[1]", "seconds=0.02", "layers=[[16,8,6,3]]", "output=times.json"]
    done = command("experiments.benchmark", "run=runs/default/xnor/seed0", *arguments)
    assert done.status == 0, done.err
    times = read(runs.parent.parent / "times.json")
    whole = [row["batch"] for row in times["networks"] if ":" not in row["name"]]
    assert whole == [1, 3]
    layers = [row["name"].split(": ")[1] for row in times["networks"] if ":" in row["name"] and row["batch"] == 3]
    assert layers == ["conv1 (float_conv)", "conv2 (binary_conv)", "conv3 (binary_conv)", "linear4 (binary_linear)",
                      "linear5 (float_linear)"]  # fmt: skip
    assert times["layers"][0]["name"] == "conv 16->8 6x6 3x3"
    for row in times["networks"] + times["layers"]:
        assert row["packed_us"]["best"] <= row["packed_us"]["median"]
        assert row["ratio"]["median"] == pytest.approx(row["fp32_us"]["median"] / row["packed_us"]["median"], rel=0.05)
    assert str(runs.parent.parent) not in (runs.parent.parent / "times.json").read_text()


def test_benchmark_times_nothing_that_is_wrong(runs, command, monkeypatch):
    monkeypatch.setattr(bk.PackedConv2d, "__call__", lambda self, x: np.zeros((1, 8, 6, 6), np.int32))
    with pytest.raises(RuntimeError, match="wrong: nothing to time"):
        command("experiments.benchmark", "batch_sizes=[]", "threads=[1]", "seconds=0.02", "layers=[[16,8,6,3]]")


def test_collect_and_figure(runs, command, monkeypatch):
    monkeypatch.chdir(runs.parent.parent)
    assert command("experiments.convert", f"run={runs / 'xnor' / 'seed0'}", "parity=10").status == 0
    done = command("experiments.collect", "output=table.json")
    assert done.status == 0, done.err
    assert "1/1" in done.out
    rows = run_rows(read_ledger(runs.parent.parent / "table.json"))
    assert sorted(row["quantizer"] for row in rows) == ["fp32", "xnor"]
    with (runs.parent.parent / "table.csv").open() as file:
        table = {row["quantizer"]: row for row in csv.DictReader(file)}
    assert float(table["xnor"]["test_accuracy"]) == next(r["test_accuracy"] for r in rows if r["quantizer"] == "xnor")
    assert table["fp32"]["file_bytes"] == ""
    for name, begins in (("figure.png", b"\x89PNG"), ("figure.svg", b"<?xml"), ("figure.pdf", b"%PDF")):
        done = command("paper_figures.accuracy_vs_bits", "--results", "table.json", "--output", name)
        assert done.status == 0, done.err
        first = (runs.parent.parent / name).read_bytes()
        assert first.startswith(begins)
        command("paper_figures.accuracy_vs_bits", "--results", "table.json", "--output", name)
        assert (runs.parent.parent / name).read_bytes() == first


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("experiments.collect", ["folder=nothing"], "nothing is no folder"),
        ("experiments.collect", ["folder=empty"], "no finished run under empty"),
        ("paper_figures.accuracy_vs_bits", ["--results", "none.json"], "none.json is missing"),
    ],
)
def test_missing_results_are_named(module, arguments, words, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    failed = command(module, *arguments)
    assert failed.status != 0
    assert words in f"{failed.err}{failed.status}"


def test_collect_names_a_result_of_another_version(runs, command):
    result = run_of(runs, "xnor") / "result.json"
    result.write_text('{"name": "x"}')
    failed = command("experiments.collect", f"folder={runs}")
    assert failed.status == 2
    assert "another version" in failed.err
