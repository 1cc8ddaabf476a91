"""Latency against bits: the picture from the two result files."""

import json

import matplotlib.pyplot as plt
import pytest
from readable import faults, words

from paper_figures import latency_vs_bits
from paper_figures.latency_vs_bits import LAYER

LONG_CPU = "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz with a name that goes on and on beyond the width of a page"
WIDTHS = ("1/1", "t/1", "1/2", "2/2", "t/2", "3/3", "4/4", "1/8", "t/8", "4/8", "8/8", "1/32", "t/32", "32/32")


def us(median):
    return {"us": {"best": median / 2, "low_quartile": 0.9 * median, "median": median, "high_quartile": 1.2 * median}}


def content(*names, cpu="a CPU", peers=latency_vs_bits.PEERS):
    """Width number i takes i + 1 milliseconds, peer number i takes 10 times that; other batches and threads more."""
    rows = [
        {
            "name": name,
            "batch": batch,
            "threads": threads,
            "widths": [{"width": w} | us(1000.0 * batch * threads * (i + 1)) for i, w in enumerate(WIDTHS)],
            "peers": {peer: us(10_000.0 * (i + 1)) for i, peer in enumerate(peers)} | {"frozen": us(1.0)},
        }
        for name in names
        for batch, threads in ((1, 1), (8, 1), (1, 2))
    ]
    return {"rows": rows, "hardware": {"cpu": cpu}}


@pytest.fixture
def draw(tmp_path):
    """draw(layers, networks) writes the files, draws them with the command and returns the picture's path."""

    def call(layers, networks):
        arguments = ["--output", str(tmp_path / "figure.png")]
        for name, given in (("layers", layers), ("networks", networks)):
            arguments += [f"--{name}", str(tmp_path / f"{name}.json")]
            if given is not None:
                (tmp_path / f"{name}.json").write_text(given if isinstance(given, str) else json.dumps(given))
        latency_vs_bits.main(arguments)
        return tmp_path / "figure.png"

    return call


def panels(tmp_path, names, **given):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content(*names, **given)))
    rows, cpu = latency_vs_bits.read(path)
    return latency_vs_bits.plot(rows, cpu)


def test_the_picture_shows_the_file(tmp_path):
    figure = panels(tmp_path, ["ResNet18", "VGGSmall"])
    assert faults(figure) == []
    for axes in figure.axes[:2]:
        assert [label.get_text() for label in axes.get_xticklabels()] == list(WIDTHS)
        by_marker = {line.get_marker(): line.get_xydata().tolist() for line in axes.lines}
        assert by_marker["o"] == [[i, i + 1] for i in range(len(WIDTHS))]
        assert [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"] == [10.0]
        last, eight = WIDTHS.index("32/32"), WIDTHS.index("8/8")
        found = [by_marker[marker] for *_, marker in latency_vs_bits.PEERS.values()]
        assert found == [[[last, 10]], [[last, 20]], [[eight, 30]], [[eight, 40]]]
        (bars,) = axes.containers[0][2]
        assert [s[:, 1].tolist() for s in bars.get_segments()] == [
            pytest.approx([0.9 * (i + 1), 1.2 * (i + 1)]) for i in range(len(WIDTHS))
        ]
        assert axes.get_ylim()[0] == 0
    written = words(figure)
    assert {"ResNet18", "VGGSmall", "packed", "PyTorch FP32", "OpenVINO INT8", "ONNX Runtime INT8"} <= set(written)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_it_can_be_read(tmp_path, count):
    names = [f"Network{i}WithALongName" for i in range(count)]
    assert faults(panels(tmp_path, names, cpu=LONG_CPU)) == []


def test_peers_that_were_left_out(tmp_path):
    written = words(panels(tmp_path, ["NIN"], peers=["eager"]))
    assert "PyTorch FP32" in written and "OpenVINO FP32" not in written


def test_one_layer_and_all_networks():
    rows = [{"name": name} for name in ("other", LAYER, "last")]
    assert [row["name"] for row in latency_vs_bits.choose(rows, rows)] == [LAYER, "other", LAYER, "last"]
    assert [row["name"] for row in latency_vs_bits.choose(rows[:1], [])] == ["other"]


def test_the_command_draws_what_there_is(draw):
    assert plt.imread(draw(content(LAYER), None)).shape[1] == 1800
    assert plt.imread(draw(content(LAYER), content("ResNet18"))).shape[1] == 1800


@pytest.mark.parametrize(
    ("layers", "networks", "message"),
    [
        (None, None, "neither .* is there; run bitplanes benchmark suite=widths"),
        ("{}", None, "is no result"),
        (None, "[", "is no result"),
        (content(), None, "has nothing of one image and one thread"),
        (content("a"), content("b", cpu="another"), "on different CPUs: a CPU and another"),
    ],
)
def test_missing_and_other_files_are_named(layers, networks, message, draw):
    with pytest.raises(SystemExit, match=message):
        draw(layers, networks)


@pytest.mark.parametrize("path", [latency_vs_bits.DEFAULT_LAYERS, latency_vs_bits.DEFAULT_NETWORKS], ids=str)
def test_committed_results_can_be_read(path):
    if not path.exists():
        pytest.skip("nothing was measured yet")
    assert faults(latency_vs_bits.plot(*latency_vs_bits.read(path))) == []
