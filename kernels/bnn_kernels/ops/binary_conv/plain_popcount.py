"""What the fast kernels are measured against: the textbook loop, and the clock.

`plain_dots` is the whole of what most binary networks run on: one xor and one population count a word, no tiles.
"""

import numpy as np

from bnn_kernels.compile.jit import jit
from bnn_kernels.compile.popcount import popcount


@jit
def plain_dots(windows, weights, bits, out):
    """out int32 (R, O) = bits - 2 popcount(window ^ weight), of windows uint64 (R, V) and weights uint64 (O, V)."""
    for r in range(windows.shape[0]):
        for o in range(weights.shape[0]):
            different = np.uint64(0)
            for v in range(windows.shape[1]):
                different += popcount(windows[r, v] ^ weights[o, v])
            out[r, o] = bits - 2 * np.int64(different)


@jit
def chain_of_products(steps):
    """Square and add one, over and over: each step waits for the last, four cycles on x86-64 (imul 3, add 1)."""
    x = np.uint64(3)
    for _ in range(steps):
        x = x * x + np.uint64(1)
    return x
