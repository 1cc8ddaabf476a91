"""Post-training quantization of a trained run: 8 bits cost next to nothing, kernels predict as PyTorch does."""

import json
import shutil

import pytest


def test_a_trained_run_is_quantized_in_every_way(trained, tmp_path, monkeypatch, command):
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    options = ["bits=[8/8,3/4]", "observers=[min_max,mse]", "iterations=20", "methods=[bias,adaround,dynamic]"]
    done = command("experiments.post_training", "run=runs/default/fp32", *options, "output=found.json")
    assert done.status == 0, done.err
    found = json.loads((tmp_path / "found.json").read_text())
    (file,) = (tmp_path / "runs").rglob("fp32/*/seed0/result.json")
    assert found["accuracy_fp32"] == pytest.approx([json.loads(file.read_text())["accuracy"]["validation"]], abs=1e-6)
    rows = {(row["bits"], row["observer"], row["method"]): row for row in found["rows"]}
    expected = {(bits, observer, None) for bits in ("8/8", "3/4") for observer in ("min_max", "mse")}
    expected |= {(bits, "mse", method) for bits in ("8/8", "3/4") for method in ("bias", "dynamic")}
    assert set(rows) == expected | {("3/4", "mse", "adaround")}
    for row in rows.values():
        assert row["accuracy_packed"] == row["accuracy"]
        assert row["agreement_of_packed"] == [1]
    for (bits, _, _), row in rows.items():
        if bits == "8/8":
            assert abs(row["accuracy"][0] - found["accuracy_fp32"][0]) <= 0.01
            assert row["agreement_with_fp32"][0] >= 0.98
            assert row["payload_bytes"] > rows["3/4", "mse", None]["payload_bytes"]


@pytest.mark.parametrize(
    ("option", "words"),
    [("bits=[9/8]", "bits are pairs W/A"), ("methods=[gptq]", "methods are equalize"), ("observers=[kl]", "observer")],
)
def test_mistakes_in_options(trained, monkeypatch, command, option, words):
    monkeypatch.chdir(trained)
    done = command("experiments.post_training", "run=runs/default/fp32", option)
    assert (done.status, words in done.err) == (2, True)


def test_a_quantized_run_is_refused(trained, monkeypatch, command):
    monkeypatch.chdir(trained)
    done = command("experiments.post_training", "run=runs/default/xnor")
    assert (done.status, "is quantized already" in done.err) == (2, True)
