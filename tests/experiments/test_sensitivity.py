"""Bits by layer: what one layer alone costs, and the assignment of widths under a budget."""

import itertools
import json
import random
import shutil

import pytest

from experiments import layer_costs
from experiments.layer_costs import Choice, best_widths, cost_of, described, read_costs


@pytest.mark.parametrize("cost", ["bytes", "latency"])
@pytest.mark.parametrize("seed", range(5))
def test_the_assignment_is_the_best_of_all(seed, cost):
    numbers = random.Random(seed)
    costs = {
        f"layer{i}": {
            bits: Choice(
                numbers.randrange(1, 9) * bits,
                (numbers.randrange(-5, 50) / 100, numbers.randrange(0, 50) / 100),
                numbers.uniform(-20, 5),  # microseconds saved, or lost
            )
            for bits in (1, 2, 4, 8)
        }
        for i in range(4)
    }
    reference = 100.0 if cost == "latency" else 0.0
    every = [dict(zip(costs, widths, strict=True)) for widths in itertools.product((1, 2, 4, 8), repeat=4)]

    def price(widths):
        chosen = [costs[name][bits] for name, bits in widths.items()]
        return sum(one.bytes for one in chosen) if cost == "bytes" else reference + sum(one.us for one in chosen)

    def loss(widths):
        return sum(costs[name][bits].loss for name, bits in widths.items())

    prices = sorted(map(price, every))
    for budget in (prices[0], prices[3], numbers.choice(prices), prices[-1]):
        possible = [widths for widths in every if price(widths) <= budget + 1e-9]
        found = best_widths(costs, budget, cost, reference)
        assert price(found) <= budget + 1e-9
        assert loss(found) == pytest.approx(min(map(loss, possible)))
        assert cost_of(costs, found, cost, reference) == pytest.approx(price(found), abs=0.006)
    with pytest.raises(ValueError, match="too small: the cheapest widths take"):
        best_widths(costs, prices[0] - 0.1, cost, reference)
    assert read_costs(json.loads(json.dumps(described(costs)))) == costs


def test_the_command_measures_each_layer_alone(trained, tmp_path, monkeypatch, command):
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    done = command("experiments.sensitivity", "run=runs/default/fp32", "bits=[1,8]", "budget=1000", "output=found.json")
    assert done.status == 0, done.err
    found = json.loads((tmp_path / "found.json").read_text())
    (file,) = (tmp_path / "runs").rglob("fp32/*/seed0/result.json")
    assert found["validation_accuracy"] == pytest.approx(
        json.loads(file.read_text())["accuracy"]["validation"], abs=1e-6
    )
    assert set(found["layers"]) == {"conv2", "conv3", "linear4"}
    for widths in found["layers"].values():
        assert [width["bits"] for width in widths] == [1, 8]
        assert widths[1]["bytes"] in range(8 * widths[0]["bytes"] - 7, 8 * widths[0]["bytes"] + 1)
        assert abs(widths[1]["loss"]) <= 0.03  # 8 bits are nearly floats
    assignment = found["assignment"]
    assert assignment["bytes"] <= 1000
    sizes = {name: {width["bits"]: width["bytes"] for width in widths} for name, widths in found["layers"].items()}
    assert assignment["bytes"] == sum(sizes[name][bits] for name, bits in assignment["widths"].items())
    wrong = command("experiments.sensitivity", "run=runs/default/fp32", "bits=[0]")
    assert (wrong.status, "bits must be different numbers from 1 to 8" in wrong.err) == (2, True)


def test_latencies_are_those_of_whole_packed_networks(trained, tmp_path, monkeypatch, command):
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(layer_costs, "SECONDS", 0.01)
    timed, of_all = [], layer_costs.latencies_of

    def with_note(network, images, assignments):
        timed.append([dict(widths) for widths in assignments])
        return of_all(network, images, assignments)

    for module in ("layer_costs", "sensitivity"):
        monkeypatch.setattr(f"experiments.{module}.latencies_of", with_note)
    done = command(
        *("experiments.sensitivity", "run=runs/default/fp32", "bits=[1,8]", "cost=latency", "budget=100000"),
        *("output=found.json", "batches=1"),
    )
    assert done.status == 0, done.err
    found = json.loads((tmp_path / "found.json").read_text())
    widest = {"conv2": 8, "conv3": 8, "linear4": 8}
    assert timed[0] == [widest, *({**widest, name: 1} for name in widest)]
    assert timed[1] == [found["assignment"]["widths"]]
    assert found["widest_us"] > 0 and found["assignment"]["measured_us"] > 0
    assert all(widths[1]["more_us"] == 0 for widths in found["layers"].values())
    total = found["widest_us"] + sum(
        {width["bits"]: width["more_us"] for width in found["layers"][name]}[bits]
        for name, bits in found["assignment"]["widths"].items()
    )
    assert found["assignment"]["predicted_us"] == pytest.approx(total, abs=0.02)
    wrong = command("experiments.sensitivity", "run=runs/default/fp32", "cost=joules")
    assert (wrong.status, "cost is bytes or latency" in wrong.err) == (2, True)
