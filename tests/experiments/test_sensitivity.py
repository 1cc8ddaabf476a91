"""Bits by layer: what one layer alone costs, and the assignment of widths under a budget."""

import itertools
import json
import random
import shutil

import pytest

from experiments.sensitivity import best_widths


@pytest.mark.parametrize("seed", range(5))
def test_the_assignment_is_the_best_of_all(seed):
    numbers = random.Random(seed)
    costs = {
        f"layer{i}": {bits: (numbers.randrange(1, 9) * bits, numbers.randrange(0, 50) / 100) for bits in (1, 2, 4, 8)}
        for i in range(4)
    }
    budget = numbers.randrange(30, 100)
    every = [dict(zip(costs, widths, strict=True)) for widths in itertools.product((1, 2, 4, 8), repeat=4)]

    def total(widths):
        return [sum(costs[name][bits][at] for name, bits in widths.items()) for at in (0, 1)]

    possible = [widths for widths in every if total(widths)[0] <= budget]
    found = best_widths(costs, budget)
    assert total(found)[0] <= budget
    assert total(found)[1] == pytest.approx(min(total(widths)[1] for widths in possible))
    with pytest.raises(ValueError, match="too small: the narrowest widths take"):
        best_widths(costs, 0)


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
