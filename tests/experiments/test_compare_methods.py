"""The comparison of methods: what it trains, that it goes on, and that nothing fails in silence."""

import json
import re

import pytest

from experiments import cli
from experiments.compare_methods import diverged, results_of

SMALL = (
    "overrides=['data=digits','model=digits_cnn','model.width=4','epochs=4','batch_size=100','trainer.accelerator=cpu']",
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
    table = json.loads((tmp_path / "table.json").read_text())
    assert {row["method"]: row["seeds"] for row in table["rows"]} == {"bop": 2, "xnor": 2}
    for row in table["rows"]:
        accuracy = [run["test_accuracy"] for run in row["runs"]]
        assert row["mean"] == pytest.approx(sum(accuracy) / 2, abs=1e-6)
        assert row["std"] == pytest.approx(abs(accuracy[0] - accuracy[1]) / 2**0.5, abs=1e-6)
    bop = next(row for row in table["rows"] if row["method"] == "bop")
    assert "optimizer=bop" in bop["command"]
    assert {row["label"] for row in table["rows"]} == {"1/1", "1/1 Bop"}
    assert table["budget"]["epochs"] == 4
    assert table["missing"] == []
    third = compare("methods=[twn,xnor]", "seeds=[0]", "collect_only=true")
    assert third.status == 0
    assert json.loads((tmp_path / "table.json").read_text())["missing"] == ["twn"]


def test_a_method_that_fails_is_named_and_costs_no_other(compare, tmp_path, monkeypatch):
    from bnn.quantizers import TernaryWeight

    def broken(self, w):
        raise RuntimeError("torn")

    monkeypatch.setattr(TernaryWeight, "forward", broken)
    done = compare("methods=[twn,fp32]", "seeds=[0]")
    assert done.status == 1
    assert re.search("twn/[0-9a-f]{8}/seed0: RuntimeError", done.err)
    assert "torn" in done.err
    assert [row["method"] for row in json.loads((tmp_path / "table.json").read_text())["rows"]] == ["fp32"]


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

    with initialize_config_dir(str(cli.CONFIGS), version_base="1.3"):
        found = methods(compose("compare_methods"))
        assert set(found) == {file.stem for file in (cli.CONFIGS / "quantizer").glob("*.yaml")} | {
            "bop",
            "bop2",
            "parq",
            "proxquant",
            "binaryrelax",
        }
        assert results_of(compose("compare_methods", ["folder=nowhere"]), "xnor") == []


def test_the_documents_table_is_that_of_the_result():
    text = (cli.CONFIGS.parent / "docs" / "training.md").read_text()
    content = json.loads((cli.CONFIGS.parent / "results" / "methods_mnist.json").read_text())
    for row in content["rows"]:
        assert row["seeds"] == 3
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{row['method']}` | ")]
        assert f" | {100 * row['mean']:.2f} ± {100 * row['std']:.2f} | {row['diverged'] or ''}" in line
        assert all(run["findings"] for run in row["runs"] if run["diverged"])
