"""Checks of what users hand to public functions: one clear TypeError or ValueError, never garbage or a crash.

Compiled kernels index memory without bounds checks, so nothing may reach them that was not looked at here. All checks
look at ranks, shapes and dtypes only and cost less than a microsecond; where a kernel would have to be compiled anew
for an array that can only be read, or could not read it (foreign byte order), a copy is returned.
"""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

# Strides, padding and dilation beyond this are nobody's, and sizes computed from them stay far within 64 bits.
LARGEST_STEP = 1 << 20


def plain(array: np.ndarray) -> np.ndarray:
    """Return an array in this machine's byte order that can be written, itself if it is one already."""
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    return array if array.flags.writeable else array.copy()


def array(value: Any, name: str, lists: bool = True, writable: bool = True) -> np.ndarray:
    """Return a value as a plain array; lists: whether lists of numbers are welcome too; writable: whether it must be.

    TypeError on what is no array of numbers, on masks (they would be ignored) and on unknown kinds of numbers.
    """
    if type(value) is np.ndarray:
        found = value
    elif isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be ignored; fill it first")
    elif isinstance(value, np.ndarray) or (lists and isinstance(value, (list, tuple, int, float, np.generic))):
        try:
            found = np.asarray(value)
        except ValueError:
            raise ValueError(f"{name} must be an array, its rows differ in length") from None
        if type(found) is not np.ndarray:
            found = found.view(np.ndarray)
    else:
        raise TypeError(f"{name} must be a NumPy array, got {type(value).__name__}")
    if found.dtype.kind not in "fiub" or found.dtype.itemsize > 8:
        raise TypeError(f"{name} must be an array of numbers of at most 64 bits, got dtype {found.dtype}")
    return plain(found) if writable or not found.dtype.isnative else found


def floats(value: Any, name: str, shapes: str, ranks: Sequence[int], lists: bool = True, hint: str = "") -> np.ndarray:
    """Return an array of float16, float32 or float64 of one of these ranks.

    shapes: the ranks in words, such as "(N, K)"; hint: what to do with something else.
    """
    found = array(value, name, lists)
    if found.dtype.kind != "f":
        raise TypeError(f"{name} must be floats, got dtype {found.dtype}{hint}")
    if found.ndim not in ranks:
        raise ValueError(f"{name} must have shape {shapes}, got {found.shape}")
    return found


def integers(value: Any, name: str, shapes: str, ranks: Sequence[int]) -> np.ndarray:
    """Return an array of integers of one of these ranks."""
    found = array(value, name)
    if found.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {found.dtype}")
    if found.ndim not in ranks:
        raise ValueError(f"{name} must have shape {shapes}, got {found.shape}")
    return found


def exactly(value: Any, name: str, dtype: Any, shape: Sequence[int | None]) -> np.ndarray:
    """Return a contiguous array of this dtype and shape (None: any extent); ValueError on another one."""
    found = array(value, name)
    fits = found.ndim == len(shape) and all(b is None or a == b for a, b in zip(found.shape, shape, strict=True))
    if found.dtype != dtype or not fits:
        sides = ", ".join("any" if side is None else str(side) for side in shape)
        wanted = f"{np.dtype(dtype)} ({sides}{',' if len(shape) == 1 else ''})"
        raise ValueError(f"{name} must be {wanted}, got {found.dtype} {found.shape}")
    return np.ascontiguousarray(found)


def no_nan(value: np.ndarray, name: str) -> np.ndarray:
    """Return an array of floats; ValueError if one is a NaN."""
    if np.isnan(value).any():
        raise ValueError(f"NaN in {name}: a NaN has no sign")
    return value


def integer(value: Any, name: str, smallest: int | None = None, largest: int | None = None) -> int:
    """Return an int within bounds; 2.0 counts as 2. ValueError names the argument."""
    try:
        whole = int(value) if isinstance(value, float) else operator.index(value)
        good = not isinstance(value, (bool, np.bool_)) and whole == value
    except (TypeError, ValueError, OverflowError):
        good = False
    if not good or (smallest is not None and whole < smallest) or (largest is not None and whole > largest):
        ends = "" if smallest is None else f" of at least {smallest}"
        ends += "" if largest is None else f" and at most {largest}"
        raise ValueError(f"{name} must be an integer{ends}, got {value!r}")
    return whole


def pair(value: Any, name: str, smallest: int) -> tuple[int, int]:
    """Return (y, x) of an integer or a pair of them; ValueError names the argument."""
    try:
        several = isinstance(value, (tuple, list, np.ndarray))
        y, x = value if several else (value, value)
        return integer(y, name, smallest, LARGEST_STEP), integer(x, name, smallest, LARGEST_STEP)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} must be an integer >= {smallest} or a pair (y, x) of them, at most {LARGEST_STEP}, got {value!r}"
        ) from None


def around(value: Any, name: str) -> tuple[int, int, int, int]:
    """Return (top, left, bottom, right) of an integer, a pair (y, x) of them, or these four; ValueError on others."""
    is_four = isinstance(value, (tuple, list, np.ndarray)) and len(value) == 4
    try:
        first, last = (value[:2], value[2:]) if is_four else (value, value)
        return (*pair(first, name, 0), *pair(last, name, 0))
    except ValueError:
        raise ValueError(
            f"{name} must be an integer >= 0 or a pair (y, x) of them, or (top, left, bottom, right), at most "
            f"{LARGEST_STEP}, got {value!r}"
        ) from None


def number(value: Any, name: str) -> float:
    """Return a float that float32 holds, or an infinity; ValueError on NaN and larger ones."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        found = float(value)
    except OverflowError:
        found = float("nan")
    if not (abs(found) <= float(np.finfo(np.float32).max) or abs(found) == np.inf):
        raise ValueError(f"{name} must be a float32, got {value!r}")
    return found


def instance(value: Any, kind: type, name: str, hint: str = "") -> None:
    """TypeError if a value is not of this class; hint: how to get one."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}{hint}")
