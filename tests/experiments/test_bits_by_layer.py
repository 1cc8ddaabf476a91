"""Bits by layer: what is searched, trained and written, from a recipe or from runs, and that nothing is done twice."""

import shutil

import pytest
from conftest import TINY

from experiments import bits_by_layer, layer_costs, sweep
from experiments.layer_costs import Choice, cost_of, read_costs
from experiments.layer_plan import default_budgets, found_widths
from experiments.results import read_json
from experiments.seed_statistics import holm, paired
from paper_figures.ledger_file import read_ledger

COMMAND = ("experiments.bits_by_layer", "bits=[1,8]", "batches=1", "batch_size=64")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder, and short timings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(layer_costs, "SECONDS", 0.005)
    monkeypatch.setattr(sweep, "LATENCY_SECONDS", 0.005)
    return tmp_path


def costs_of(*prices):
    """Two layers of these bytes a bit, that lose more with fewer bits, the first more."""
    return {
        name: {bits: Choice(price * bits, ((8 - bits) * loss,), float(price * (bits - 8))) for bits in (1, 2, 4, 8)}
        for name, price, loss in zip(("a", "b"), prices, (0.02, 0.01), strict=True)
    }


def test_budgets_are_those_of_uniform_widths_and_between():
    costs = costs_of(10, 100)
    budgets = default_budgets(costs, [1, 2, 4, 8], "bytes", 0)
    between = [pytest.approx(110 * 2**exponent, abs=0.01) for exponent in (0.5, 1.5, 2.5)]
    assert budgets == [between[0], 220, between[1], 440, between[2], 880]
    found = found_widths(costs, [1, 2, 4, 8], "bytes", 0, None)
    assert [widths for widths, _ in found] == [{"a": 4, "b": 1}, {"a": 8, "b": 1}, {"a": 8, "b": 2}, {"a": 8, "b": 4}]
    assert [budgets for _, budgets in found] == [[between[0]], [220], [between[1], 440], [between[2]]]
    assert all(cost_of(costs, widths, "bytes") <= min(budgets) for widths, budgets in found)
    assert default_budgets(costs, [1, 8], "latency", 100.0) == [-285, 100]  # timings that add up to less than nothing
    timed = found_widths(costs, [1, 2, 4, 8], "latency", 1000.0, [600.0, 1000.0])
    assert timed == [({"a": 8, "b": 4}, [600.0])]  # 1,000 allows all the widest, which is uniform


def test_an_assignment_is_compared_with_the_uniform_width_of_its_cost():
    def entry(cell, *values, us=10.0):
        runs = [{"seed": seed, "value": value, "latency_us": {"median": us}} for seed, value in enumerate(values)]
        return {"method": cell, "runs": runs}

    plan = {
        "cost": "latency",
        "assignments": [
            {"cell": cell, "budgets": budgets, "predicted_us": us}
            for cell, budgets, us in (
                ("1/1", [], 10.0),
                ("2/2", [], 20.0),
                ("8/8", [], 20.5),
                ("by layer 1", [15.0], 14.0),
                ("by layer 2", [20.0, 20.5], 20.0),
                ("by layer 3", [30.0], 29.0),  # no uniform width costs as much
            )
        ],
    }
    better, worse, equal = (0.99, 0.985, 0.99), (0.9, 0.91, 0.9), (0.9, 0.91, 0.91)
    entries = [entry("1/1", *worse), entry("2/2", *worse, us=21.0), entry("8/8", *better)]
    entries += [entry("by layer 1", *better, us=15.0), entry("by layer 2", *equal), entry("by layer 3", *better)]
    first, second = bits_by_layer.comparisons(plan, entries)
    assert [(found["by_layer"], found["uniform"]) for found in (first, second)] == [
        ("by layer 1", "2/2"),
        ("by layer 2", "2/2"),
    ]
    test, other = (
        paired(dict(enumerate(better)), dict(enumerate(worse))),
        paired(*map(dict, map(enumerate, (equal, worse)))),
    )
    assert (first["difference"], first["p"]) == (round(test.difference, 6), round(test.p, 6))
    adjusted = holm([test.p, other.p])
    assert [first["p_holm"], second["p_holm"]] == [pytest.approx(p, abs=1e-6) for p in adjusted]
    assert (first["within_chance"], second["within_chance"]) == (False, True)
    assert first["latency_us"] == [15.0, 21.0]
    assert bits_by_layer.comparisons(plan, entries[:3]) == []


