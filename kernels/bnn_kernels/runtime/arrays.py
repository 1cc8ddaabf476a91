"""Allocation of arrays: results that memory can hold, and copies that begin at a cache line."""

import math
import os
from typing import Any

import numpy as np

from bnn_kernels.runtime import workspace
from bnn_kernels.runtime.cache_lines import zeros_at_line

# Smaller arrays are not worth the question.
WORTH_ASKING = 1 << 28


def available_memory() -> int | None:
    """Return the bytes that the machine can still give, or None where it does not say."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def new_array(shape: tuple[int, ...], dtype: Any, what: str, zeros: bool = False) -> np.ndarray:
    """Return an array for a result or scratch, of the running model's workspace if there is one.

    MemoryError, before anything is allocated, names what does not fit and what there is.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size >= WORTH_ASKING:
        left = available_memory()
        if left is not None and size > left:
            raise MemoryError(
                f"{what} of shape {shape} takes {size / 2**30:,.1f} GiB, and {left / 2**30:,.1f} GiB of memory are "
                "left: use a smaller batch or a smaller map"
            )
    return workspace.zeros(shape, dtype) if zeros else workspace.empty(shape, dtype)


def aligned(array: np.ndarray) -> np.ndarray:
    """Return a contiguous copy of an array that begins at a multiple of 64 bytes, same shape and dtype."""
    copy = zeros_at_line(array.shape, array.dtype)
    copy[...] = array
    return copy
