"""Resizing of maps: each row and column of the output is a weighted sum of neighbouring ones (bilinear, bicubic)."""

from dataclasses import dataclass

import numpy as np

from bnn_kernels.ops.resize import Taps, resize
from bnn_kernels.steps.base import Spec, Step, need, step
from bnn_kernels.steps.fields import Float32, Int32, StepFields


def taps_of(weights: np.ndarray) -> Taps:
    """Return weights float32 (outputs, extent) as neighbours: as many for each output as one of them needs."""
    extent = weights.shape[1]
    there = weights != 0
    first = np.where(there.any(1), there.argmax(1), 0)
    last = np.where(there.any(1), extent - 1 - there[:, ::-1].argmax(1), 0)
    count = int((last - first).max()) + 1
    starts = np.minimum(first, extent - count)
    return Taps(starts.astype(np.int32), np.take_along_axis(weights, starts[:, None] + np.arange(count), 1))


class _Resizing(Step):
    """What both forms share. extents: (H, W) of the input that a form needs, or least ones."""

    rows: Taps
    columns: Taps

    def infer(self, inputs: list[Spec]) -> Spec:
        (x,) = inputs
        need(x.kind == "float" and len(x.shape) == 3, f"takes a float map, got {x}")
        self.check_extent(x.shape[1], x.shape[2])
        return Spec("float", (x.shape[0], len(self.rows.starts), len(self.columns.starts)))

    def check_extent(self, height: int, width: int) -> None:
        raise NotImplementedError

    def run(self, x: np.ndarray) -> np.ndarray:
        return resize(x, self.rows, self.columns)


@step
class Resize(_Resizing):
    """Output row i is the sum over t of row_weights[i, t] * row[row_starts[i] + t], and columns alike.

    row_starts int32 (Ho,), row_weights float32 (Ho, taps), column_starts int32 (Wo,), column_weights float32
    (Wo, taps).
    """

    @dataclass(frozen=True, kw_only=True)
    class Fields(StepFields):
        op = "resize"
        row_starts: Int32
        row_weights: Float32
        column_starts: Int32
        column_weights: Float32

    fields: Fields

    def build(self) -> None:
        self.rows, self.columns = self._taps("row"), self._taps("column")

    def _taps(self, axis: str) -> Taps:
        starts = self.tensor(f"{axis}_starts", (None,))
        weights = self.tensor(f"{axis}_weights", (len(starts), None))
        need(weights.size > 0, f"tensor '{axis}_weights' must not be empty")
        need(int(starts.min()) >= 0, f"tensor '{axis}_starts' must hold numbers from 0 on")
        return Taps(starts, weights)

    def check_extent(self, height: int, width: int) -> None:
        for name, taps, extent in (("row", self.rows, height), ("column", self.columns, width)):
            last = int(taps.starts.max()) + taps.weights.shape[1]
            need(last <= extent, f"tensor '{name}_starts' leads to {last} {name}s, the input has {extent}")


@step
class Resample(_Resizing):
    """The same with weights for all rows and columns, most of them 0, as older files have it.

    rows float32 (Ho, H), columns float32 (Wo, W).
    """

    @dataclass(frozen=True, kw_only=True)
    class Fields(StepFields):
        op = "resample"
        rows: Float32
        columns: Float32

    fields: Fields

    def build(self) -> None:
        rows, columns = self.tensor("rows", (None, None)), self.tensor("columns", (None, None))
        need(0 not in rows.shape and 0 not in columns.shape, "tensors 'rows' and 'columns' must not be empty")
        self.extent = (rows.shape[1], columns.shape[1])
        self.rows, self.columns = taps_of(rows), taps_of(columns)

    def check_extent(self, height: int, width: int) -> None:
        extent = self.extent
        need((height, width) == extent, f"takes a map of {extent[0]}x{extent[1]}, got {height}x{width}")
