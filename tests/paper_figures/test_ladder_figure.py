"""The figure of the ladder: the picture from a result file."""

import json

import pytest
from readable import faults, words

from paper_figures import ladder

LONG_CPU = "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz with a name that goes on and on beyond the width of a page"


def row(rung, bits, engine="packed", number=1, accuracy=(0.9, 0.92), integer_layers=3, **more):
    latency = [{"threads": t, "p50_us": 100.0 * number / t, "p90_us": 130.0 * number / t} for t in (2, 1)]
    return {
        **{"rung": rung, "bits": bits, "engine": engine, "integer_layers": integer_layers, "layers": 3},
        **{"file_bytes": 1000 * number, "accuracy": list(accuracy), "agreement_with_fp32": [0.5, 0.7]},
        **{"latency": latency, **more},
    }


def content(rows, **more):
    found = {"model": "LeNet5", "data": "mnist", "seeds": [0, 1], "split": "test", "batch": 1, "rows": rows}
    return {**found, "hardware": {"cpu": LONG_CPU}, **more}


ROWS = [
    row("fp32", "32/32", "pytorch", 16, integer_layers=0),
    row("fp32", "32/32", "onnxruntime fp32", 15, integer_layers=0),
    row("int8", "8/8", "packed", 4),
    row("int8", "8/8", "openvino int8", 5),
    row("int8", "8/8", "onnxruntime int8", 99, integer_layers=0),
    {"rung": "int8", "bits": "8/8", "engine": "torchao int8", "failed": "torchao not installed"},
    row("int8_dynamic", "8/8", "torchao int8", 6),
    row("xnor", "1/1", "packed", 1, accuracy=(0.6, 0.8)),
]


def read(tmp_path, given):
    (tmp_path / "ladder.json").write_text(json.dumps(given))
    return ladder.read(tmp_path / "ladder.json")


def test_the_picture(tmp_path):
    figure = ladder.plot(read(tmp_path, content(ROWS)))
    assert faults(figure) == []
    said = words(figure)
    assert {"fp32  32/32", "int8 dynamic  8/8", "xnor  1/1", "bitplanes", "test accuracy (%)"} <= set(said)
    assert "microseconds, 1 thread" in said
    assert len(figure.axes) == 3
    shown = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() not in ("|", "None")]
    assert sorted(shown) == [1, 4, 5, 6, 15, 16]  # not the 99 kB of what was not quantized


def test_what_a_dot_is():
    assert ladder.latency_of(ROWS[-1]) == (100, 100, 130)
    assert ladder.share_of(ROWS[-1]) == pytest.approx((70, 60, 80))
    assert ladder.share_of(row("xnor", "1/1", accuracy=[None])) == pytest.approx((60, 50, 70))
    assert ladder.latency_of(row("xnor", "1/1", latency=[])) is None


def test_random_weights_without_times(tmp_path):
    rows = [row(f"r{i}", "4/4", number=i + 1, accuracy=[None], latency=[]) for i in range(12)]
    figure = ladder.plot(read(tmp_path, content(rows, seeds=[], data=None, split=None)))
    assert faults(figure) == []
    assert len(figure.axes) == 2
    assert "classes as in FP32 (%)" in words(figure)


@pytest.mark.parametrize(
    ("given", "words_of_it"), [({}, "no result of"), ({"rows": [], "hardware": {"cpu": ""}}, "no row that ran")]
)
def test_files_that_are_no_result(given, words_of_it, tmp_path):
    with pytest.raises(SystemExit, match=words_of_it):
        read(tmp_path, given)


def test_the_command_writes_a_picture(tmp_path):
    (tmp_path / "ladder.json").write_text(json.dumps(content(ROWS)))
    ladder.main(["--results", str(tmp_path / "ladder.json"), "--output", str(tmp_path / "figure.png")])
    assert (tmp_path / "figure.png").stat().st_size > 10_000
