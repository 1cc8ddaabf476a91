"""Pooling over windows that are given one by one (adaptive, ceil_mode)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bnn_kernels.compile.jit import jit
from bnn_kernels.ops.pooling import LANES, Sizes, mean_of_window
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty
from bnn_kernels.steps.base import Spec, Step, need, step
from bnn_kernels.steps.fields import Int32, StepFields


@jit
def _max_of_windows(x, rows, columns, steps, out, first, last):
    """out (N, Ho, Wo, C) = maximum of x (N, H, W, C) over rows[oy, 0] .. rows[oy, 1] - 1, columns alike.

    steps: from one row, and column, of a window to the next.
    """
    channels = x.shape[3]
    down, right = steps
    for row in range(first, last):
        n = row // out.shape[1]
        oy = row - n * out.shape[1]
        y0, y1 = rows[oy, 0], rows[oy, 1]
        for ox in range(out.shape[2]):
            x0, x1 = columns[ox, 0], columns[ox, 1]
            for c in range(channels):
                out[n, oy, ox, c] = x[n, y0, x0, c]
            for iy in range(y0, y1, down):
                for ix in range(x0, x1, right):
                    for c in range(channels):
                        value = x[n, iy, ix, c]
                        # A NaN wins, as in PyTorch.
                        if value > out[n, oy, ox, c] or value != value:
                            out[n, oy, ox, c] = value


@jit
def _mean_of_windows(x, rows, columns, row_sizes, column_sizes, out, size, first, last):
    """out flat = sums over the same windows of x flat, divided by row_sizes[oy] * column_sizes[ox]; `Sizes`."""
    size = Sizes(*size)
    for row in range(first, last):
        n = row // size.out_height
        oy = row - n * size.out_height
        for ox in range(size.out_width):
            at = ((n * size.height + rows[oy, 0]) * size.width + columns[ox, 0]) * size.channels
            window = (rows[oy, 1] - rows[oy, 0], columns[ox, 1] - columns[ox, 0])
            count = np.float32(row_sizes[oy]) * np.float32(column_sizes[ox])
            mean_of_window(x, at, window, size, count, out, (row * size.out_width + ox) * size.channels)


@step
class WindowPool(Step):
    """Maximum or mean over windows that are given one by one: ceil_mode, adaptive pooling to sizes that do not divide.

    rows int32 (Ho, 2), columns int32 (Wo, 2): first and one past the last of each window, inside the map. A mean is
    divided by row_sizes[y] * column_sizes[x], int32 (Ho,) and (Wo,): what the window counts, pads among it. dilation
    (y, x): of a maximum, from one number of a window to the next.
    """

    @dataclass(frozen=True, kw_only=True)
    class Fields(StepFields):
        op = "window_pool"
        kind: Literal["max", "avg"]
        rows: Int32
        columns: Int32
        row_sizes: Int32 | None = None
        column_sizes: Int32 | None = None
        dilation: list[int] | None = None

    fields: Fields

    def build(self) -> None:
        self.kind = self.fields.kind
        self.rows = self._windows("rows")
        self.columns = self._windows("columns")
        names = self.fields.tensors().keys() - {"rows", "columns"}
        need(self.kind == "avg" or not names, f"tensors {sorted(names)} are for a mean")
        self.steps = (1, 1) if self.fields.dilation is None else self.ints("dilation", 2, 1)
        need(self.kind == "max" or self.steps == (1, 1), "attribute 'dilation' is for a maximum")
        if self.kind == "avg":
            self.sizes = self._sizes("row_sizes", len(self.rows)), self._sizes("column_sizes", len(self.columns))

    def _windows(self, name: str) -> np.ndarray:
        windows = self.tensor(name, (None, 2))
        need(len(windows) > 0, f"tensor {name!r} is empty")
        inside = int(windows[:, 0].min()) >= 0 and bool((windows[:, 0] < windows[:, 1]).all())
        need(inside, f"tensor {name!r} must hold windows from a first to one past a last number")
        return windows

    def _sizes(self, name: str, count: int) -> np.ndarray:
        sizes = self.tensor(name, (count,))
        need(bool((sizes != 0).all()), f"tensor {name!r} holds a 0")
        return sizes

    def infer(self, inputs: list[Spec]) -> Spec:
        (x,) = inputs
        need(x.kind == "float" and len(x.shape) == 3, f"takes a float map, got {x}")
        for windows, extent in zip((self.rows, self.columns), x.shape[1:], strict=True):
            need(int(windows.max()) <= extent, f"has windows that reach {int(windows.max())} in a side of {extent}")
        return Spec("float", (x.shape[0], len(self.rows), len(self.columns)))

    def run(self, x: np.ndarray) -> np.ndarray:
        out = empty((len(x), len(self.rows), len(self.columns), x.shape[3]), np.float32)
        shares, windows = len(x) * len(self.rows), (self.rows, self.columns)
        if self.kind == "max":
            run_rows(_max_of_windows, shares, x.size, x, *windows, self.steps, out)
        else:
            size = (*x.shape[1:], *out.shape[1:3])
            flat = x.reshape(-1), *windows, *self.sizes, out.reshape(-1), size
            run_rows(_mean_of_windows, shares, x.size // LANES, *flat)
        return out
