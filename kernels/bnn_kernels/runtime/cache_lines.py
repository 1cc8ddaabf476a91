"""Memory that begins at a cache line: a vector of 64 bytes that lies across two lines takes as long as two vectors."""

import numpy as np

from bnn_kernels.compile.jit import inline

# Bytes of a cache line.
LINE = 64


def bytes_at_line(nbytes: int, zeros: bool = False) -> np.ndarray:
    """Return uint8 (nbytes,), uninitialised or zeros, that begin at a multiple of 64 bytes.

    NumPy's own memory begins 16 or 32 bytes behind one.
    """
    memory = (np.zeros if zeros else np.empty)(nbytes + LINE, np.uint8)
    start = -int(memory.__array_interface__["data"][0]) % LINE
    return memory[start : start + nbytes]


@inline
def numbers_at_line(count, dtype):
    """Return uninitialised numbers of four bytes (count,) that begin at a cache line, for the scratch of a kernel."""
    memory = np.empty(count + LINE // 4, dtype)
    start = (-memory.ctypes.data & (LINE - 1)) >> 2
    return memory[start : start + count]