@pytest.mark.slow
def test_from_a_recipe_to_a_front(folder, command):
    recipe = ",".join(f"'{text}'" for text in (*TINY, "doctor.every=null", "trainer.accelerator=cpu"))
    arguments = (*COMMAND, f"options=[{recipe}]", "seeds=[0,1]", "fine_tuning=['epochs=1','optimizer.lr=0.002']")
    done = command(*arguments)
    assert done.status == 0, done.err
    plan = read_json(folder / "results" / "bits_by_layer_layers.json")
    entries = {entry["method"]: entry for entry in read_ledger(folder / "results" / plan["ledger"])}
    cells = [one["cell"] for one in plan["assignments"]]
    assert cells[:2] == ["1/1", "8/8"] and list(entries) == ["base", *cells]
    assert all(entry["seeds"] == [0, 1] and entry["status"] == "complete" for entry in entries.values())
    base = entries["base"]["experiment"]
    costs = read_costs(plan["layers"])
    assert all(len(one.losses) == 2 for widths in costs.values() for one in widths.values())
    for one in plan["assignments"]:
        config = entries[one["cell"]]["config"]
        assert config["start"]["run"] == f"runs/bits_by_layer/fp32/{base}" and config["optimizer"]["lr"] == 0.002
    for pair in plan["comparisons"]:
        values = [[run["value"] for run in entries[pair[key]]["runs"]] for key in ("by_layer", "uniform")]
        assert pair["difference"] == pytest.approx(sum(values[0]) / 2 - sum(values[1]) / 2, abs=1e-6)
        assert pair["seeds"] == 2


def test_from_a_run_that_is_there(trained, folder, command, monkeypatch):
    shutil.copytree(trained / "runs", folder / "runs")
    (run,) = (folder / "runs").glob("default/fp32/*/seed0")
    experiment = run.parent.relative_to(folder)
    result = (run / "result.json").read_bytes()
    common = (*COMMAND, "fine_tuning=['epochs=1','doctor.every=null']", "output=found.json", "name=mine")
    done = command(*common, f"run={experiment}", "cost=bytes", "budgets=[500]")
    assert done.status == 0, done.err
    assert (run / "result.json").read_bytes() == result
    plan = read_json(folder / "found_layers.json")
    entries = read_ledger(folder / plan["ledger"])
    assert [entry["method"] for entry in entries] == ["base", *(one["cell"] for one in plan["assignments"])]
    assert entries[0]["experiment"] == run.parent.name
    for entry, one in zip(entries[1:], plan["assignments"], strict=True):
        (trained_one,) = entry["runs"]
        assert trained_one["parity_ok"] and trained_one["latency_us"]["median"] > 0
        assert entry["config"]["start"]["run"] == str(experiment) and entry["label"] == one["label"]
        assert entry["config"]["model"]["width"] == 4  # as the run's command says
    mixed = plan["assignments"][-1]
    assert mixed["budgets"] == [500] and mixed["bytes"] <= 500 and mixed["label"].endswith("LSQ by layer")
    assert entries[-1]["config"]["quantizer"]["widths"] == mixed["widths"]
    # Once more: nothing is measured or trained, and the same is written.
    before = (folder / "found.json").read_bytes()
    for module, name in ((sweep, "run_job"), (bits_by_layer, "make_plan")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("it was there"))
    again = command(*common, f"run={experiment}", "cost=bytes", "budgets=[500]")
    assert again.status == 0, again.err
    assert (folder / "found.json").read_bytes() == before


def test_mistakes_are_told_before_anything_is_trained(trained, folder, command):
    shutil.copytree(trained / "runs", folder / "runs")
    for options, words in (
        (("run=runs/default/fp32", "cost=bytes", "budgets=[1]"), "budget=1 bytes is too small: the cheapest widths"),
        (("run=runs/default/fp32", "bits=[4]"), "bits must be at least two widths"),
        (("run=runs/default/fp32", "cost=joules"), "cost is bytes or latency"),
        (("run=nowhere",), "nowhere is no run"),
    ):
        failed = command(*COMMAND, *options)
        assert (failed.status, words in failed.err) == (2, True), failed.err
    (run,) = (folder / "runs").glob("default/fp32/*/seed0")
    failed = command(*COMMAND, f"run={run.parent}", "seeds=[0,4]")
    assert (failed.status, "has no run of seed 4" in failed.err) == (2, True)
    (run / "result.json").unlink()
    failed = command(*COMMAND, "run=runs/default/fp32")
    assert (failed.status, "has not ended: train it first" in failed.err) == (2, True)
