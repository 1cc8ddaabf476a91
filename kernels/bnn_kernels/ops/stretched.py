"""Sum, product and quotient of two arrays, sides of 1 stretched: NumPy's answers, by a kernel that is played back."""

import math
from typing import NamedTuple

import numpy as np

from bnn_kernels.compile.jit import jit
from bnn_kernels.runtime.threads import run_rows

KINDS = {"add": 0, "multiply": 1, "divide": 2}

# Where no side is stretched, numbers are parted into at most so many rows, of at least so many numbers.
MOST_ROWS, LEAST_IN_ROW = 64, 1024


class Sizes(NamedTuple):
    """The output has rows (outer, middle) of `inner` numbers; strides of a and b along these axes, 0 if stretched."""

    kind: int
    middle: int
    inner: int
    a_outer: int
    a_middle: int
    a_inner: int
    b_outer: int
    b_middle: int
    b_inner: int


@jit
def _combine(a, b, out, size, first, last):
    """Rows (outer, middle) of out, flat, from a and b, flat."""
    size = Sizes(*size)
    for row in range(first, last):
        outer = row // size.middle
        middle = row - outer * size.middle
        ia = outer * size.a_outer + middle * size.a_middle
        ib = outer * size.b_outer + middle * size.b_middle
        # Parts of arrays from 0 on: no index can be negative, so that these loops are of vectors.
        x = a[ia : ia + (size.inner - 1) * size.a_inner + 1]
        y = b[ib : ib + (size.inner - 1) * size.b_inner + 1]
        z = out[row * size.inner : (row + 1) * size.inner]
        if size.kind == 0:
            if size.a_inner == 0:
                for i in range(size.inner):
                    z[i] = x[0] + y[i]
            elif size.b_inner == 0:
                for i in range(size.inner):
                    z[i] = x[i] + y[0]
            else:
                for i in range(size.inner):
                    z[i] = x[i] + y[i]
        elif size.kind == 1:
            if size.a_inner == 0:
                for i in range(size.inner):
                    z[i] = x[0] * y[i]
            elif size.b_inner == 0:
                for i in range(size.inner):
                    z[i] = x[i] * y[0]
            else:
                for i in range(size.inner):
                    z[i] = x[i] * y[i]
        elif size.a_inner == 0:
            for i in range(size.inner):
                z[i] = x[0] / y[i]
        elif size.b_inner == 0:
            for i in range(size.inner):
                z[i] = x[i] / y[0]
        else:
            for i in range(size.inner):
                z[i] = x[i] / y[i]


def combine(kind: str, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> bool:
    """Write a (kind) b, contiguous float32, to out; False, and nothing written, if the sides alternate too often."""
    axes: list[list[int]] = []  # sizes of the output, and whether a and b have them; the first axis stays by itself
    for axis, side in enumerate(out.shape):
        has = int(a.shape[axis] == side), int(b.shape[axis] == side)
        if len(axes) > 1 and axes[-1][1:] == list(has):
            axes[-1][0] *= side
        elif axis == 0 or side > 1:
            axes.append([side, *has])
    if len(axes) > 3 or not out.size:
        return False
    if len(axes) < 2:
        axes.append([1, 1, 1])
    if len(axes) < 3:  # rows that threads can share
        side, *present = axes.pop()
        rows = next(rows for rows in range(min(MOST_ROWS, max(1, side // LEAST_IN_ROW)), 0, -1) if side % rows == 0)
        axes += [[rows, *present], [side // rows, *present]]
    strides = []
    for side in (1, 2):
        full = [axis[0] if axis[side] else 1 for axis in axes]
        strides += [math.prod(full[i + 1 :]) * axes[i][side] for i in range(3)]
    size = Sizes(KINDS[kind], axes[1][0], axes[2][0], *strides)
    rows = axes[0][0] * axes[1][0]
    run_rows(_combine, rows, out.size // 4, a.reshape(-1), b.reshape(-1), out.reshape(-1), tuple(size))
    return True
