"""Curves of one number that are no chain of straight pieces, applied to arrays sixteen numbers at a time."""

import numpy as np

from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.compile.simd import exponentials, float32x16
from bnn_kernels.runtime.threads import run_rows

# The order of the branches of `_vectors`.
KINDS = (
    "sigmoid", "tanh", "hard_sigmoid", "silu", "hard_swish", "gelu", "gelu_tanh", "elu", "softplus", "mish",
)  # fmt: skip
LANES = 16
# Numbers of a row: what threads share, small enough to stay in the first cache.
ROW = 1024


@inline
def _each(curve, x, y, first, last):
    """y = curve(x) of numbers first .. last - 1, a multiple of sixteen of them."""
    for i in range(first, last, LANES):
        float32x16.store(y, np.uint64(i), curve(float32x16.load(x, np.uint64(i))))


@inline
def _vectors(x, y, kind, first, last):
    """`_each` of a kind: a loop for each keeps what its polynomials need in registers, which is a third of the time."""
    if kind == 0:
        _each(exponentials.sigmoid, x, y, first, last)
    elif kind == 1:
        _each(exponentials.tanh, x, y, first, last)
    elif kind == 2:
        _each(exponentials.hard_sigmoid, x, y, first, last)
    elif kind == 3:
        _each(exponentials.silu, x, y, first, last)
    elif kind == 4:
        _each(exponentials.hard_swish, x, y, first, last)
    elif kind == 5:
        _each(exponentials.gelu, x, y, first, last)
    elif kind == 6:
        _each(exponentials.gelu_tanh, x, y, first, last)
    elif kind == 7:
        _each(exponentials.elu, x, y, first, last)
    elif kind == 8:
        _each(exponentials.softplus, x, y, first, last)
    else:
        _each(exponentials.mish, x, y, first, last)


@jit
def _activate(x, y, kind, first, last):
    """Rows of `ROW` numbers of y from x, both flat; the last row may be shorter."""
    start, end = first * ROW, min(last * ROW, len(x))
    whole = end - (end - start) % LANES
    _vectors(x, y, kind, start, whole)
    if whole < end:
        rest = np.zeros(LANES, np.float32)
        for i in range(end - whole):
            rest[i] = x[whole + i]
        _vectors(rest, rest, kind, 0, LANES)
        for i in range(end - whole):
            y[whole + i] = rest[i]


def activate(kind: str, x: np.ndarray, y: np.ndarray) -> None:
    """Write the curve `kind`, one of `KINDS`, of contiguous float32 x to y, of its shape."""
    run_rows(_activate, -(-x.size // ROW), x.size, x.reshape(-1), y.reshape(-1), KINDS.index(kind))
