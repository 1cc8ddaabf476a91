"""Whether two accuracies differ by more than the choice of test images explains."""

import math

# Of the normal distribution, for 95 %.
Z = 1.959964


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share of `count` trials (Wilson 1927)."""
    middle = share + Z**2 / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return (middle - half) / (1 + Z**2 / count), (middle + half) / (1 + Z**2 / count)


def difference(first: float, second: float, count: int, second_count: int | None = None) -> tuple[float, float]:
    """Return the 95 % interval of `first` - `second`, two shares of `count` (and `second_count`) trials.

    Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10: it holds for
    shares near 1 and for few trials too. Two networks that are tested on the same images differ by less than
    independent ones, so the interval is on the safe side.
    """
    (low, high), (other_low, other_high) = wilson(first, count), wilson(second, second_count or count)
    gap = first - second
    below = math.hypot(first - low, other_high - second)
    return gap - below, gap + math.hypot(high - first, second - other_low)


def within_chance(first: float, second: float, count: int) -> bool:
    """Say whether the interval of the difference of two accuracies on `count` images holds 0."""
    low, high = difference(first, second, count)
    return low <= 0 <= high
