"""XNOR-Net's figure 4: the theory against the paper's own numbers, and the picture from a result file."""

import json

import matplotlib.pyplot as plt
import pytest
from readable import faults, words

from paper_figures import xnor_net_figure4
from paper_figures.xnor_net_figure4 import theory


# 62.27 is printed in the paper (section 4.1); the others follow from its formula by hand.
@pytest.mark.parametrize(
    ("channels", "size", "expected"),
    [(256, 3, 62.27), (1, 3, 7.89), (1024, 3, 63.56), (256, 1, 51.20), (256, 20, 63.96)],
)
def test_theory(channels, size, expected):
    assert float(theory(channels, size)) == pytest.approx(expected, abs=0.005)


def write(path, names):
    rows = [
        {"name": name, "batch": 1, "threads": 1, "ratio": {"median": 2.0 + i, "best": 2.5 + i}}
        for i, name in enumerate(names)
    ]
    rows += [{**row, "threads": 2, "ratio": {"median": 99.0, "best": 99.0}} for row in rows]
    path.write_text(json.dumps({"layers": rows, "hardware": {"cpu": "a CPU"}}))


def test_the_picture_shows_the_file(tmp_path):
    source, picture = tmp_path / "kernels.json", tmp_path / "figure.png"
    names = ["conv 64->64 56x56 3x3", "conv 256->256 14x14 3x3", "conv 16->256 14x14 3x3", "conv 256->256 14x14 5x5"]
    write(source, names)
    ratios, cpu = xnor_net_figure4.read(source)
    assert cpu == "a CPU"
    assert {key: (r["median"], r["best"]) for key, r in ratios.items()} == {
        (256, 3): (3.0, 3.5),
        (16, 3): (4.0, 4.5),
        (256, 5): (5.0, 5.5),
    }
    figure = xnor_net_figure4.plot(ratios, cpu)
    assert faults(figure) == []
    left, right = figure.axes
    for axes, points, sizes in ((left, [[16, 4], [256, 3]], (1, 1024)), (right, [[3, 3], [5, 5]], (1, 20))):
        paper, measured = axes.lines[:2]
        assert measured.get_xydata().tolist() == points
        x, y = paper.get_data()
        assert (x[0], x[-1]) == pytest.approx(sizes)
        expected = theory(x, 3) if axes is left else theory(256, x)
        assert y == pytest.approx(expected)
        ends = [segment[:, 1].tolist() for segment in axes.containers[0][2][0].get_segments()]
        assert ends == [[median, median + 0.5] for _, median in points]
    assert {"operation count (paper)", "times faster than FP32", "channels (3x3 filters)"} <= set(words(figure))
    xnor_net_figure4.main(["--results", str(source), "--output", str(picture)])
    assert plt.imread(picture).shape[1] == 1800


def test_the_committed_result_can_be_read():
    assert faults(xnor_net_figure4.plot(*xnor_net_figure4.read(xnor_net_figure4.DEFAULT_RESULTS))) == []


def test_a_processor_with_a_long_name(tmp_path):
    write(tmp_path / "kernels.json", ["conv 256->256 14x14 3x3"])
    ratios, _ = xnor_net_figure4.read(tmp_path / "kernels.json")
    assert faults(xnor_net_figure4.plot(ratios, "a processor with a long name " * 6)) == []


@pytest.mark.parametrize(("content", "words"), [(None, "is missing"), ("{}", "is no result"), ("[", "is no result")])
def test_missing_and_other_files_are_named(tmp_path, content, words):
    source = tmp_path / "kernels.json"
    if content is not None:
        source.write_text(content)
    with pytest.raises(SystemExit, match=words):
        xnor_net_figure4.main(["--results", str(source)])
    write(source, ["conv 64->64 56x56 3x3"])
    with pytest.raises(SystemExit, match="suite=kernels"):
        xnor_net_figure4.main(["--results", str(source)])
