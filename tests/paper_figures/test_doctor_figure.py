"""The doctor's figure: drawn from any report, and clear about what is none."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from readable import faults, words

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


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("layers", "steps"), [(1, 1), (3, 5), (20, 4)])
def test_it_draws_any_report(layers, steps, tmp_path):
    results = written(tmp_path / "doctor.json", layers, steps, model="Net", data="digits", label="1/1", seed=3)
    content = doctor.read(results)
    figure = doctor.plot(content)
    assert faults(figure) == []
    loss, *panels = [axes for axes in figure.axes if axes.axison]
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [2 / (s + 1) for s in range(steps)], rtol=1e-5)
    assert [axes.get_title() for axes in panels] == [name.replace("_", " ") for name in METRICS]
    for axes in panels:
        curves = axes.lines[:layers]
        expected = np.repeat([[0.1 * i] for i in range(layers)], steps, axis=1)
        np.testing.assert_allclose([line.get_ydata() for line in curves], expected, rtol=1e-5)
        assert all(line.get_xdata().tolist() == content["steps"] for line in curves)
    text = words(figure)
    assert {"conv0", f"conv{layers - 1}", "Net, digits, 1/1, seed 3", "a finding begins"} <= set(text)
    assert doctor.findings_text(content["findings"]) in text
    outputs = [tmp_path / name for name in ("a.png", "b.png")]
    for output in outputs:
        doctor.main(["--results", str(results), "--output", str(output)])
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert plt.imread(outputs[0]).shape[1] == 1800


def test_bounds_are_drawn_where_they_are_near(tmp_path):
    content = doctor.read(written(tmp_path / "doctor.json", 3, 5))
    assert content["bounds"]
    for bound, expected in ((0.3, True), (50.0, False)):
        for name in content["bounds"]:
            content["bounds"][name]["value"] = bound
        figure = doctor.plot(content)
        titles = {axes.get_title().replace(" ", "_"): axes for axes in figure.axes}
        for name in set(content["bounds"]) & set(content["metrics"]):
            rules = [line.get_ydata() for line in titles[name].lines[3:]]
            assert rules == ([[bound, bound]] if expected else []), name
        assert not expected or faults(figure) == []


def test_the_committed_report_can_be_read():
    assert faults(doctor.plot(doctor.read(doctor.DEFAULT_RESULTS))) == []


def test_the_words_below():
    found = [{"layer": f"conv{i}", "text": "31 % of channels constant"} for i in range(10)]
    assert doctor.findings_text(found[:1]) == "Findings: conv0: 31 % of channels constant"
    assert doctor.findings_text(found).endswith("and 2 more")
    assert doctor.findings_text([]) == "Findings: none"


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
