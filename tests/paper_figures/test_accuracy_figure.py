"""Accuracy against bits: what is drawn is the table, what is within chance is said, and all of it can be read."""

import json

import numpy as np
import pytest
from ledgers import entry, ledger
from matplotlib.colors import to_rgba
from readable import faults, words

from paper_figures import accuracy_vs_bits, style


def row(label, accuracy, seed=0, size=1000, images=400, **more):
    found = {
        "label": label,
        "seed": seed,
        "test_accuracy": accuracy,
        "model": "Net",
        "data": "digits",
        "quantizer": "q",
    }
    return found | ({"file_bytes": size} if size else {}) | ({"test_images": images} if images else {}) | more


def table(images=400, **settings):
    """Rows of label=(accuracies of seeds)."""
    names = {"fp32": "32/32", "signs": "1/1", "two": "2/2"}
    return [row(names.get(s, s), a, i, images=images) for s, found in settings.items() for i, a in enumerate(found)]


def markers(axes):
    """(place, mean in per cent, whether hollow) of each setting."""
    return [
        (*line.get_xydata()[0], to_rgba(line.get_markerfacecolor()) == to_rgba("white"))
        for line in axes.lines
        if line.get_marker() == "o"
    ]


def test_means_deviations_seeds_and_sizes():
    rows = table(fp32=(0.99, 0.97), two=(0.5, 0.6, 0.7), signs=(0.2,))
    rows[0]["file_bytes"] = 4000
    figure = accuracy_vs_bits.plot(rows)
    assert faults(figure) == []
    top, bottom = figure.axes
    assert [text.get_text() for text in bottom.get_xticklabels()] == ["1/1", "2/2", "32/32"]
    assert markers(top) == [(0, pytest.approx(20), False), (1, pytest.approx(60), False), (2, pytest.approx(98), False)]
    bars = [np.array(group[2][0].get_segments())[0][:, 1] for group in top.containers]
    deviations = [0, 10, np.sqrt(2)]
    assert [(b[1] - b[0]) / 2 for b in bars] == pytest.approx(deviations)
    seeds = [sorted(line.get_ydata()) for line in top.lines if line.get_marker() == "."]
    assert seeds == [pytest.approx(s) for s in ([20], [50, 60, 70], [97, 99])]
    rules = [line.get_ydata() for line in top.lines if line.get_linestyle() == "--"]
    assert rules == [pytest.approx([98, 98])]
    assert [(patch.get_x() + patch.get_width() / 2, patch.get_height()) for patch in bottom.patches] == [
        (0, pytest.approx(1)),
        (1, pytest.approx(1)),
        (2, pytest.approx(4)),
    ]
    assert bottom.get_ylim()[0] == 0
    written = words(figure)
    assert {"20.0", "60.0", "98.0", "4", "FP32"} <= set(written)
    assert any("Net on digits, 1/2/3 seeds" in text for text in written)


@pytest.mark.parametrize(
    ("signs", "two", "images", "hollow", "text"),
    [
        (0.985, 0.99, 400, [True, True, False], "No setting differs from FP32 by more than chance"),
        (0.8, 0.99, 400, [False, True, False], "Hollow: within chance of FP32"),
        (0.985, 0.99, 40_000, [False, False, False], "40,000 test images: one image is 0.0025 points"),
        (0.8, 0.9, 400, [False, False, False], "400 test images: one image is 0.25 points"),
        (0.985, 0.99, None, [False, False, False], "weight bits / activation bits (t: ternary)"),
    ],
)
def test_differences_within_chance_are_hollow_and_said(signs, two, images, hollow, text):
    figure = accuracy_vs_bits.plot(table(images, fp32=(0.9975,), signs=(signs,), two=(two,)))
    assert faults(figure) == []
    assert [mark[2] for mark in markers(figure.axes[0])] == hollow
    (note,) = [found for found in words(figure) if "activation bits" in found]
    assert text in note.replace("\n", " ")
    assert ("chance" in note) == any(hollow)


def test_without_fp32_nothing_is_compared():
    figure = accuracy_vs_bits.plot(table(signs=(0.98,), two=(0.99,)))
    assert faults(figure) == []
    assert not any(mark[2] for mark in markers(figure.axes[0]))
    assert not any("chance" in text or text == "FP32" for text in words(figure))


