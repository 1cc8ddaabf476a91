"""Memory that begins at a cache line: a vector of 64 bytes that lies across two lines takes as long as two vectors."""

import math
from typing import Any

import numpy as np

from bnn_kernels.compile.jit import inline

# Bytes of a cache line.
LINE = 64


def _first_at_line(memory: np.ndarray) -> int:
    """Return the first byte of an array at a multiple of 64 bytes."""
    return -int(memory.__array_interface__["data"][0]) % LINE


def empty_at_line(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an uninitialised contiguous array that begins at a multiple of 64 bytes.

    NumPy's own memory begins 16 or 32 bytes behind one.
    """
    memory = np.empty(math.prod(shape) * dtype.itemsize + LINE, np.uint8)
    return np.ndarray(shape, dtype, memory, _first_at_line(memory))


def zeros_at_line(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return contiguous zeros that begin at a multiple of 64 bytes."""
    memory = np.zeros(math.prod(shape) * np.dtype(dtype).itemsize + LINE, np.uint8)
    return np.ndarray(shape, dtype, memory, _first_at_line(memory))


@inline
def numbers_at_line(count, dtype):
    """Return uninitialised numbers (count,) that begin at a cache line, for the scratch of a kernel.

    Memory of compiled code begins at a multiple of 32 bytes.
    """
    memory = np.empty(count + LINE, dtype)
    start = (-memory.ctypes.data & (LINE - 1)) // memory.itemsize
    return memory[start : start + count]
