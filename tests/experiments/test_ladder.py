"""The ladder: a trained run on every rung, its packed networks like PyTorch's, the libraries beside them."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

import bnn
from bnn.data import digits
from bnn.models import DigitsCNN
from experiments import cli, energy, ladder, sweep
from experiments.ladder import quantized_nothing
from experiments.ladder_measures import agreement, divergence
from experiments.ladder_rungs import RUNGS
from experiments.run_records import described

FAST = ("threads=[1]", "seconds=0.01", "least_calls=3", "memory=false", "observer=min_max")


# Of each kind of rung one; all of them take two minutes.
SOME = ["fp32", "fp16", "int8", "int8_dynamic", "lsq2", "bwn"]
ALL = [name for name, rung in RUNGS.items() if rung.prepared is None]


@pytest.fixture(scope="module", params=[SOME, pytest.param(ALL, marks=pytest.mark.slow)], ids=["some", "all"])
def found(request, trained, tmp_path_factory, module_command):
    """The result of a ladder on a small network, its folder, what was printed and the rungs that were asked for."""
    folder = tmp_path_factory.mktemp("ladder")
    shutil.copytree(trained / "runs", folder / "runs")
    engines = "engines=[packed,pytorch,onnxruntime,openvino]"
    fine = "fine_tuning=['epochs=1','trainer.enable_progress_bar=false']"
    options = ["run=runs/default/fp32", f"rungs=[{','.join(request.param)}]", fine, engines, *FAST]
    done = module_command("experiments.ladder", *options, "output=out/ladder.json", folder=folder)
    assert done.status == 0, done.err
    return json.loads((folder / "out" / "ladder.json").read_text()), folder, done.out, request.param


def test_every_rung_is_there_and_answers_like_pytorch(found):
    content, folder, _, rungs = found
    rows = {(row["rung"], row["engine"]): row for row in content["rows"]}
    assert {rung for rung, _ in rows} == set(rungs)
    (file,) = (folder / "runs").rglob("default/fp32/*/seed0/result.json")
    accuracy = json.loads(file.read_text())["accuracy"]["test"]
    assert rows["fp32", "pytorch"]["accuracy"] == pytest.approx([accuracy], abs=1e-6)
    assert rows["fp32", "pytorch"]["agreement_with_fp32"] == [1]
    for (_, engine), row in rows.items():
        if engine.startswith("packed"):
            assert row["agreement_with_pytorch"] == [1] and row["compared"] == content["inputs"]
    for rung in {"fp16", "bf16", "int8", "int8_dynamic"} & set(rungs):
        row = next(row for (name, engine), row in rows.items() if name == rung and engine.startswith("packed"))
        assert row["agreement_with_fp32"][0] >= 0.98
        assert 0 < row["kl_from_fp32"][0] < 0.01
    sizes = {rung: row["file_bytes"] for (rung, engine), row in rows.items() if engine.startswith("packed")}
    assert sizes["fp32"] > sizes["fp16"] > sizes["lsq2"] > sizes["bwn"]
    if "lsq4" in sizes:
        assert sizes["fp16"] == sizes["bf16"] > sizes["lsq4"] > sizes["lsq2"]
    there = [row for row in rows.values() if "failed" not in row]
    assert {row["integer_layers"] for row in there if row["bits"].endswith("/32")} == {0}
    assert not any(map(quantized_nothing, there))
    times = [one for row in there for one in row["latency"]]
    assert all(0 < one["p50_us"] <= one["p90_us"] and one["calls"] >= 3 for one in times)


def test_every_packed_rung_is_in_the_ledger(found):
    content, folder, _, rungs = found
    ledger = json.loads((folder / "out" / content["ledger"]).read_text())
    trained = [name for name, rung in RUNGS.items() if rung.quantizer and name in rungs]
    packed = [name for name, rung in RUNGS.items() if name in rungs and name != "fp32" and "packed" in rung.engines[0]]
    assert [entry["method"] for entry in ledger["entries"]] == ["base", *packed]
    for entry in ledger["entries"][1:]:
        (run,) = entry["runs"]
        (row,) = (row for row in content["rows"] if row["rung"] == entry["method"] and row["engine"][:6] == "packed")
        assert [run["value"]] == [run["test_accuracy_packed"]] == pytest.approx(row["accuracy"], abs=1e-6)
        assert (run["epochs"] > 0) == (entry["method"] in trained)
        if entry["method"] not in trained:
            assert run["file_bytes"] == row["file_bytes"]
            assert run["same_predictions"] == run["test_images"] == content["inputs"]
            assert [entry["weight_bits"], entry["activation_bits"]] == row["bits"].split("/")
            assert entry["command"] == content["command"]
    assert len({entry["experiment"] for entry in ledger["entries"]}) == len(ledger["entries"])


@pytest.mark.parametrize("name", ["onnxruntime int8", "onnxruntime int8 dynamic", "openvino int8"])
def test_libraries_stand_beside_or_say_what_to_install(found, name):
    (row,) = (row for row in found[0]["rows"] if row["engine"] == name)
    libraries = ("openvino", "nncf") if name.startswith("openvino") else ("onnx", "onnxruntime")
    if any(importlib.util.find_spec(library) is None for library in libraries):
        assert "pip install 'bitplanes[peers]'" in row["failed"]
        assert row["failed"] in found[2]
        return
    assert row["integer_layers"] == row["layers"] > 0
    assert row["agreement_with_fp32"][0] >= 0.97


def test_a_network_of_random_weights(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    rungs = "rungs=[int4,int8_qat_torchao,xnor]"
    options = ("input_shape=[1,8,8]", "model.width=4", "batch_size=16", "images=16", rungs, *FAST)
    done = command(
        "experiments.ladder", "model=digits_cnn", "engines=[packed]", "train=false", *options, "output=a.json"
    )
    assert done.status == 0, done.err
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [row["rung"] for row in rows] == ["fp32", "int4", "xnor"]
    assert all(row["accuracy"] == [None] and row["agreement_with_pytorch"] == [1] for row in rows)


def test_packed_networks_are_compared_on_the_inputs_that_are_asked_for():
    batches = list(np.random.default_rng(0).standard_normal((20, 3, 224, 224), np.float32).reshape(5, 4, 3, 224, 224))
    subject = SimpleNamespace(inputs=batches)
    for asked, count in ((None, 20), (1, 1), (4, 4), (5, 5), (99, 20)):
        found = ladder.compared_inputs(subject, asked)
        assert np.array_equal(np.concatenate(found), np.concatenate(batches)[:count])
    # A stride of 0: many large images in little memory.
    many = np.broadcast_to(batches[0][:1], (500, 3, 224, 224))
    assert sum(map(len, ladder.compared_inputs(SimpleNamespace(inputs=[many, many]), None))) == 2**25 // (3 * 224 * 224)


def test_a_network_that_brings_its_weights(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    network = DigitsCNN(width=4)
    data = digits()
    bnn.calibration.reestimate_batch_norm(network, [x for x, _ in data.batches("train", 200)])
    torch.save({"state_dict": network.eval().state_dict()}, "weights.pt")
    options = ("model=digits_cnn", "model.width=4", "data=digits", "engines=[packed,pytorch]", "rungs=[int8]", *FAST)
    done = command("experiments.ladder", "weights=weights.pt", *options, "output=a.json")
    assert done.status == 0, done.err
    content = json.loads((tmp_path / "a.json").read_text())
    with torch.inference_mode():
        right = torch.cat([network(x).argmax(1) == labels for x, labels in data.batches("test", 100)])
    rows = {(row["rung"], row["engine"]): row for row in content["rows"]}
    assert set(rows) == {("fp32", "pytorch"), ("fp32", "packed"), ("int8", "packed")}
    assert rows["fp32", "packed"]["accuracy"] == pytest.approx([right.double().mean().item()], abs=1e-6)
    assert (content["data"], content["weights"], content["split"]) == ("digits", "weights.pt", "test")
    assert content["inputs"] == len(right)
    torch.save({"conv1.weight": torch.zeros(1)}, "other.pt")
    for file, words in (("other.pt", "does not fit DigitsCNN"), ("none.pt", "is no file"), ("a.json", "no weights")):
        done = command("experiments.ladder", f"weights={file}", *options)
        assert (done.status, words in done.err) == (2, True), done.err
    done = command("experiments.ladder", "model=lenet5", *options[2:])
    assert (done.status, "does not take digits's (1, 8, 8)" in done.err) == (2, True), done.err
    done = command("experiments.ladder", "+model.num_classes=7", *options)
    assert (done.status, "has 10 classes" in done.err) == (2, True), done.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "name one network"),
        (("run=runs", "data=digits"), "data goes with model=NAME"),
        (("model=lenet5", "weights=a.pt"), "takes data=NAME beside it"),
        (("model=lenet5", "data=mnist", "rungs=[xnor]"), "the rung xnor is trained further"),
        (("model=lenet5", "run=runs"), "got run, model"),
        (("model=lenet5", "rungs=[int3]"), "there is no rung 'int3'"),
        (("model=lenet5", "engines=[tvm]"), "engines are packed"),
    ],
)
def test_mistakes_in_options(options, words, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    done = command("experiments.ladder", *options)
    assert (done.status, words in done.err) == (2, True)


def test_a_rung_takes_nothing_of_the_quantizer_before_it(tmp_path, monkeypatch):
    """A run in FP32 may come from a grid of widths, whose options take keys away that another quantizer lacks."""
    monkeypatch.chdir(tmp_path)
    grid = ["quantizer=lsq2", "quantizer.weight._target_=bnn.quantizers.FullPrecision", "~quantizer.weight.bits"]
    monkeypatch.setattr(ladder, "run_jobs", lambda jobs, report: [])
    with initialize_config_dir(str(cli.CONFIGS), **cli.VERSION_BASE):
        job = SimpleNamespace(seed=4, config=compose("train", ["experiment=methods_mnist"]))
        base = ([job], ["experiment=methods_mnist", *grid, "epochs=2"], Path("runs/fp32"))
        monkeypatch.setattr(ladder, "base_jobs", lambda config: base)
        config = compose("ladder", ["run=runs/fp32", "fine_tuning=['epochs=5']", "observer=entropy"])
        _, jobs = ladder.jobs_of(config, [RUNGS["xnor"], RUNGS["lsq4"]])
    found = {job.cell: job.config for job in jobs}
    assert [job.seed for job in jobs] == [4, 4]
    assert {name: (one.quantizer.name, one.epochs, one.start.observer) for name, one in found.items()} == {
        "xnor": ("xnor", 5, None), "lsq4": ("lsq4", 5, "entropy"),
    }  # fmt: skip


def test_a_rung_that_a_library_trains(tmp_path, monkeypatch):
    """It is a run of its own model, which no packed network is made of, and is trained where the library is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ladder, "run_jobs", lambda jobs, report: [])
    monkeypatch.setattr("experiments.engines.missing", lambda engine: None)
    options = ["model=lenet5", "data=mnist", "+model.num_classes=12"]
    with initialize_config_dir(str(cli.CONFIGS), **cli.VERSION_BASE):
        job = SimpleNamespace(seed=0, config=compose("train", options[:2]))
        monkeypatch.setattr(ladder, "base_jobs", lambda config: ([job], options, Path("runs/fp32")))
        found = {}
        for engines in ("packed,torchao", "packed"):
            config = compose("ladder", ["run=runs/fp32", f"engines=[{engines}]", "fine_tuning=['epochs=5']"])
            _, jobs = ladder.jobs_of(config, [RUNGS["int8_qat"], RUNGS["int8_qat_torchao"]])
            found[engines] = {job.cell: job for job in jobs}
    assert list(found["packed"]) == ["int8_qat"]
    ours, theirs = found["packed,torchao"].values()
    assert (ours.convert, theirs.convert) == (True, False)
    model, quantizer = theirs.config.model, theirs.config.quantizer
    assert model._target_ == "experiments.engines.torchao_qat.Prepared"
    assert (model.of, model.num_classes) == ("bnn.models.LeNet5", 12)
    assert (quantizer.name, quantizer.weight._target_) == ("int8_qat_torchao", "bnn.quantizers.FullPrecision")
    assert (theirs.config.epochs, theirs.config.start.run, theirs.config.start.observer) == (5, "runs/fp32", None)
    record = described(theirs.same)
    assert (record["model"], record["weight_bits"], record["activation_bits"]) == ("LeNet5", "8", "8")


