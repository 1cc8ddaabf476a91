"""What seeds say: a mean's confidence interval, and whether two methods differ by more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of the mean of some seeds by Student's t; None for fewer than two.

    >>> [round(end, 4) for end in mean_interval([0.9, 0.92, 0.94])]
    [0.8703, 0.9697]
    """
    from scipy import stats

    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return mean - half, mean + half


@dataclass(frozen=True)
class Paired:
    """The paired t-test of two methods over the seeds that both have.

    difference: mean of first - second. interval: its 95 % confidence interval. p: probability of a difference as large
    if there were none. interval and p are None for fewer than two seeds.
    """

    seeds: int
    difference: float
    interval: tuple[float, float] | None
    p: float | None

    @property
    def within_chance(self) -> bool:
        """Whether the seeds do not tell the two apart, at the level of 95 %; one seed never does."""
        return self.p is None or self.p > 1 - LEVEL


def paired(first: dict[int, float], second: dict[int, float]) -> Paired:
    """Test {seed: value} of one method against another's, over common seeds; ValueError if there is none.

    Runs of one seed share their initial weights' generator, the order of batches and augmentation, so the differences
    vary less than the values do.
    """
    from scipy import stats

    common = sorted(set(first) & set(second))
    if not common:
        raise ValueError("the two have no seed in common")
    gaps = np.array([first[seed] - second[seed] for seed in common])
    mean = float(gaps.mean())
    if len(gaps) < 2:
        return Paired(len(gaps), mean, None, None)
    if np.ptp(gaps) < 1e-12:  # no spread, as of few test images: t is infinite; the exact test of signs is not
        return Paired(len(gaps), mean, (mean, mean), 1.0 if abs(mean) < 1e-12 else 2.0 ** (1 - len(gaps)))
    test = stats.ttest_1samp(gaps, 0.0)  # the paired test is that of the differences against 0
    low, high = test.confidence_interval(LEVEL)
    return Paired(len(gaps), mean, (float(low), float(high)), float(test.pvalue))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p-values of several comparisons adjusted by Holm (1979), so that all together err in 5 % of cases.

    >>> holm([0.01, 0.04, None, 0.03])
    [0.03, 0.06, None, 0.06]
    """
    known = sorted((p, at) for at, p in enumerate(p_values) if p is not None)
    result: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, at) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        result[at] = least
    return result
