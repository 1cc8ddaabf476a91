"""Sums up comparisons of numbers over batches, and keeps what a NaN or an infinity would hide."""

from collections.abc import Callable

import numpy as np


def difference(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return float64 |found - expected|: 0 where both are the same NaN or infinity, infinite where one alone is."""
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(a - b)
    return np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))


def largest_number(x: np.ndarray) -> float:
    """Return the largest finite |x|, 0 if there is none."""
    return float(np.abs(x, where=np.isfinite(x), out=np.zeros(x.shape)).max(initial=0))


class Tally:
    """Sums up the comparisons of one output of one step. planes: bits of a level, 0 for floats."""

    def __init__(self, step: str, source: str, exact: bool, planes: int = 0):
        self.step, self.source, self.exact, self.planes = step, source, exact, planes
        self.elements = self.different = self.explained = 0
        self.largest = self.largest_value = 0.0

    def add(self, found: np.ndarray, expected: np.ndarray, explained: Callable[[], int] = lambda: 0) -> None:
        """Compare two arrays of one shape. explained: how many of the different numbers are so within rounding."""
        largest = max(float(expected.max(initial=0)), -float(expected.min(initial=0)))  # NaN is both
        if np.isfinite(largest) and np.array_equal(found, expected):  # as nearly always: no copies in float64
            self.elements += found.size
            self.largest_value = max(self.largest_value, largest)
            return
        apart = difference(found, expected)
        wrong = int(np.count_nonzero(apart))
        self.elements += apart.size
        self.different += wrong
        self.largest = max(self.largest, float(apart.max(initial=0)))
        self.largest_value = max(self.largest_value, largest_number(np.asarray(expected)))
        self.explained += explained() if wrong else 0
