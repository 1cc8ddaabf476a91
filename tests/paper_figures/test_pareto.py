"""Quality against cost: points, intervals and fronts are those of the ledger."""

import json
from pathlib import Path

import numpy as np
import pytest
from quick_hydra import parsed_once
from readable import faults, words

from paper_figures import pareto, xnor_net_tables
from paper_figures.ledger_file import read_ledger
from paper_figures.tradeoff import front

RESULTS = Path(__file__).parents[2] / "results"
COMMITTED = RESULTS / "digits_accuracy_vs_bits.json"
MANY = RESULTS / "accuracy_vs_bits_mnist.json"


def test_points_are_means_with_intervals_and_sizes():
    entries = read_ledger(COMMITTED)
    figure = pareto.plot(entries)
    (axis,) = figure.axes
    drawn = sorted((float(bar.lines[0].get_xdata()[0]), float(bar.lines[0].get_ydata()[0])) for bar in axis.containers)
    sizes = {entry["label"]: max(run["file_bytes"] for run in entry["runs"]) for entry in entries}
    wanted = sorted(
        (sizes[entry["label"]], 100 * np.mean([run["value"] for run in entry["runs"]])) for entry in entries
    )
    assert np.allclose(drawn, wanted)
    ends = sorted(tuple(bar.lines[2][0].get_segments()[0][:, 1]) for bar in axis.containers)
    assert np.allclose(ends, sorted(tuple(100 * end for end in entry["interval"]) for entry in entries), atol=1e-3)
    assert {"test accuracy (%)", "bytes of the packed file", *sizes} <= set(words(figure))


def test_latencies_make_a_second_panel():
    entries = read_ledger(COMMITTED)
    for at, entry in enumerate(entries):
        entry["runs"][0]["latency_us"] = {
            "median": 10.0 + at,
            "low": 9.0 + at,
            "high": 12.0 + at,
            "calls": 5,
            "cpu": "x",
        }
    _, right = pareto.plot(entries).axes
    assert sorted(float(bar.lines[0].get_xdata()[0]) for bar in right.containers) == [
        10.0 + at for at in range(len(entries))
    ]
    sideways = [bar.lines[2][0].get_segments()[0][:, 0].tolist() for bar in right.containers]
    assert sorted(sideways) == [[9.0 + at, 12.0 + at] for at in range(len(entries))]


def test_bits_a_token_are_better_when_lower():
    entries = read_ledger(COMMITTED)[:2]
    for entry, value in zip(entries, (2.5, 2.0), strict=True):
        entry |= {"metric": "test_bits_per_character", "interval": None, "runs": entry["runs"][:1]}
        entry["runs"][0] |= {"value": value, "file_bytes": round(1000 * value)}
    assert [point.mean for point in pareto.by_bytes(entries)] == [2.5, 2.0]
    figure = pareto.plot(entries)
    assert "test, bits a token" in words(figure)
    line = figure.axes[0].lines[0]
    assert list(line.get_ydata()) == [2.0]  # the smaller file is better too


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["entries"].clear(), "has no entries"),
        (lambda content: content["entries"][0].update(data="mnist"), "mixes DigitsCNN on digits, DigitsCNN on mnist"),
        (lambda content: content.update(schema="x"), "is no ledger"),
        (lambda content: [e["runs"][0].pop("file_bytes") for e in content["entries"][:1]] and None, None),
    ],
)
def test_mistakes_are_told(change, message, tmp_path):
    content = json.loads(COMMITTED.read_text())
    change(content)
    file, picture = tmp_path / "ledger.json", tmp_path / "a.svg"
    file.write_text(json.dumps(content))
    if message is None:
        pareto.main(["--results", str(file), "--output", str(picture)])
        assert picture.exists()
        return
    with pytest.raises(SystemExit, match=message):
        pareto.main(["--results", str(file), "--output", str(picture)])
    with pytest.raises(SystemExit, match="is missing"):
        pareto.main(["--results", str(tmp_path / "no.json")])
    assert not picture.exists()


@pytest.mark.parametrize("ledger", [COMMITTED, MANY])
def test_the_committed_figures_can_be_read(ledger):
    assert [fault for fault in faults(pareto.plot(read_ledger(ledger))) if "line" not in str(fault)] == []


def test_of_many_points_those_of_the_front_are_named():
    entries = read_ledger(MANY)
    figure = pareto.plot(entries)
    labels = {entry["label"] for entry in entries}
    for axis, points in zip(figure.axes, (pareto.by_bytes(entries), pareto.by_latency(entries)), strict=True):
        assert len(points) == len(entries) == 30
        assert sorted(text.get_text() for text in axis.texts) == sorted(point.name for point in front(points))
        assert len(axis.containers) == 30
    assert labels >= {text.get_text() for axis in figure.axes for text in axis.texts}


# -- XNOR-Net's tables ------------------------------------------------------------------------------------------------


def entry_of(model, method, values, order=None):
    entry = read_ledger(COMMITTED)[0]
    entry |= {"data": "imagenet", "model": model, "method": method, "config": {"model": {"order": order}}}
    runs = [{**entry["runs"][0], "seed": seed, "value": value} for seed, value in enumerate(values)]
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return entry | {"runs": runs, "seeds": list(range(len(values))), "mean": float(np.mean(values)), "std": std}


def test_tables_show_ours_beside_the_paper():
    entries = [
        entry_of("AlexNet", "xnor", [0.31], "cbap"),
        entry_of("AlexNet", "xnor", [0.44, 0.45], "bacp"),
        entry_of("ResNet18", "fp32", [0.7]),
    ]
    text = xnor_net_tables.markdown(entries)
    assert "| C-B-A-P | 1/1 | 30.3 | 57.5 | 31.00 | 1 | +0.70 |" in text
    assert text.count("| 44.2 | 69.2 | 44.50 ± 0.71 | 2 | +0.30 |") == 2  # tables 1 and 3b
    assert "| full precision | 32/32 | 69.3 | 89.2 | 70.00 | 1 | +0.70 |" in text
    assert "not yet run: experiment=bwn_alexnet_imagenet" in text
    tex = xnor_net_tables.latex(entries)
    assert r"44.50 $\pm$ 0.71 & 2 & +0.30 \\" in tex and r"bwn\_alexnet\_imagenet" in tex
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == len(xnor_net_tables.TABLES)


def test_every_row_has_a_recipe_of_its_own_setting():
    from hydra import compose, initialize_config_dir

    from experiments import cli

    with parsed_once(), initialize_config_dir(str(cli.CONFIGS), **cli.VERSION_BASE):
        for line in {line for lines in xnor_net_tables.TABLES.values() for line in lines if line.recipe}:
            config = compose("train", [f"experiment={line.recipe}"])
            assert config.published.value == pytest.approx(line.top1 / 100)
            assert (config.model._target_.rpartition(".")[2], config.quantizer.name) == (line.model, line.quantizer)
            assert all(config.model[key.removeprefix("model.")] == value for key, value in line.options)


def test_the_command_writes_both_kinds(tmp_path):
    for name in ("a.md", "new/b.tex"):
        xnor_net_tables.main(["--results", str(COMMITTED), "--output", str(tmp_path / name)])
        assert "C-B-A-P" in (tmp_path / name).read_text()
    with pytest.raises(SystemExit, match=r"should end in \.md, \.tex"):
        xnor_net_tables.main(["--output", str(tmp_path / "c.txt")])
    with pytest.raises(SystemExit, match=r"no\.json"):
        xnor_net_tables.main(["--results", str(tmp_path / "no.json")])
