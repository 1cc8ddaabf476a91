"""The comparison of methods: what it trains, that it goes on, and that nothing fails in silence."""

import json
import re

import pytest

from experiments import cli
from experiments.compare_methods import diverged, entries_of
from paper_figures.ledger_file import read_ledger

SMALL = (
    "overrides=['data=digits','model=digits_cnn','model.width=4','epochs=3','batch_size=100','trainer.accelerator=cpu']",
    "output=table.json",
)


@pytest.fixture
def compare(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: command("experiments.compare_methods", *SMALL, *arguments)


def test_a_comparison_goes_on_where_it_stopped(compare, tmp_path):
    first = compare("methods=[xnor,bop]", "seeds=[0]")
    assert first.status == 0, first.err
    results = sorted(tmp_path.glob("runs/methods_mnist/*/*/seed0/result.json"))
    assert [path.parents[2].name for path in results] == ["bop", "xnor"]
    before = [path.read_bytes() for path in results]
    second = compare("methods=[xnor,bop]", "seeds=[0,1]")
    assert second.status == 0
    assert [path.read_bytes() for path in results] == before
    entries = {entry["method"]: entry for entry in read_ledger(tmp_path / "table.json")}
    assert {method: entry["seeds"] for method, entry in entries.items()} == {"bop": [0, 1], "xnor": [0, 1]}
    means = [entry["mean"] for entry in entries.values()]
    assert means == sorted(means, reverse=True)
    for entry in entries.values():
        accuracy = [run["value"] for run in entry["runs"]]
        assert entry["std"] == pytest.approx(abs(accuracy[0] - accuracy[1]) / 2**0.5, abs=1e-6)
        assert entry["config"]["epochs"] == 3 and entry["status"] == "complete"
        assert all(run["diverged"] is (run["value"] < 0.2) for run in entry["runs"])
        assert all("seed=0" in run["command"] or "seed=1" in run["command"] for run in entry["runs"])
    assert "optimizer=bop" in entries["bop"]["command"]
    assert {entry["label"] for entry in entries.values()} == {"1/1", "1/1 Bop"}
    assert (tmp_path / "table.csv").read_text().count("\n") == 5
    third = compare("methods=[twn,xnor]", "seeds=[0]", "collect_only=true")
    assert third.status == 0
    xnor, twn = read_ledger(tmp_path / "table.json")
    assert (xnor["method"], xnor["seeds"], twn["method"], twn["status"]) == ("xnor", [0], "twn", "missing")
    assert "quantizer=twn" in twn["command"] and twn["mean"] is None


def test_a_method_that_fails_is_named_and_costs_no_other(compare, tmp_path, monkeypatch):
    from bnn.quantizers import TernaryWeight

    def broken(self, w):
        raise RuntimeError("torn")

    monkeypatch.setattr(TernaryWeight, "forward", broken)
    done = compare("methods=[twn,fp32]", "seeds=[0]")
    assert done.status == 1
    assert re.search("twn/[0-9a-f]{8}/seed0: RuntimeError", done.err)
    assert "torn" in done.err
    fp32, twn = read_ledger(tmp_path / "table.json")
    assert (fp32["method"], fp32["status"], twn["method"], twn["status"]) == ("fp32", "complete", "twn", "failed")
    assert twn["unfinished"][0]["reason"] == "RuntimeError: torn"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["methods=[xnorr]"], "there is no method xnorr; methods are"),
        (["collect_only=true", "methods=[xnor,twn]"], "no run under runs/methods_mnist is finished"),
        (["budgets=x"], "Did you mean budget?"),
    ],
)
def test_mistakes_get_one_message(arguments, words, compare):
    failed = compare(*arguments)
    assert failed.status == 2
    assert words in failed.err


def result(accuracy, *kinds):
    findings = [{"layer": "", "kind": kind, "text": kind} for kind in kinds]
    return {"accuracy": {"test": accuracy}, "config": {"model": {"num_classes": 10}}, "findings": findings}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (result(0.9), False),
        (result(0.19), True),
        (result(0.9, "not finite"), True),
        (result(0.9, "restless weights"), False),
    ],
)
def test_diverged(given, expected):
    assert diverged(given) == expected


def test_divergence_without_a_finding_fails(compare, tmp_path):
    assert compare("methods=[fp32]", "seeds=[0]").status == 0
    (file,) = tmp_path.glob("runs/methods_mnist/fp32/*/seed0/result.json")
    content = json.loads(file.read_text())
    for findings, status in (([], 1), ([{"layer": "conv2", "kind": "x", "text": "y"}], 0)):
        file.write_text(
            json.dumps(content | {"accuracy": {"train": 0, "validation": 0, "test": 0.1}, "findings": findings})
        )
        done = compare("methods=[fp32]", "seeds=[0]", "collect_only=true")
        assert (done.status, "diverged without a finding: fp32" in done.err) == (status, status == 1)


def test_every_quantizer_is_a_method():
    from hydra import compose, initialize_config_dir

    from experiments.compare_methods import methods

    with initialize_config_dir(str(cli.CONFIGS), **cli.VERSION_BASE):
        found = methods(compose("compare_methods"))
        assert set(found) == {file.stem for file in (cli.CONFIGS / "quantizer").glob("*.yaml")} | {
            "bop",
            "bop2",
            "parq",
            "proxquant",
            "binaryrelax",
        }
        entries, refused = entries_of(compose("compare_methods", ["folder=nowhere"]), {"xnor": found["xnor"]})
        assert ([entry["status"] for entry in entries], refused) == (["missing"], [])


def test_the_documents_table_is_that_of_the_result():
    text = (cli.CONFIGS.parent / "docs" / "training.md").read_text()
    for entry in read_ledger(cli.CONFIGS.parent / "results" / "methods_mnist.json"):
        assert entry["seeds"] == [0, 1, 2]
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{entry['method']}` | ")]
        failed = sum(run["diverged"] for run in entry["runs"])
        assert f" | {100 * entry['mean']:.2f} ± {100 * entry['std']:.2f} | {failed or ''}" in line
        assert all(run["findings"] for run in entry["runs"] if run["diverged"])
