"""Lookup of rows in a table by integers: embeddings."""

from dataclasses import dataclass

import numpy as np

from bnn_kernels.runtime.recording import do
from bnn_kernels.runtime.workspace import empty
from bnn_kernels.steps.base import Spec, Step, need, step
from bnn_kernels.steps.weights import WeightFields, float_rows, weight_bits

# Larger integers are not exact as float32, which registers hold.
MOST_ROWS = 1 << 24


@step
class Embedding(Step):
    """Integers (T,) -> rows of a table, (features, 1, T); attribute shape = (rows, features).

    The table is float32 or bit planes with a scale for each row; only the rows that are asked for become floats.
    ValueError on a number that has no row.
    """

    @dataclass(frozen=True, kw_only=True)
    class Fields(WeightFields):
        op = "embedding"
        shape: list[int]

    fields: Fields

    def build(self) -> None:
        self.shape = self.ints("shape", 2, 1, MOST_ROWS)
        self.rows = float_rows(self, (self.shape[0], self.shape[1]))

    def infer(self, inputs: list[Spec]) -> Spec:
        (x,) = inputs
        need(x.kind == "float" and len(x.shape) == 1, f"takes a vector of numbers, got {x}")
        return Spec("float", (self.shape[1], 1, x.shape[0]))

    def below(self, inputs: list[Spec]) -> dict[int, int]:
        return {0: self.shape[0]}

    def precision(self, inputs: list[Spec]) -> str:
        return f"W{weight_bits(self.fields)}A32"

    def run(self, x: np.ndarray) -> np.ndarray:
        y = empty((len(x), 1, x.shape[1], self.shape[1]), np.float32)
        do(self._look_up, x, y)
        return y

    def _look_up(self, x: np.ndarray, y: np.ndarray) -> None:
        inside = (x >= 0) & (x < self.shape[0]) & (x == np.floor(x))
        if not inside.all():
            raise ValueError(f"{x[~inside][0]:g} is no row of a table of {self.shape[0]} rows")
        y[:, 0] = self.rows(x.astype(np.int64))