def test_a_rung_whose_library_is_not_installed_is_not_trained(trained, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "runs", "runs")
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *of: None if name == "torchao" else real(name, *of))
    options = ("run=runs/default/fp32", "rungs=[int8_qat_torchao]", "engines=[pytorch,torchao]", "name=none", *FAST)
    done = command("experiments.ladder", *options, "output=a.json")
    assert done.status == 0, done.err
    (_, row) = json.loads(Path("a.json").read_text())["rows"]
    assert (row["rung"], row["engine"]) == ("int8_qat_torchao", "torchao int8 trained")
    assert row["failed"] == "torchao not installed: pip install 'bitplanes[oracles]'" and row["failed"] in done.out
    assert not Path("runs/none").exists()


@pytest.mark.slow
def test_a_network_that_torchao_trained_stands_on_its_rung(trained, tmp_path, monkeypatch, command):
    pytest.importorskip("torchao")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "runs", "runs")
    fine = "fine_tuning=['epochs=2','trainer.enable_progress_bar=false']"
    options = ("run=runs/default/fp32", "rungs=[int8_qat_torchao]", "engines=[pytorch,torchao]", fine, *FAST)
    done = command("experiments.ladder", *options, "output=a.json")
    assert done.status == 0, done.err
    exact, row = json.loads(Path("a.json").read_text())["rows"]
    assert "failed" not in row, row
    # Of so few channels Inductor leaves one layer in floats, of the rung int8 too.
    assert (row["layers"], row["integer_layers"], len(row["latency"])) == (5, 4, 1)
    (result,) = (json.loads(path.read_text()) for path in Path("runs/ladder").rglob("result.json"))
    assert row["accuracy"] == pytest.approx([result["accuracy"]["test"]], abs=0.01)
    assert row["accuracy"][0] > exact["accuracy"][0] - 0.05
    (entry,) = json.loads(Path("a_ledger.json").read_text())["entries"][1:]
    assert (entry["method"], entry["model"]) == ("int8_qat_torchao", "DigitsCNN")
    assert "test_accuracy_packed" not in entry["runs"][0]


