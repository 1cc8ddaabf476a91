"""Bit-plane codes: integer levels written as sums of scaled bits.

level = sum_p multipliers[p] * plane[p], with planes in {-1,+1} (signed) or {0,1} (unsigned). The *code* of a level is
the integer whose bit p is plane p's bit; a signed plane stores bit 1 for -1. Examples: sign: signed (1,); k-bit
code: unsigned (1, 2, 4, ...); k-bit symmetric weight: signed (1, 2, 4, ...); ternary: unsigned (1, -1).
"""

import functools
from collections.abc import Sequence

import numpy as np

MAX_PLANES = 8


def check_planes(multipliers: Sequence[int], signed: bool) -> tuple[int, ...]:
    """Return the multipliers as a tuple of ints, or raise ValueError."""
    if isinstance(multipliers, (str, bytes)) or not hasattr(multipliers, "__iter__"):
        raise TypeError(f"multipliers must be a sequence of integers, got {multipliers!r}")
    given = tuple(multipliers)
    if not all(isinstance(m, (int, float, np.integer, np.floating)) and abs(m) <= 1 << 15 for m in given):
        raise ValueError(f"multipliers must be non-zero integers of at most 16 bits, got {given}")
    result = tuple(int(m) for m in given)
    if not 1 <= len(result) <= MAX_PLANES:
        raise ValueError(f"a tensor has 1 to {MAX_PLANES} bit planes, got {len(result)} multipliers")
    if any(m == 0 or abs(m) > 1 << 15 for m in result) or any(a != b for a, b in zip(result, given, strict=True)):
        raise ValueError(f"multipliers must be non-zero integers of at most 16 bits, got {given}")
    if not isinstance(signed, (bool, np.bool_)):
        raise TypeError(f"signed must be True ({{-1,+1}} planes) or False ({{0,1}} planes), got {signed!r}")
    return result


@functools.cache
def level_of_code(multipliers: tuple[int, ...], signed: bool) -> np.ndarray:
    """Return int64 (2**P,): the level of every code."""
    codes = np.arange(1 << len(multipliers))
    bits = (codes[:, None] >> np.arange(len(multipliers))) & 1
    planes = 1 - 2 * bits if signed else bits
    levels = planes @ np.array(multipliers, np.int64)
    levels.flags.writeable = False
    return levels


@functools.cache
def code_of_level(multipliers: tuple[int, ...], signed: bool) -> tuple[int, np.ndarray]:
    """Return (lowest level, int16 table): table[level - lowest] is the smallest code of a level, -1 if it has none."""
    levels = level_of_code(multipliers, signed)
    lowest = int(levels.min())
    table = np.full(int(levels.max()) - lowest + 1, -1, np.int16)
    for code in range(len(levels) - 1, -1, -1):
        table[levels[code] - lowest] = code
    table.flags.writeable = False
    return lowest, table


def check_codes(codes: np.ndarray, planes: int) -> np.ndarray:
    """Return uint8 codes of so many planes, or raise TypeError or ValueError."""
    if codes.dtype != np.uint8:
        raise TypeError(f"codes must be uint8, got dtype {codes.dtype}")
    if codes.size and int(codes.max()) >> planes:
        raise ValueError(f"code {codes.max()} does not fit {planes} planes")
    return codes


def encode(levels: np.ndarray, multipliers: tuple[int, ...], signed: bool) -> np.ndarray:
    """Return uint8 codes of integer levels, same shape. ValueError names the first level that has no code."""
    if not np.issubdtype(levels.dtype, np.integer):
        raise TypeError(f"levels must be integers, got dtype {levels.dtype}")
    lowest, table = code_of_level(multipliers, signed)
    inside = (levels >= lowest) & (levels < lowest + len(table))
    # In 64 bits: a small kind of integer does not hold the difference.
    codes = table[np.where(inside, levels.astype(np.int64) - lowest, 0)]
    bad = ~inside | (codes < 0)
    if bad.any():
        kind = "{-1,+1}" if signed else "{0,1}"
        raise ValueError(f"level {int(levels[bad][0])} is not a sum of {kind} planes times {multipliers}")
    return codes.astype(np.uint8)
