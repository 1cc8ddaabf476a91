"""The ledger: what is pooled, what is refused, what is said of published numbers and of differences between methods."""

import copy
import json
import shutil

import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy import stats

from experiments import cli
from experiments.ledger import compared, gap, not_yet_run, verdict
from experiments.ledger_entries import pooled
from experiments.lock import run_lock
from experiments.old_tables import entries_of_table
from experiments.run_records import measured
from experiments.seed_statistics import holm, mean_interval, paired
from paper_figures.ledger_file import ENTRY_FIELDS, LedgerError, check_ledger, read_ledger, run_rows

ACCURACIES = [0.91, 0.935, 0.92, 0.905]


def test_the_interval_is_students():
    low, high = mean_interval(ACCURACIES)
    mean, error = np.mean(ACCURACIES), stats.sem(ACCURACIES)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 3, mean, error))
    assert mean_interval([0.9]) is None


def test_the_paired_test_is_over_common_seeds():
    first, second = dict(enumerate(ACCURACIES)), {0: 0.90, 1: 0.93, 3: 0.88, 7: 0.1}
    test = paired(first, second)
    expected = stats.ttest_rel([0.91, 0.935, 0.905], [0.90, 0.93, 0.88])
    assert (test.seeds, test.p) == (3, pytest.approx(expected.pvalue))
    assert test.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert test.within_chance
    assert paired({0: 1.0}, {0: 0.5}).within_chance  # one seed says nothing of chance
    assert paired({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6}).p == 1
    assert paired({0: 0.75, 1: 0.5}, {0: 0.5, 1: 0.25}).p == 0.5  # two of two signs
    assert not paired({s: 0.9 + 0.001 * s for s in range(4)}, {s: 0.8 for s in range(4)}).within_chance
    with pytest.raises(ValueError, match="no seed in common"):
        paired({0: 1.0}, {1: 1.0})
    assert holm([0.01, 0.04, None, 0.03]) == [0.03, 0.06, None, 0.06]


