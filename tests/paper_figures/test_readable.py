"""The check of figures finds what it should, and finds nothing in a plain figure."""

import pytest
from readable import faults

from paper_figures import style


def figure():
    drawn, axes = style.panels(1, 1, 3)
    axes.plot([0, 1], [0, 1])
    axes.set_title("a title")
    return drawn, axes


def over_each_other(axes):
    axes.text(0.5, 0.1, "one")
    axes.text(0.51, 0.12, "other")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda axes: None, None),
        (lambda axes: axes.text(0.6, 0.2, "beside the line"), None),
        (lambda axes: axes.text(0.5, 0.5, "on the line"), "a line through 'on the line'"),
        (lambda axes: axes.axhline(0.25) and axes.text(0.7, 0.24, "on the rule"), "a line through 'on the rule'"),
        (lambda axes: axes.errorbar(0.8, 0.2, 0.1) and axes.text(0.78, 0.2, "bar"), "a line through 'bar'"),
        (lambda axes: axes.plot(0.7, 0.2, "o") and axes.text(0.69, 0.18, "dot"), "a line through 'dot'"),
        (over_each_other, "over each other: 'one' and 'other'"),
        (lambda axes: axes.figure.suptitle("long " * 40), f"cut: {'long ' * 40!r}"),
        (lambda axes: axes.text(0.7, 0.2, "tiny", fontsize=6), "small: 'tiny'"),
        (lambda axes: axes.figure.set_figwidth(12), "12.0 inches wide"),
    ],
)
def test_faults(spoil, words):
    drawn, axes = figure()
    spoil(axes)
    assert faults(drawn) == ([] if words is None else [words])
