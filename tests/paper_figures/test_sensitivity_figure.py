"""The figure of bits by layer: losses, points, bars and front are those of the files, and all of it can be read."""

import json

import pytest
from ledgers import entry, ledger
from matplotlib.colors import to_hex
from readable import faults, words

from paper_figures import sensitivity, style


def layers(count, bits=(1, 2, 8)):
    """{layer: losses}: layer n loses n / bits points, the second nothing, the third wins at the widest."""
    found = {
        f"conv{n}": [{"bits": width, "bytes": 10 * width, "loss": n / width / 100} for width in bits]
        for n in range(count)
    }
    if count > 2:
        found["conv2"][-1]["loss"] = -0.004
    return found


def content(count=3, **fields):
    return {"model": "LeNet5", "data": "mnist", "seeds": [0, 1], "layers": layers(count), **fields}


def trained(**fields):
    """A file with two uniform widths and two assignments, and its ledger."""
    cells = {"1/1": ({"conv0": 1}, []), "8/8": ({"conv0": 8}, []), "by layer 1": ({"conv0": 1, "conv1": 8}, [9.0])}
    cells["by layer 2"] = ({"conv0": 8, "conv1": 2}, [12.0])
    assignments = [{"cell": cell, "widths": widths, "budgets": found} for cell, (widths, found) in cells.items()]
    numbers = {
        "base": ((0.99, 0.98), (90, 92)),
        "1/1": ((0.9, 0.92), (10, 12)),
        "8/8": ((0.97, 0.99), (40, 40)),
        "by layer 1": ((0.96, 0.98), (20, 24)),
        "by layer 2": ((0.95, 0.93), (30, 31)),
    }
    entries = [
        entry("1/1", values, method=cell, latencies=times, sizes=[100 * time for time in times])
        for cell, (values, times) in numbers.items()
    ]
    return content(cost="latency", ledger="a.json", assignments=assignments, **fields), entries


def test_losses_are_lines_of_points():
    figure = sensitivity.plot(content(), [])
    assert faults(figure) == []
    (axis,) = figure.axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.lines if line.get_label() in ("1", "2", "8")}
    expected = {"1": [0, 1, 2], "2": [0, 0.5, 1], "8": [0, 0.125, -0.4]}
    assert lines == {bits: pytest.approx(values) for bits, values in expected.items()}
    assert {"conv0", "conv1", "conv2", "1", "2", "8", "bits of the layer"} <= set(words(figure))
    assert any("LeNet5 on mnist, 2 seeds" in text for text in words(figure))


@pytest.mark.parametrize("count", [1, 21])
def test_it_can_be_read_with_any_number_of_layers(count):
    assert faults(sensitivity.plot(content(count), [])) == []


@pytest.mark.parametrize("cost", ["latency", "bytes"])
def test_the_front_is_that_of_the_ledger(cost):
    given, entries = trained()
    figure = sensitivity.plot(given | {"cost": cost}, entries)
    assert faults(figure) == []
    right = figure.axes[1]
    scale = 1 if cost == "latency" else 100
    marks = {
        (line.get_marker(), to_hex(line.get_color())): tuple(line.get_xydata()[0])
        for line in right.lines
        if len(line.get_xydata()) == 1
    }
    discs = [tuple(line.get_xydata()[0]) for line in right.lines if line.get_marker() == "o"]
    assert discs == [pytest.approx((22 * scale, 97)), pytest.approx((30.5 * scale, 94))]
    assert marks[("$1$", style.ORANGE)] == pytest.approx((11 * scale, 91))
    assert marks[("$8$", style.ORANGE)] == pytest.approx((40 * scale, 98))
    (edge,) = [line for line in right.lines if line.get_linestyle() == "--"]
    assert list(edge.get_ydata()) == pytest.approx([91, 97, 98])  # of the fourth another is better and cheaper
    (fp32,) = [line for line in right.lines if line.get_linestyle() == ":"]
    assert list(fp32.get_ydata()) == pytest.approx([98.5, 98.5])
    segments = [group[2][0].get_segments()[0] for group in right.containers]
    assert segments[0][:, 0] == pytest.approx([10 * scale, 12 * scale])
    upright = [group[2][1].get_segments()[0][:, 1] for group in right.containers]
    assert upright[2] == pytest.approx([100 * end for end in entries[3]["interval"]])
    unit = "microseconds for one input" if cost == "latency" else "bytes of the packed file"
    assert {unit, "FP32", "bits by layer", "b bits in all layers"} <= set(words(figure))


def test_costs_far_apart_and_near_can_be_read():
    for times in ((14.6, 28.1), (14.6, 900.0)):
        given, entries = trained()
        for run in entries[2]["runs"]:
            run["latency_us"]["median"] = times[1]
        figure = sensitivity.plot(given, entries)
        assert faults(figure) == []
        assert figure.axes[1].get_xscale() == ("log" if times[1] > 100 else "linear")
        assert figure.axes[1].get_ylim()[1] <= 100.5


def test_the_command_draws_a_file_and_its_ledger(tmp_path):
    given, entries = trained()
    file, picture = tmp_path / "a_layers.json", tmp_path / "a.svg"
    file.write_text(json.dumps(given))
    with pytest.raises(SystemExit, match=r"a\.json is missing"):
        sensitivity.main(["--results", str(file), "--output", str(picture)])
    (tmp_path / "a.json").write_text(json.dumps(ledger(entries)))
    sensitivity.main(["--results", str(file), "--output", str(picture)])
    assert picture.exists()
    for text, message in (
        ("{}", "has no layers"),
        ("[", "has no layers"),
        ('{"layers": {"a": [{}]}}', "has no layers"),
    ):
        file.write_text(text)
        with pytest.raises(SystemExit, match=message):
            sensitivity.main(["--results", str(file)])
    with pytest.raises(SystemExit, match="bits_by_layer name=b writes it"):
        sensitivity.main(["--results", str(tmp_path / "b_layers.json")])
