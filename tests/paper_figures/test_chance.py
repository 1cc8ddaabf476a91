"""The interval of a difference against the table of the paper that defines it, and by counting."""

import numpy as np
import pytest

from paper_figures.chance import difference, wilson, within_chance


@pytest.mark.parametrize(
    ("first", "n", "second", "m", "expected"),
    [  # Newcombe 1998, table II, method 10
        (56, 70, 48, 80, (0.0524, 0.3339)),
        (9, 10, 3, 10, (0.1705, 0.8090)),
        (0, 10, 0, 20, (-0.1611, 0.2775)),
        (10, 10, 0, 20, (0.6791, 1.0)),
    ],
)
def test_the_papers_examples(first, n, second, m, expected):
    assert difference(first / n, second / m, n, m) == pytest.approx(expected, abs=6e-5)


def test_wilson_is_where_the_score_test_has_its_bound():
    low, high = wilson(0.99, 400)
    for bound in (low, high):
        assert abs(0.99 - bound) == pytest.approx(1.959964 * np.sqrt(bound * (1 - bound) / 400))


def test_equal_networks_seldom_differ_by_more_than_chance():
    """Two networks that are right on 99 % of all images, tested on 400: about 5 % of the comparisons are called."""
    right = np.random.default_rng(0).binomial(400, 0.99, (2, 4000)) / 400
    called = np.mean([not within_chance(a, b, 400) for a, b in right.T])
    assert 0.01 < called < 0.06


def test_large_differences_are_none_of_chance():
    assert not within_chance(0.99, 0.95, 400)
    assert within_chance(0.9975, 0.9858, 400)
    assert not within_chance(0.9975, 0.9858, 4000)
