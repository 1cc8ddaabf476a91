"""Pages of mapped files: what has been read and laid out elsewhere need not stay in memory."""

import mmap
from collections.abc import Iterable
from typing import Any

import numpy as np

# Other systems than Linux take it for a hint of another meaning, or lack it.
_DROP = getattr(mmap, "MADV_DONTNEED", None)


def _map_of(array: np.ndarray) -> mmap.mmap | None:
    """Return the map that an array is a view of, if it cannot be written to: what was written would be lost."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview) and base.readonly:
        base = base.obj
        return base if isinstance(base, mmap.mmap) else None
    return None


def _drop(mapped: mmap.mmap, first: int, last: int) -> None:
    first -= first % mmap.PAGESIZE
    if _DROP is not None and last > first:
        mapped.madvise(_DROP, first, last - first)


def release(array: np.ndarray) -> None:
    """Give back the pages of a mapped file that an array lies in; they are read again when they are used again."""
    mapped = _map_of(array)
    if mapped is not None:
        start = array.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
        _drop(mapped, start, start + array.nbytes)


def release_files(arrays: Iterable[np.ndarray]) -> None:
    """Give back all pages of the mapped files that arrays are views of."""
    for mapped in {id(found): found for found in map(_map_of, arrays) if found is not None}.values():
        _drop(mapped, 0, len(mapped))