@pytest.fixture
def runs(trained, tmp_path, monkeypatch):
    """A copy of the finished runs, as the current folder."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def result_of(runs, method):
    (file,) = runs.rglob(f"{method}/*/seed0/result.json")
    return file


def another_seed(runs, seed, **changes):
    """Write the result of another seed of xnor beside seed 0."""
    file = result_of(runs, "xnor")
    result = json.loads(file.read_text())
    result |= {"seed": seed, **changes}
    result["config"]["seed"] = seed
    folder = file.parent.parent / f"seed{seed}"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(result))
    config = OmegaConf.load(file.with_name("config.yaml"))
    config.seed = seed
    OmegaConf.save(config, folder / "config.yaml")
    return folder


def test_a_ledger_says_where_every_number_is_from(runs, command):
    first = json.loads(result_of(runs, "xnor").read_text())
    another_seed(runs, 1, accuracy={**first["accuracy"], "test": 0.25})
    done = command("experiments.collect", "output=ledger.json")
    assert done.status == 0, done.err
    entries = read_ledger(runs.parent / "ledger.json")
    (entry,) = [e for e in entries if e["method"] == "xnor"]
    values = [first["accuracy"]["test"], 0.25]
    assert (entry["seeds"], entry["status"], entry["weight_bits"], entry["activation_bits"]) == (
        [0, 1],
        "complete",
        "1",
        "1",
    )
    assert entry["mean"] == pytest.approx(np.mean(values), abs=1e-6)
    assert entry["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert entry["interval"] == pytest.approx(list(mean_interval(values)), abs=1e-6)
    assert (entry["data"], entry["test_examples"], entry["model"]) == ("digits", 400, "DigitsCNN")
    assert entry["config"]["epochs"] == 2 and "seed" not in entry["config"]
    run = entry["runs"][0]
    assert run["code"] == first["code"] and len(run["code"]["sources"]) == 12
    assert run["command"] == first["command"] and run["hardware"]["cpu"] and run["versions"]["torch"]
    assert str(runs.parent) not in (runs.parent / "ledger.json").read_text()
    listed = command("experiments.ledger", "source=ledger.json", "where={data:digits,weight_bits:1}")
    assert listed.status == 0, listed.err
    assert "xnor" in listed.out and "fp32" not in listed.out.partition("not yet run")[0]
    against = command("experiments.ledger", "source=ledger.json", "against=fp32")
    assert (against.status, "within chance" in against.out) == (0, True)
    wrong = command("experiments.ledger", "source=ledger.json", "where={date:digits,optimizer.lr:0.1}")
    assert (wrong.status, "no entry has a field date, optimizer.lr" in wrong.err) == (2, True)


def test_runs_that_have_not_ended_are_marked(runs, command):
    for seed in (1, 2, 3):
        (another_seed(runs, seed) / "result.json").unlink()
    folders = sorted(result_of(runs, "xnor").parent.parent.glob("seed*"))
    (folders[2] / "failed.json").write_text(json.dumps({"reason": "ValueError: torn"}))
    with run_lock(folders[1]):
        done = command("experiments.collect", "output=ledger.json")
    assert done.status == 0, done.err
    (entry,) = [e for e in read_ledger(runs.parent / "ledger.json") if e["method"] == "xnor"]
    found = {run["seed"]: (run["status"], run["reason"]) for run in entry["unfinished"]}
    assert found[1][0] == "running"
    assert found[2] == ("failed", "ValueError: torn")
    assert found[3] == ("stopped", "it has no result.json")
    assert (entry["status"], entry["seeds"]) == ("running", [0])
    assert "not finished: failed, ValueError: torn" in done.err


@pytest.mark.parametrize(
    ("changes", "words", "let"),
    [
        ({"code": {"commit": None, "sources": "another"}}, "sources of bnn", "code"),
        ({"versions": {"torch": "1.0", "bitplanes": "0.1.0"}}, "torch", "versions"),
        ({"data": {"name": "digits", "train": 7, "validation": 200, "test": 400}}, "train_examples", None),
    ],
)
def test_seeds_that_do_not_belong_together_are_refused(changes, words, let, runs, command):
    another_seed(runs, 1, **changes)
    done = command("experiments.collect", "output=ledger.json")
    assert done.status == 0
    assert "refused: " in done.err and words in done.err
    assert {e["method"] for e in read_ledger(runs.parent / "ledger.json")} == {"fp32"}
    if let:
        assert f"mixed=[{let}] lets it pass" in done.err
        assert command("experiments.collect", "output=ledger.json", f"mixed=[{let}]").status == 0
        assert {e["method"] for e in read_ledger(runs.parent / "ledger.json")} == {"fp32", "xnor"}
    else:
        assert "lets it pass" not in done.err
    assert command("experiments.collect", "mixed=[data]").status == 2
    shutil.rmtree(runs / "default" / "fp32")
    alone = command("experiments.collect")
    assert (alone.status, "no experiment has seeds that belong together" in alone.err) == (2, True)


def an_entry(values, published=None, metric="test_accuracy", **fields):
    """An entry as far as the judgements read it."""
    runs = [{"seed": seed, "value": value, "train_seconds": 1.0} for seed, value in enumerate(values)]
    number = published and {"metric": metric, "value": published, "source": "a paper"}
    names = {"data": "digits", "model": "M", "method": "m", "name": "n", "settings": {}, "test_examples": 10_000}
    return {**names, "metric": metric, "published": number, "command": "run it", **pooled(runs, []), **fields}


@pytest.mark.parametrize(
    ("entry", "expected", "difference"),
    [
        (an_entry([0.99, 0.98], 0.98), "reproduced", 0.005),
        (an_entry([0.9849, 0.9851], 0.985), "reproduced", 0),
        (an_entry([0.9846, 0.9846], 0.985), "reproduced", -0.0004),  # 98.5 to its printed digits
        (an_entry([0.98, 0.98], 0.982), "reproduced", -0.002),  # within chance of 10,000 images
        (an_entry([0.9, 0.91], 0.982), "short", -0.077),
        (an_entry([], 0.982), "not yet run", None),
        (an_entry([0.9]), "", None),
        (an_entry([2.0, 2.2], 2.2, "test_bits_per_character"), "reproduced", 0.1),  # fewer bits are better
        (an_entry([2.3, 2.5], 2.2, "test_bits_per_character"), "short", -0.2),
    ],
)
def test_what_is_said_of_a_published_number(entry, expected, difference):
    assert verdict(entry)[0] == expected
    assert gap(entry) == (None if difference is None else pytest.approx(difference, abs=1e-6))


def test_recipes_that_nobody_ran_come_with_their_command():
    rows = not_yet_run([])
    recipes = sorted((cli.CONFIGS / "experiment").glob("*.yaml"))
    with_numbers = [file.stem for file in recipes if "\npublished:" in file.read_text()]
    assert [row["command"] for row in rows] == [
        f"python -m experiments.train experiment={name}" for name in with_numbers
    ]
    (row,) = [row for row in rows if row["command"].endswith("xnor_lenet5_mnist")]
    have = an_entry([0.9], data="mnist", model="LeNet5", method="xnor") | {"published": row["published"]}
    assert len(not_yet_run([have])) == len(rows) - 1


def test_methods_are_compared_within_one_setting():
    base, better = an_entry([0.8, 0.81, 0.79], method="base"), an_entry([0.9, 0.912, 0.889], method="better")
    elsewhere, equal = an_entry([0.9], data="mnist"), an_entry([0.8, 0.805, 0.796], method="equal")
    found = compared([base, better, elsewhere, equal], "base")
    assert [entry["method"] for entry, _, _ in found] == ["better", "equal"]
    assert [test.difference for _, test, _ in found] == pytest.approx([0.1003, 0.0003], abs=1e-4)
    assert found[0][2] < 0.05 < found[1][2]
    assert found[0][2] == pytest.approx(2 * found[0][1].p)  # Holm, of two
    with pytest.raises(ValueError, match="no entry has the method 'x'; there are base, better"):
        compared([base, better], "x")


def test_language_models_are_measured_by_their_bits():
    result = {"accuracy": {"test": 0.5}, "bits_per_byte": {"test": 1.5, "validation": 1.6}}
    assert measured(result) == ("language modelling", "test_bits_per_byte", 1.5)


def test_old_tables_become_ledgers(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    row = {"command": "python -m experiments.train experiment=xnor_lenet5_mnist seed=0", "name": "lenet5_mnist"}
    row |= {"quantizer": "xnor", "label": "1/1", "seed": 0, "data": "mnist", "model": "LeNet5", "epochs": 60}
    row |= {"train_accuracy": 1.0, "validation_accuracy": 0.99, "test_accuracy": 0.98, "parameters": 7}
    row |= {"fp32_bytes": 28, "train_seconds": 1.0, "cpu": "c", "torch": "2", "finished": None}
    rows = [row, row | {"seed": 1, "test_accuracy": 0.99}, row | {"optimizer.lr": 0.1}]
    (tmp_path / "t.json").write_text(json.dumps({"command": "c", "rows": rows}))
    assert command("experiments.ledger", "move=t.json").status == 0
    entries = read_ledger(tmp_path / "t.json")
    assert [(e["seeds"], e["mean"]) for e in entries] == [([0, 1], 0.985), ([0], 0.98)]
    assert entries[0]["published"]["value"] == 0.9923  # of the recipe that its command names
    back = run_rows(entries)
    assert all(back[0][key] == value for key, value in row.items())
    assert back[2]["optimizer.lr"] == 0.1
    assert "a ledger already" in command("experiments.ledger", "move=t.json").out
    (tmp_path / "x.json").write_text('{"rows": [{"a": 1}]}')
    wrong = command("experiments.ledger", "move=x.json")
    assert (wrong.status, "no table that could be moved" in wrong.err) == (2, True)


def test_a_comparison_of_methods_becomes_entries():
    def row(method, accuracies, **more):
        runs = [
            {"seed": seed, "test_accuracy": value, "train_accuracy": 0.9, "diverged": value < 0.2, "findings": ["a: b"]}
            for seed, value in enumerate(accuracies)
        ]
        first = f"python -m experiments.train experiment=methods_mnist quantizer={method} seed=0"
        return {"method": method, "label": "1/1", "command": first, "runs": runs, **more}

    content = {
        "command": "python -m experiments.compare_methods",
        "data": {"name": "mnist", "train": 55000, "validation": 5000, "test": 10000},
        "model": "LeNet5",
        "budget": {"name": "methods_mnist", "epochs": 4},
        "rows": [row("xnor", [0.97, 0.98]), row("bnn", [0.1, 0.96], published=None, experiment="12345678")],
        "versions": {"torch": "2.0"},
        "hardware": {"cpu": "one"},
    }
    xnor, bnn = entries_of_table(content)
    check_ledger({"schema": "bitplanes ledger", "version": 1, "command": "x", "entries": [xnor, bnn]})
    assert (xnor["method"], xnor["mean"], xnor["std"]) == ("xnor", 0.975, pytest.approx(0.007071, abs=1e-6))
    assert [run["diverged"] for run in bnn["runs"]] == [True, False]
    assert [run["findings"] for run in xnor["runs"]] == [["a: b"], ["a: b"]]
    assert [run["command"].rpartition(" ")[2] for run in xnor["runs"]] == ["seed=0", "seed=1"]
    assert (xnor["test_examples"], xnor["config"], xnor["runs"][0]["finished"]) == (10000, None, None)


def a_ledger():
    (file, *_) = sorted((cli.CONFIGS.parent / "results").glob("lenet5*.json"))
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(schema="x"), "its schema is not"),
        (lambda c: c.update(version=2), "version 2"),
        (lambda c: c["entries"][0].pop("label"), "entry 0 has no label"),
        (lambda c: c["entries"][1].update(mean="high"), "entry 1: mean is 'high'"),
        (lambda c: c["entries"][0].update(mean=0.5), "the runs' is 0.99"),
        (lambda c: c["entries"][0].update(seeds=[1]), r"seeds are \[1\]"),
        (lambda c: c["entries"][0].update(status="failed"), "status is 'failed' with 0 unfinished"),
        (lambda c: c["entries"][0]["runs"][0].pop("code"), "a run has no code"),
        (lambda c: c["entries"][0]["runs"][0].update(file_bytes=0.5), "file_bytes is 0.5"),
    ],
)
def test_a_file_that_contradicts_itself_is_no_ledger(change, words):
    check_ledger(a_ledger())
    content = copy.deepcopy(a_ledger())
    change(content)
    with pytest.raises(LedgerError, match=words):
        check_ledger(content)


def test_every_table_of_accuracies_is_a_ledger():
    results = cli.CONFIGS.parent / "results"
    for name in ("lenet5_mnist", "digits_accuracy_vs_bits", "digits_stems"):
        assert all(set(ENTRY_FIELDS) <= set(entry) for entry in read_ledger(results / f"{name}.json"))
