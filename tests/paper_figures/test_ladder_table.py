"""The table of a ladder: what stands in it is what the result says, published numbers beside it."""

import json
from pathlib import Path
from statistics import fmean

import pytest

from paper_figures import ladder_table

COMMITTED = Path(__file__).parents[2] / "results" / "ladder_lenet5_mnist.json"


def cells_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_a_row_for_each_network_of_the_result(tmp_path):
    content = json.loads(COMMITTED.read_text())
    ladder_table.main(["--results", str(COMMITTED), "--output", str(tmp_path / "a.md")])
    head, _, *rows = cells_of((tmp_path / "a.md").read_text())
    assert len(rows) == len(content["rows"])
    exact = fmean(content["rows"][0]["accuracy"])
    for found, row in zip(rows, content["rows"], strict=True):
        told = dict(zip(head, found, strict=True))
        assert (told["rung"], told["engine"], told["W/A"]) == (row["rung"], row["engine"], row["bits"])
        assert told["integer layers"] == f"{row['integer_layers']} of {row['layers']}"
        assert float(told["MB"]) == pytest.approx(row["file_bytes"] / 1e6, abs=0.006)
        assert float(told["ms, 1 thread"]) == pytest.approx(row["latency"][0]["p50_us"] / 1000, abs=0.006)
        assert float(told["lost"]) == pytest.approx(100 * (exact - fmean(row["accuracy"])), abs=0.006)
        assert float(told["as FP32 %"]) == pytest.approx(100 * fmean(row["agreement_with_fp32"]), abs=0.006)


def test_what_failed_and_what_ran_in_floats_is_said_and_published_numbers_stand_beside():
    content = json.loads(COMMITTED.read_text())
    content |= {"data": None, "seeds": []}
    for row in content["rows"]:
        row["accuracy"] = [None]
    int8 = next(row for row in content["rows"] if row["rung"] == "int8")
    content["rows"] = [content["rows"][0], int8 | {"integer_layers": 0}]
    content["rows"] += [{"rung": "int8", "bits": "8/8", "engine": "torchao int8", "failed": "RuntimeError: no"}]
    title, columns, cells = ladder_table.table(content, "resnet50")
    assert "of random weights, batch 1" in title
    assert "accuracy %" not in columns and columns[-3:] == ["MB published", "ms published", "lost, published"]
    assert [len(row) for row in cells] == [len(columns)] * 3
    assert cells[0][-3:] == ["97", "85", "0"] and cells[1][-3:] == ["24", "42", "< 2"]
    assert cells[1][3].endswith("(floats)") and cells[2][3] == "RuntimeError: no"


def test_the_command_writes_latex_and_names_bad_files(tmp_path):
    ladder_table.main(["--results", str(COMMITTED), "--output", str(tmp_path / "a.tex"), "--published", "resnet50"])
    text = (tmp_path / "a.tex").read_text()
    assert r"$<$ 2 \\" in text and text.count("\\\\\n") == len(json.loads(COMMITTED.read_text())["rows"]) + 1
    (tmp_path / "b.json").write_text('{"rows": [{}]}')
    for name in ("b.json", "none.json"):
        with pytest.raises(SystemExit, match="is no result of"):
            ladder_table.main(["--results", str(tmp_path / name), "--output", str(tmp_path / "b.md")])
    with pytest.raises(SystemExit, match="should end in"):
        ladder_table.main(["--results", str(COMMITTED), "--output", str(tmp_path / "b.txt")])