@pytest.mark.parametrize(("model", "signed"), [("lenet5", True), ("resnet8", False)])
def test_a_rung_is_unsigned_where_it_takes_the_place_of_a_relu(model, signed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ladder, "run_jobs", lambda jobs, report: [])
    with initialize_config_dir(str(cli.CONFIGS), **cli.VERSION_BASE):
        options = [f"model={model}"]
        job = SimpleNamespace(seed=0, config=compose("train", options))
        monkeypatch.setattr(ladder, "base_jobs", lambda config: ([job], options, Path("runs/fp32")))
        _, jobs = ladder.jobs_of(compose("ladder", ["run=runs/fp32"]), [RUNGS[n] for n in ("int8_qat", "lsq4", "lsq2")])
    assert [job.config.quantizer.input.get("signed") for job in jobs] == [None, signed, signed]


def test_a_training_that_fails_is_a_row_and_stops_no_other(trained, tmp_path, monkeypatch, command):
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    options = ("run=runs/default/fp32", "rungs=[lsq2,bwn]", "engines=[packed,pytorch]", *FAST)
    real = sweep.run_jobs

    def but_one(jobs, report):
        return real([job for job in jobs if job.cell != "lsq2"], report)

    monkeypatch.setattr(ladder, "run_jobs", but_one)
    fine = "fine_tuning=['epochs=1','trainer.enable_progress_bar=false']"
    done = command("experiments.ladder", *options, fine, "name=failing", "output=failing.json")
    assert done.status == 2 and "of the trainings failed" in done.err, done.err
    rows = {row["rung"]: row for row in json.loads(Path("failing.json").read_text())["rows"]}
    assert "has not ended: python -m experiments.train" in rows["lsq2"]["failed"]
    assert rows["bwn"]["agreement_with_pytorch"] == [1] and "failed" not in rows["fp32"]


