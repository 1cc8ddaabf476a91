"""The ranking of methods: order, intervals, seeds and published numbers are those of the ledger."""

import json

import numpy as np
import pytest
from ledgers import entry, ledger
from readable import faults, words

from paper_figures import method_ranking
from paper_figures.ledger_file import check_ledger


def number(value, metric="test_accuracy"):
    return {"metric": metric, "value": value, "source": "a paper"}


def entries():
    return [
        entry("1/1", (0.9, 0.92), method="xnor", published=number(0.95)),
        entry("32/32", (0.98, 0.99, 0.97), method="fp32"),
        entry("2/2", (0.93,), method="dorefa2"),
        entry("4/4", (), method="lsq4"),
    ]


def test_what_is_drawn_is_the_ledger():
    content = ledger(entries()[:3])
    check_ledger(content)
    figure = method_ranking.plot(entries())
    assert faults(figure) == []
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["fp32 (32/32)", "dorefa2 (2/2)", "xnor (1/1)"]
    assert axis.yaxis_inverted()
    means = [tuple(float(value) for value in bar.lines[0].get_xydata()[0]) for bar in axis.containers]
    assert means == [(pytest.approx(98), 0), (pytest.approx(93), 1), (pytest.approx(91), 2)]
    ends = [bar.lines[2][0].get_segments()[0][:, 0] for bar in axis.containers if bar.lines[2]]
    wanted = [[100 * end for end in found["interval"]] for found in (entries()[1], entries()[0])]
    assert np.allclose(ends, wanted)
    seeds = [sorted(line.get_xdata()) for line in axis.lines if line.get_marker() == "."]
    assert seeds == [pytest.approx(found) for found in ([97, 98, 99], [93], [90, 92])]
    (published,) = [line.get_xydata().tolist() for line in axis.lines if line.get_marker() == "D"]
    assert published == [[pytest.approx(95), 2]]
    written = " ".join(words(figure))
    assert "DigitsCNN on digits, 1/2/3 seeds" in written and "test accuracy (%)" in written


def test_fewer_bits_a_token_rank_first():
    metric = "test_bits_per_character"
    found = [entry("t/8", (2.0, 2.2), method="b", metric=metric), entry("1/1", (2.5,), method="a", metric=metric)]
    figure = method_ranking.plot(found)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["b (t/8)", "a (1/1)"]
    assert "test, bits a token" in words(figure)


def test_mixtures_and_empty_ledgers_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="mixes DigitsCNN on digits, test_accuracy; DigitsCNN on mnist"):
        method_ranking.plot([*entries(), entry("1/1", (0.9,), data="mnist")])
    with pytest.raises(SystemExit, match="no finished run"):
        method_ranking.plot([])
    with pytest.raises(SystemExit, match="is missing; "):
        method_ranking.draw(tmp_path / "none.json", tmp_path / "x.png")


def test_the_command_writes_it(tmp_path):
    (tmp_path / "ledger.json").write_text(json.dumps(ledger(entries()[:2])))
    method_ranking.main(["--results", str(tmp_path / "ledger.json"), "--output", str(tmp_path / "figure.svg")])
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")
