"""From numbers to levels as bytes through the thresholds of each channel, for float32 and int32 alike.

As in `quantize` a level index is how many thresholds a number reaches. Those that count come first, so u of a level is
u of the lowest one plus the steps of all thresholds that are reached: sums that the compiler makes for many channels
at once.
"""

import numpy as np

from bnn_kernels.bits.level_bytes import LevelBytes, bytes_of_codes, new_level_bytes
from bnn_kernels.bits.quantize import MOST_COMPARED, search
from bnn_kernels.bits.tensor import raise_nan
from bnn_kernels.compile.jit import jit
from bnn_kernels.runtime.recording import new_flag
from bnn_kernels.runtime.threads import run_rows


@jit
def _level_rows(x, t, flip, u, out, nan, first, last):
    """Rows of out uint8 flat (R, C): u of the levels of x float32 or int32 flat (R, C).

    t (L-1, C) of x's dtype, see `quantize.level_bits`; flip: uint8 (C,); u: uint8 (L,); nan[0] = 1 if a NaN was met.
    """
    channels = t.shape[1]
    sums = np.empty(channels, np.int32)
    bad = False
    for row in range(first, last):
        values = x[row * channels : (row + 1) * channels]
        to = out[row * channels : (row + 1) * channels]
        if len(u) <= MOST_COMPARED:
            for c in range(channels):
                sums[c] = np.int32(u[0])
            for i in range(len(u) - 1):
                step = np.int32(u[i + 1]) - np.int32(u[i])
                bounds = t[i]
                for c in range(channels):
                    sums[c] += step if (values[c] >= bounds[c]) != (flip[c] != 0) else np.int32(0)
            for c in range(channels):
                to[c] = np.uint8(sums[c])
                bad |= values[c] != values[c]
        else:
            for c in range(channels):
                to[c] = u[search(values[c], t, c, flip[c] != 0)]
                bad |= values[c] != values[c]
    if bad:
        nan[0] = 1


def quantize_to_bytes(
    x: np.ndarray,
    shape: tuple[int, ...],
    thresholds: np.ndarray,
    flip: np.ndarray,
    codes: np.ndarray,
    signed: bool,
    multipliers: tuple[int, ...],
) -> LevelBytes:
    """Return the levels that `tensor.quantize_channels_last` packs, as bytes; x may be of int32 like its thresholds.

    ValueError on NaN.
    """
    made = new_level_bytes(shape, signed, multipliers)
    nan = new_flag(raise_nan)
    n, h, w, _ = x.shape
    u = bytes_of_codes(multipliers, signed)[codes]
    run_rows(_level_rows, n * h * w, 2 * x.size, x.reshape(-1), thresholds, flip, u, made.data, nan)
    if nan[0]:
        raise_nan()
    return made
