"""Pooling over windows that are given one by one (adaptive, ceil_mode), and resizing by weighted sums."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bnn_kernels.compile.jit import jit
from bnn_kernels.runtime.recording import do
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty
from bnn_kernels.steps.base import Spec, Step, need, step
from bnn_kernels.steps.fields import Float32, Int32, StepFields


@jit
def _max_of_windows(x, rows, columns, out, first, last):
    """out (N, Ho, Wo, C) = maximum of x (N, H, W, C) over rows[oy, 0] .. rows[oy, 1] - 1, columns alike."""
    channels = x.shape[3]
    for row in range(first, last):
        n = row // out.shape[1]
        oy = row - n * out.shape[1]
        y0, y1 = rows[oy, 0], rows[oy, 1]
        for ox in range(out.shape[2]):
            x0, x1 = columns[ox, 0], columns[ox, 1]
            for c in range(channels):
                out[n, oy, ox, c] = x[n, y0, x0, c]
            for iy in range(y0, y1):
                for ix in range(x0, x1):
                    for c in range(channels):
                        value = x[n, iy, ix, c]
                        # A NaN wins, as in PyTorch.
                        if value > out[n, oy, ox, c] or value != value:
                            out[n, oy, ox, c] = value


@jit
def _mean_of_windows(x, rows, columns, row_sizes, column_sizes, out, first, last):
    """The same with the sum, divided by row_sizes[oy] * column_sizes[ox]."""
    channels = x.shape[3]
    for row in range(first, last):
        n = row // out.shape[1]
        oy = row - n * out.shape[1]
        for ox in range(out.shape[2]):
            for c in range(channels):
                out[n, oy, ox, c] = 0
            for iy in range(rows[oy, 0], rows[oy, 1]):
                for ix in range(columns[ox, 0], columns[ox, 1]):
                    for c in range(channels):
                        out[n, oy, ox, c] += x[n, iy, ix, c]
            size = np.float32(row_sizes[oy]) * np.float32(column_sizes[ox])
            for c in range(channels):
                out[n, oy, ox, c] /= size


@step
class WindowPool(Step):
    """Maximum or mean over windows that are given one by one: ceil_mode, adaptive pooling to sizes that do not divide.

    rows int32 (Ho, 2), columns int32 (Wo, 2): first and one past the last of each window, inside the map. A mean is
    divided by row_sizes[y] * column_sizes[x], int32 (Ho,) and (Wo,): what the window counts, pads among it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Fields(StepFields):
        op = "window_pool"
        kind: Literal["max", "avg"]
        rows: Int32
        columns: Int32
        row_sizes: Int32 | None = None
        column_sizes: Int32 | None = None

    fields: Fields

    def build(self) -> None:
        self.kind = self.fields.kind
        self.rows = self._windows("rows")
        self.columns = self._windows("columns")
        names = self.fields.tensors().keys() - {"rows", "columns"}
        need(self.kind == "avg" or not names, f"tensors {sorted(names)} are for a mean")
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
        if self.kind == "max":
            run_rows(_max_of_windows, len(x) * len(self.rows), x.size, x, self.rows, self.columns, out)
        else:
            sizes = self.sizes
            run_rows(_mean_of_windows, len(x) * len(self.rows), x.size, x, self.rows, self.columns, *sizes, out)
        return out


@step
class Resample(Step):
    """Each row of the output is a weighted sum of rows, and each column of columns: bilinear and bicubic resizing.

    rows float32 (Ho, H), columns float32 (Wo, W): the weights.
    """

    @dataclass(frozen=True, kw_only=True)
    class Fields(StepFields):
        op = "resample"
        rows: Float32
        columns: Float32

    fields: Fields

    def build(self) -> None:
        self.rows = self.tensor("rows", (None, None))
        self.columns = self.tensor("columns", (None, None))
        need(0 not in self.rows.shape and 0 not in self.columns.shape, "tensors 'rows' and 'columns' must not be empty")

    def infer(self, inputs: list[Spec]) -> Spec:
        (x,) = inputs
        need(x.kind == "float" and len(x.shape) == 3, f"takes a float map, got {x}")
        extent = (self.rows.shape[1], self.columns.shape[1])
        need(x.shape[1:] == extent, f"takes a map of {extent[0]}x{extent[1]}, got {x.shape[1]}x{x.shape[2]}")
        return Spec("float", (x.shape[0], len(self.rows), len(self.columns)))

    def run(self, x: np.ndarray) -> np.ndarray:
        n, height, width, channels = x.shape
        tall = empty((n, len(self.rows), width * channels), np.float32)
        do(np.matmul, self.rows, x.reshape(n, height, width * channels), tall)
        wide = empty((n, len(self.rows), len(self.columns), channels), np.float32)
        do(np.matmul, self.columns, tall.reshape(n, len(self.rows), width, channels), wide)
        return wide