def test_libraries_get_layers_that_they_know():
    import torch
    from torch import nn

    from bnn.layers.base import QuantLayer
    from bnn.models import ResNet20
    from bnn.quantizers import FullPrecision
    from experiments.ladder_rungs import plain

    torch.manual_seed(0)
    network = ResNet20(weight_quantizer=FullPrecision, input_quantizer=FullPrecision).eval()
    twin, x = plain(network), torch.randn(2, 3, 32, 32)
    assert not any(isinstance(layer, QuantLayer) for layer in twin.modules())
    assert sum(type(layer) in (nn.Conv2d, nn.Linear) for layer in twin.modules()) == 20
    assert any(isinstance(layer, QuantLayer) for layer in network.modules())
    torch.testing.assert_close(twin(x), network(x))


def test_how_answers_are_compared():
    scipy_stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, 20, 5))
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (one, other))
    assert divergence(one, other) == pytest.approx(scipy_stats.entropy(p, q, axis=1).mean())
    assert divergence(one, one + 1000) == pytest.approx(0, abs=1e-12)
    assert agreement(one, other) == np.mean(p.argmax(1) == q.argmax(1))


def test_energy_of_packages_alone_is_counted_also_past_the_end(tmp_path, monkeypatch):
    for zone, name, count in (("intel-rapl:0", "package-0", 990), ("intel-rapl:0:0", "core", 5)):
        (tmp_path / zone).mkdir()
        for file, text in (("name", name), ("energy_uj", str(count)), ("max_energy_range_uj", "1000")):
            (tmp_path / zone / file).write_text(text + "\n")
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    file = tmp_path / "intel-rapl:0" / "energy_uj"
    assert energy.microjoules_a_call(lambda: file.write_text("30"), 0) == 40
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "absent")
    assert energy.microjoules_a_call(lambda: None, 0) is None
