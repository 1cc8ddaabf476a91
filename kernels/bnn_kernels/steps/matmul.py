"""Matrix products of two values that both depend on the input, as in attention."""

import math

import numpy as np

from bnn_kernels.ops.matmul import matmul
from bnn_kernels.steps.base import Spec, Step, need, step
from bnn_kernels.steps.fields import StepFields


@step
class Matmul(Step):
    """For each channel the matrix product of two maps: (C, H, K) by (C, K, W) gives (C, H, W)."""

    class Fields(StepFields):
        op = "matmul"

    fields: Fields
    arity = 2

    def infer(self, inputs: list[Spec]) -> Spec:
        a, b = inputs
        for x in inputs:
            need(x.kind == "float" and len(x.shape) == 3, f"takes float maps, got {x}")
        fits = a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1]
        need(fits, f"the maps {a.shape} and {b.shape} do not fit")
        return Spec("float", (*a.shape[:2], b.shape[2]))

    def macs(self, inputs: list[Spec]) -> int:
        return math.prod(inputs[0].shape) * inputs[1].shape[2]

    def precision(self, inputs: list[Spec]) -> str:
        return "A32A32"

    def run(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return matmul(a, b)
