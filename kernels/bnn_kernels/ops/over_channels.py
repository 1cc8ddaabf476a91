"""Normalization, softmax, and the largest number, over the channels of each position."""

import math
from typing import NamedTuple

import numpy as np

from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.compile.simd import float32x16
from bnn_kernels.compile.simd.exponentials import exp_of_negative
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty

# Sums that are kept at a time: their additions do not wait for each other, and many small numbers add up precisely.
PARTS = 8
LANES = 16
# More numbers of one position than this are shared among threads.
LONG = 8192


class Normal(NamedTuple):
    """Channels of a position, and whether their mean is taken off."""

    channels: int
    center: int


@inline
def _sum(x, power):
    """The sum of float32 numbers, or of their squares if power is 2, in eight parts."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float32(0)
    whole = len(x) - len(x) % PARTS
    for i in range(0, whole, PARTS):
        a, b, c, d = x[i], x[i + 1], x[i + 2], x[i + 3]
        e, f, g, h = x[i + 4], x[i + 5], x[i + 6], x[i + 7]
        if power == 2:
            a, b, c, d, e, f, g, h = a * a, b * b, c * c, d * d, e * e, f * f, g * g, h * h
        s0, s1, s2, s3, s4, s5, s6, s7 = s0 + a, s1 + b, s2 + c, s3 + d, s4 + e, s5 + f, s6 + g, s7 + h
    for i in range(whole, len(x)):
        s0 += x[i] * x[i] if power == 2 else x[i]
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


@jit
def _normalize(x, y, eps, size, first, last):
    """Positions of y flat (positions, channels): (x - mean) / sqrt(mean of its squares + eps)."""
    size = Normal(*size)
    count = np.float32(size.channels)
    for row in range(first, last):
        given = x[row * size.channels : (row + 1) * size.channels]
        made = y[row * size.channels : (row + 1) * size.channels]
        mean = np.float32(0)
        if size.center:
            mean = _sum(given, 1) / count
        for i in range(size.channels):
            made[i] = given[i] - mean
        spread = np.float32(math.sqrt(_sum(made, 2) / count + eps))
        for i in range(size.channels):
            made[i] = made[i] / spread


@inline
def _largest_magnitude(bits):
    """The largest |x|, as its bits, of float32 numbers of which these are the bits; that of a NaN if there is one.

    Without their signs, floats are in the order of their bits, with NaN behind infinity.
    """
    largest = np.uint32(0)
    for i in range(len(bits)):
        largest = max(largest, np.uint32(bits[i] & np.uint32(0x7FFFFFFF)))
    return largest


@jit
def _magnitudes(bits, y, count, parts, first, last):
    """Parts of y flat (positions, parts): the largest |x| of their shares of bits flat (positions, count), as bits."""
    share = -(-count // parts)
    for part in range(first, last):
        row, place = part // parts, part % parts
        end = min((place + 1) * share, count)
        y[part] = _largest_magnitude(bits[row * count + place * share : row * count + end])


@jit
def _absmax(bits, y, smallest, levels, count, first, last):
    """Positions of y flat: the largest |x| of bits flat (positions, count), at least `smallest`, over `levels`."""
    largest = np.empty(1, np.uint32)
    numbers = largest.view(np.float32)
    for row in range(first, last):
        largest[0] = _largest_magnitude(bits[row * count : (row + 1) * count])
        number = numbers[0]
        y[row] = number if number != number else max(number, smallest) / levels


@inline
def _largest(lanes):
    """The largest of sixteen numbers, which may be NaN if one of them is."""
    a = max(max(lanes[0], lanes[1]), max(lanes[2], lanes[3]))
    b = max(max(lanes[4], lanes[5]), max(lanes[6], lanes[7]))
    c = max(max(lanes[8], lanes[9]), max(lanes[10], lanes[11]))
    d = max(max(lanes[12], lanes[13]), max(lanes[14], lanes[15]))
    return max(max(a, b), max(c, d))


@jit
def _softmax(x, y, channels, log, first, last):
    """Positions of y flat (positions, channels): exp(x - m) over its sum, m the largest x; if log, its logarithm."""
    powers = np.empty(-(-channels // LANES) * LANES, np.float32)
    lanes = np.empty(LANES, np.float32)
    for row in range(first, last):
        given = x[row * channels : (row + 1) * channels]
        made = y[row * channels : (row + 1) * channels]
        for i in range(channels):
            powers[i] = given[i]
        powers[channels:] = -np.inf
        most = float32x16.load(powers, np.uint64(0))
        for i in range(LANES, len(powers), LANES):
            most = float32x16.maximum(most, float32x16.load(powers, np.uint64(i)))
        float32x16.store(lanes, np.uint64(0), most)
        largest = _largest(lanes)
        lanes[0] = -largest
        less = float32x16.broadcast(lanes, np.uint64(0))
        sums = float32x16.zero()
        for i in range(0, len(powers), LANES):
            power = exp_of_negative(float32x16.add(float32x16.load(powers, np.uint64(i)), less))
            float32x16.store(powers, np.uint64(i), power)
            sums = float32x16.add(sums, power)
        float32x16.store(lanes, np.uint64(0), sums)
        total = _sum(lanes, 1)
        if log:
            logarithm = np.float32(math.log(total))
            for i in range(channels):
                made[i] = given[i] - largest - logarithm
        else:
            for i in range(channels):
                made[i] = powers[i] / total


def normalize(x: np.ndarray, y: np.ndarray, eps: np.float32, center: bool) -> None:
    """Write the normalized channels, the last axis, of contiguous float32 x to y."""
    channels = x.shape[-1]
    size = Normal(channels, int(center))
    run_rows(_normalize, x.size // channels, x.size // 2, x.reshape(-1), y.reshape(-1), eps, tuple(size))


def absmax(x: np.ndarray, y: np.ndarray, smallest: np.float32, levels: np.float32) -> None:
    """Write max(max |x|, smallest) / levels of each row of contiguous float32 x to y; NaN where the row has one.

    A row is x.size // y.size numbers that follow each other: the channels of a position, or a whole image.
    """
    bits, count = x.reshape(-1).view(np.uint32), x.size // max(y.size, 1)
    if count > LONG:
        parts = -(-count // LONG)
        largest = empty((y.size * parts,), np.uint32)
        run_rows(_magnitudes, y.size * parts, x.size, bits, largest, count, parts)
        bits, count = largest, parts
    run_rows(_absmax, y.size, bits.size, bits, y.reshape(-1), smallest, levels, count)


def softmax(x: np.ndarray, y: np.ndarray, log: bool) -> None:
    """Write exp(x) over its sum along the last axis of contiguous float32 x to y, or the logarithm of that.

    Shares below 1.7e-38 are 0: float32 has them, but without its full precision, and CPUs are slow with them.
    """
    channels = x.shape[-1]
    run_rows(_softmax, x.size // channels, x.size, x.reshape(-1), y.reshape(-1), channels, int(log))
