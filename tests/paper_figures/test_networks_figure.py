"""Time and size of networks: the picture from a result file."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from readable import faults, words

from paper_figures import networks

LONG_CPU = "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz with a name that goes on and on beyond the width of a page"


def content(peers=("eager", "openvino"), names=("NIN", "LeNet5"), cpu="a CPU"):
    facts = [{"name": f"{name} xnor", "file_bytes": 1000, "fp32_bytes": 30_000} for name in names]
    rows = [
        {"name": f["name"], "batch": batch, "threads": threads, "packed_us": {"best": 450.0, "median": 500.0 * batch}}
        | {peer: {"best": 3000.0, "median": 4000.0 * (i + batch)} for i, peer in enumerate(peers)}
        for f in facts
        for batch, threads in ((1, 1), (8, 1), (1, 2))
    ]
    return {"networks": facts, "latency": rows, "hardware": {"cpu": cpu}}


def figure(path, given):
    path.write_text(json.dumps(given))
    return networks.plot(*networks.read(path))


def dots(axes):
    """{colour: points (x, y)} of the markers of an axes."""
    return {
        line.get_color(): line.get_xydata().tolist() for line in axes.lines if line.get_marker() not in ("None", "")
    }


def bars(axes):
    """Ends of the lines of spread of an axes."""
    return [np.array(part)[:, 0].tolist() for group in axes.containers for part in group[2][0].get_segments()]


@pytest.mark.parametrize("peers", [("eager", "openvino"), ("eager",)])
def test_medians_and_sizes_are_dots(tmp_path, peers):
    drawn = figure(tmp_path / "networks.json", content(peers))
    times, sizes = drawn.axes
    assert faults(drawn) == []
    colours = {side: colour for side, (_, colour, _) in networks.SIDES.items()}
    expected = {"packed": 0.5, "eager": 4.0, "openvino": 8.0}
    sides = ("packed", *peers)
    assert dots(times) == {colours[s]: [[expected[s], 0], [expected[s], 1]] for s in sides}
    assert dots(sizes) == {colours["packed"]: [[0.001, 0], [0.001, 1]], colours["eager"]: [[0.03, 0], [0.03, 1]]}
    assert not times.patches  # no bars: a logarithmic axis has no zero for them to begin at
    assert (times.get_xscale(), sizes.get_xscale()) == ("log", "log")
    written = words(drawn)
    assert written.count("8x") == 2  # over the faster of the others
    assert written.count("30x") == 2
    assert {"NIN", "LeNet5", "packed", "PyTorch FP32"} <= set(written)
    assert ("OpenVINO FP32" in written) == ("openvino" in peers)


def test_the_spread_is_drawn(tmp_path):
    """From the best call to the median, or the quartiles where the file has them."""
    given = content(("eager",), ("NIN",))
    drawn = figure(tmp_path / "networks.json", given)
    assert bars(drawn.axes[0]) == [pytest.approx([3, 4]), pytest.approx([0.45, 0.5])]
    assert not bars(drawn.axes[1])
    assert any("best call" in text for text in words(drawn))
    for row in given["latency"]:
        row["packed_us"]["quartiles"] = [480.0, 520.0]
        row["eager"]["quartiles"] = [3500.0, 4500.0]
    drawn = figure(tmp_path / "networks.json", given)
    assert bars(drawn.axes[0]) == [pytest.approx([3.5, 4.5]), pytest.approx([0.48, 0.52])]
    assert any("middle half" in text for text in words(drawn))


@pytest.mark.parametrize("count", [1, 15])
def test_it_can_be_read(tmp_path, count):
    names = [f"Network{i}WithALongName" for i in range(count)]
    assert faults(figure(tmp_path / "networks.json", content(names=names, cpu=LONG_CPU))) == []


def test_the_committed_result_is_what_the_committed_figure_shows():
    drawn = networks.plot(*networks.read(networks.DEFAULT_RESULTS))
    assert faults(drawn) == []
    rows = json.loads(networks.DEFAULT_RESULTS.read_text())
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()] == [
        network["name"].split()[0] for network in rows["networks"]
    ]


def test_the_command_writes_it(tmp_path, capsys):
    source, picture = tmp_path / "networks.json", tmp_path / "figure.png"
    source.write_text(json.dumps(content()))
    networks.main(["--results", str(source), "--output", str(picture)])
    assert str(picture) in capsys.readouterr().out
    assert plt.imread(picture).shape[1] == 1800


@pytest.mark.parametrize(("text", "words"), [(None, "is missing"), ("{}", "is no result"), ("[", "is no result")])
def test_missing_and_other_files_are_named(tmp_path, text, words):
    source = tmp_path / "networks.json"
    if text is not None:
        source.write_text(text)
    with pytest.raises(SystemExit, match=words):
        networks.main(["--results", str(source)])
    source.write_text(json.dumps({"networks": [], "latency": [], "hardware": {"cpu": "a CPU"}}))
    with pytest.raises(SystemExit, match="no networks"):
        networks.main(["--results", str(source)])
