"""Levels of x / step without a division: a product with 1 / step, corrected by what it leaves over.

A division takes a CPU as long as ten multiplications, and is what an epilogue that makes levels would mostly do. With
y = 1 / step and all operations of float32, fused ones rounded once,

    q = x * y,     r = x - q * step,     q + r * y

is x / step rounded to the nearest, or off by very little (Markstein 1990, "Computation of elementary functions on the
IBM RISC System/6000 processor", section 5). That changes a level only where a quotient is next to a half, and there are
few halves: `quotient_of` tries all numbers near them.
"""

import functools
from typing import NamedTuple

import numpy as np

from bnn_kernels.bits.uniform import UniformLevels

# Floats tried on each side of one at which a level begins. The corrected quotient is off by two units in the last place
# at most, so that one further away has the level that a division gives it.
NEAR = 16
# Between these powers of two neither 1 / step nor what is left over loses bits to an underflow.
LEAST_STEP, MOST_STEP = 2.0**-60, 2.0**60


class Quotient(NamedTuple):
    """factor: 1 / step, or what is multiplied by. least, most: what lies beyond has the lowest or highest level."""

    factor: np.float32
    least: np.float32
    most: np.float32


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return a * b + c of float32 numbers, rounded once.

    The product is exact in float64, and the sum is rounded to odd there, after which rounding to float32 is that of the
    exact sum (Boldo and Melquiond 2008, "Emulation of a FMA and correctly rounded sums").
    """
    product, other = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + other
    part = total - product
    rest = (product - (total - part)) + (other - part)
    even = (total.view(np.int64) & 1) == 0
    odd = np.where((rest != 0) & even, np.nextafter(total, np.copysign(np.inf, rest)), total)
    return odd.astype(np.float32)


def _corrected(x: np.ndarray, step: np.float32, by: Quotient) -> np.ndarray:
    """Return the levels, as kernels compute them."""
    x = np.minimum(np.maximum(x, by.least), by.most)
    q = x * by.factor
    left = fused(q, np.full_like(q, -step), x)
    return np.rint(fused(left, np.full_like(q, by.factor), q))


def _neighbours(x: np.ndarray) -> np.ndarray:
    """Return float32 numbers and those next to them, `NEAR` on each side."""
    places = x.astype(np.float32).view(np.int32)[:, None] + np.arange(-NEAR, NEAR + 1, dtype=np.int32)
    return places.view(np.float32).reshape(-1)


def _beyond(levels: UniformLevels, outwards: int) -> np.float32:
    """Return a float at the edge of what is clamped: it has the outermost level, as has all that lies beyond it."""
    factor, level = np.float32(levels.factor), np.float32(levels.low if outwards < 0 else levels.high)
    x = level * factor if levels.divides else level / factor
    for _ in range(4):  # it is within one unit of it
        if ((x / factor if levels.divides else x * factor) - level) * outwards >= 0:
            break
        x = np.nextafter(x, np.float32(outwards * np.inf))
    return x


@functools.lru_cache(maxsize=4096)
def product_of(levels: UniformLevels) -> Quotient | None:
    """Return what gives the levels of x * factor if x is clamped beforehand; None if they divide."""
    factor = np.float32(levels.factor)
    if levels.divides or not LEAST_STEP <= factor <= MOST_STEP:
        return None
    return Quotient(factor, _beyond(levels, -1), _beyond(levels, 1))


@functools.lru_cache(maxsize=4096)
def quotient_of(levels: UniformLevels) -> Quotient | None:
    """Return what gives the levels of x / factor for every float32 x; None if they do not divide, or nothing does."""
    step = np.float32(levels.factor)
    if not levels.divides or not LEAST_STEP <= step <= MOST_STEP:
        return None
    by = Quotient(np.float32(1) / step, _beyond(levels, -1), _beyond(levels, 1))
    halves = (np.arange(levels.low + 1, levels.high + 1) - 0.5) * np.float64(step)
    ends = np.array([by.least, by.most])
    tiny, huge = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    others = np.array([0.0, -0.0, tiny, -tiny, huge, -huge, np.inf, -np.inf], np.float32)
    tried = np.concatenate([_neighbours(halves), _neighbours(ends[ends != 0]), others])
    with np.errstate(over="ignore", under="ignore"):
        expected = np.rint(np.clip(tried / step, np.float32(levels.low), np.float32(levels.high)))
        return by if np.array_equal(_corrected(tried, step, by), expected) else None
