"""The doctor's figure: drawn from any report, and clear about what is none."""

import json

import pytest

from bnn.doctor import METRICS, Finding, Record, report
from paper_figures import doctor


def written(path, layers, steps, **more):
    records = [
        Record(s, 2.0 / (s + 1), {f"conv{i}": {m: 0.1 * i for m in METRICS} for i in range(layers)})
        for s in range(steps)
    ]
    found = [Finding(f"conv{i}", "constant channels", 0.3, "31 % of channels constant", "try") for i in range(layers)]
    path.write_text(json.dumps(report(records, found, 1) | more))
    return path


@pytest.mark.parametrize(("layers", "steps"), [(1, 1), (3, 5), (20, 4)])
def test_it_draws_any_report(layers, steps, tmp_path):
    results = written(tmp_path / "doctor.json", layers, steps, model="Net", data="digits", label="1/1", seed=3)
    outputs = [tmp_path / name for name in ("a.png", "b.png")]
    for output in outputs:
        doctor.main(["--results", str(results), "--output", str(output)])
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert len(outputs[0].read_bytes()) > 20_000


def test_the_words_below():
    found = [{"layer": f"conv{i}", "text": "31 % of channels constant"} for i in range(10)]
    assert doctor._findings(found[:1]) == "Findings: conv0: 31 % of channels constant"
    assert doctor._findings(found).endswith("and 2 more")
    assert doctor._findings([]) == "Findings: none"


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "is missing"), ("[", "no report"), ("{}", "no report of the doctor: bounds"), ("[]", "bounds")],
)
def test_what_is_no_report(content, words, tmp_path):
    path = tmp_path / "doctor.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit, match=words):
        doctor.main(["--results", str(path)])
