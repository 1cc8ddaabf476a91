"""Recurrent layers over a sequence: LSTM, GRU and the plain one, in one direction."""

import math
from dataclasses import dataclass

import numpy as np

from bnn_kernels.ops.recurrent import GATES, Recurrence
from bnn_kernels.runtime.lazy import Lazy
from bnn_kernels.runtime.workspace import contiguous
from bnn_kernels.steps.base import Spec, Step, need, step
from bnn_kernels.steps.fields import Float32
from bnn_kernels.steps.weights import WeightFields, filters_of, weight_bits


@step
class Recurrent(Step):
    """What the input adds to the gates, (gates * H, 1, T), becomes hidden states (H, 1, T), of an LSTM (H, 1, T + 1).

    kind: "lstm", "gru", "rnn_tanh" or "rnn_relu", see `ops.recurrent`; an LSTM's last cell is in the last place. shape:
    (gates * H, H) of the state's weight; bias (gates * H,) goes with it. backwards: the last place comes first.
    hidden, cell (H,): the first states of all images, zeros if not given; takes_hidden, takes_cell: they are inputs
    (H,) instead, in this order.
    """

    @dataclass(frozen=True, kw_only=True)
    class Fields(WeightFields):
        op = "recurrent"
        kind: str
        shape: list[int]
        backwards: bool = False
        takes_hidden: bool = False
        takes_cell: bool = False
        bias: Float32 | None = None
        hidden: Float32 | None = None
        cell: Float32 | None = None

    fields: Fields

    def build(self) -> None:
        fields = self.fields
        need(fields.kind in GATES, f"unknown kind {fields.kind!r}; known are {', '.join(GATES)}")
        self.shape = self.ints("shape", 2, 1, 1 << 24)
        rows, self.hidden = self.shape
        need(rows == GATES[fields.kind] * self.hidden, f"shape {list(self.shape)} is none of {fields.kind!r}")
        need(fields.kind == "lstm" or not (fields.takes_cell or fields.cell is not None), "only an LSTM has cells")
        need(not (fields.takes_hidden and fields.hidden is not None), "has two first hidden states")
        need(not (fields.takes_cell and fields.cell is not None), "has two first cells")
        weight = filters_of(self, self.shape, GATES[fields.kind])
        bias = None if fields.bias is None else self.tensor("bias", (rows,))
        self.first = [
            np.zeros(self.hidden, np.float32) if given is None else self.tensor(name, (self.hidden,))
            for name, given in (("hidden", fields.hidden), ("cell", fields.cell))
        ]
        self.recurrence = Lazy(lambda: Recurrence(fields.kind, weight(), bias, fields.backwards))
        self.arity = 1 + fields.takes_hidden + fields.takes_cell

    def infer(self, inputs: list[Spec]) -> Spec:
        x, *states = inputs
        fits = x.kind == "float" and len(x.shape) == 3 and x.shape[:2] == (self.shape[0], 1)
        need(fits, f"takes a float sequence ({self.shape[0]}, 1, T), got {x}")
        for state in states:
            need(state == Spec("float", (self.hidden,)), f"takes states of {self.hidden} floats, got {state}")
        return Spec("float", (self.hidden, 1, x.shape[2] + (self.fields.kind == "lstm")))

    def macs(self, inputs: list[Spec]) -> int:
        return math.prod(self.shape) * inputs[0].shape[2]

    def precision(self, inputs: list[Spec]) -> str:
        return f"W{weight_bits(self.fields)}A32"

    def kernel(self, inputs: list[Spec]) -> str:
        return "float32" if self.fields.terms is None else "float32, weights held as bits"

    def run(self, x: np.ndarray, *states: np.ndarray) -> np.ndarray:
        given = iter(states)
        takes = self.fields.takes_hidden, self.fields.takes_cell
        first = [next(given) if taken else own for taken, own in zip(takes, self.first, strict=True)]
        return self.recurrence()(contiguous(x), *(contiguous(start) for start in first))
