"""XNOR-Net's figure 4: the theory against the paper's own numbers, and the picture from a result file."""

import json

import pytest

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
    rows = [{"name": name, "batch": 1, "threads": 1, "ratio": {"median": 2.0 + i}} for i, name in enumerate(names)]
    rows += [{**row, "threads": 2, "ratio": {"median": 99.0}} for row in rows]
    path.write_text(json.dumps({"layers": rows, "hardware": {"cpu": "a CPU"}}))


def test_the_picture_comes_from_the_file(tmp_path):
    source, picture = tmp_path / "kernels.json", tmp_path / "figure.png"
    write(source, ["conv 64->64 56x56 3x3", "conv 256->256 14x14 3x3", "conv 16->256 14x14 3x3"])
    assert xnor_net_figure4.read(source) == ({(256, 3): 3.0, (16, 3): 4.0}, "a CPU")
    xnor_net_figure4.main(["--results", str(source), "--output", str(picture)])
    assert picture.stat().st_size > 5000


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