def test_experiments_of_one_label_are_not_pooled():
    rates = {"optimizer.lr": (0.1, 0.001)}
    rows = [
        row("1/1", accuracy, seed, experiment=f"{rate}", **{"optimizer.lr": rate})
        for rate, found in zip(rates["optimizer.lr"], ((0.2, 0.4), (0.8, 0.8)), strict=True)
        for seed, accuracy in enumerate(found)
    ]
    figure = accuracy_vs_bits.plot(rows)
    assert faults(figure) == []
    labels = [text.get_text() for text in figure.axes[-1].get_xticklabels()]
    assert labels == ["1/1\nlr 0.001", "1/1\nlr 0.1"]
    assert [mean for _, mean, _ in markers(figure.axes[0])] == pytest.approx([80, 30])
    written = " ".join(" ".join(words(figure)).split())
    assert "2 seeds" in written
    assert "settings differ in optimizer.lr too" in written


def test_a_grid_of_widths_is_in_order_and_each_mean_stands_at_its_label(tmp_path):
    weights, inputs = ("32", "t", "8", "1", "2"), ("8", "32", "1", "2")
    values = {f"{w}/{a}": 0.5 + 0.01 * index for index, (w, a) in enumerate((w, a) for w in weights for a in inputs)}
    entries = [
        entry(label, (value, value + 0.02), sizes=(1000 + index, 1000 + index))
        for index, (label, value) in enumerate(values.items())
    ]
    file = tmp_path / "grid.json"
    file.write_text(json.dumps(ledger(entries)))
    figure = accuracy_vs_bits.plot(accuracy_vs_bits.read_rows(file))
    assert faults(figure) == []
    top, bottom = figure.axes
    labels = [text.get_text() for text in bottom.get_xticklabels()]
    assert labels == [f"{w}/{a}" for w in ("1", "t", "2", "8", "32") for a in ("1", "2", "8", "32")]
    means = [100 * (values[label] + 0.01) for label in labels]
    assert [(place, mean) for place, mean, _ in markers(top)] == [
        (at, pytest.approx(mean)) for at, mean in enumerate(means)
    ]
    assert [text.get_text() for text in top.texts] == [f"{mean:.1f}" for mean in means]
    assert [text.get_position()[0] for text in top.texts] == list(range(len(means)))
    heights = [patch.get_height() for patch in bottom.patches]
    assert heights == pytest.approx([1 + 0.001 * list(values).index(label) for label in labels])


@pytest.mark.parametrize("other", [{"data": "mnist"}, {"model": "LeNet5"}])
def test_mixed_data_or_models_are_refused(other):
    with pytest.raises(SystemExit, match=r"the table mixes .* collect the runs of one"):
        accuracy_vs_bits.plot([row("1/1", 0.9), row("2/2", 0.9) | other])


def test_runs_that_were_not_converted_have_no_panel_of_sizes():
    figure = accuracy_vs_bits.plot([row("1/1", 0.9, size=None), row("32/32", 0.95, size=None)])
    assert len(figure.axes) == 1
    assert faults(figure) == []
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["1/1", "32/32"]


@pytest.mark.parametrize("count", [1, 9, 25])
def test_it_can_be_read_with_any_number_of_settings(count):
    rows = [row(f"{i}/{i} method", 0.9 + i / 1000, model="ANetworkWithALongName" * 3) for i in range(count)]
    assert faults(accuracy_vs_bits.plot([*rows, row("32/32", 0.99, model=rows[0]["model"])])) == []


def test_the_committed_figure_says_that_its_differences_are_chance():
    rows = accuracy_vs_bits.read_rows(accuracy_vs_bits.DEFAULT_RESULTS)
    figure = accuracy_vs_bits.plot(rows)
    assert faults(figure) == []
    (note,) = [found for found in words(figure) if "activation bits" in found]
    assert "No setting differs from FP32 by more than chance" in note
    assert to_rgba(style.BLUE) in {to_rgba(line.get_color()) for line in figure.axes[0].lines}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "no ledger"),
        ("{}", "no ledger"),
        ('{"rows": []}', "ledger move=FILE"),
        (json.dumps(ledger([])), "no finished run"),
        (None, "is missing"),
    ],
)
def test_missing_and_other_files_are_named(text, words, tmp_path):
    path = tmp_path / "table.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit, match=words):
        accuracy_vs_bits.main(["--results", str(path)])


def test_the_command_writes_it(tmp_path):
    source, picture = tmp_path / "table.json", tmp_path / "figure.svg"
    source.write_text(json.dumps(ledger([entry("32/32", (0.99,)), entry("1/1", (0.9,))])))
    accuracy_vs_bits.main(["--results", str(source), "--output", str(picture)])
    assert picture.read_text().startswith("<?xml")
