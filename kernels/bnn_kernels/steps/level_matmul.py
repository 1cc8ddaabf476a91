"""Matrix products of two tensors of levels that both depend on the input, as in attention of few bits."""

import math
from dataclasses import dataclass

import numpy as np

from bnn_kernels.bits.level_bytes import LevelTensor
from bnn_kernels.bits.sum_range import largest_level, largest_sum
from bnn_kernels.ops.level_product import counts, product_of_levels
from bnn_kernels.steps.base import Spec, Step, need, step
from bnn_kernels.steps.fields import StepFields


@step
class LevelMatmul(Step):
    """scale * sum over channels: levels (K, H, R) and (K, H, C) give floats (C, H, R)."""

    @dataclass(frozen=True, kw_only=True)
    class Fields(StepFields):
        op = "level_matmul"
        scale: float

    fields: Fields
    arity = 2
    level_inputs = 2

    def build(self) -> None:
        need(math.isfinite(self.fields.scale), f"attribute 'scale' must be finite, got {self.fields.scale}")

    def infer(self, inputs: list[Spec]) -> Spec:
        a, b = inputs
        need(a.kind == b.kind == "bits", f"takes bits, got {a} and {b}")
        fits = len(a.shape) == len(b.shape) == 3 and a.shape[:2] == b.shape[:2]
        need(fits, f"levels {a.shape} and {b.shape} do not fit: (K, H, R) and (K, H, C) are multiplied")
        largest_sum(a.shape[0], *(largest_level(x.multipliers, x.signed) for x in inputs))
        return Spec("float", (b.shape[2], *a.shape[1:]))

    def macs(self, inputs: list[Spec]) -> int:
        return math.prod(inputs[0].shape) * inputs[1].shape[2]

    def precision(self, inputs: list[Spec]) -> str:
        return "".join(f"A{len(x.multipliers)}" for x in inputs)

    def kernel(self, inputs: list[Spec]) -> str:
        a, b = (x.multipliers for x in inputs)
        pairs = len(a) * len(b)
        return f"{'counts' if counts(a, b) else 'products'}: {pairs} pair{'s' * (pairs > 1)} of planes"

    def reads_bytes(self, inputs: list[Spec]) -> bool:
        return not counts(*(x.multipliers for x in inputs))

    def run(self, a: LevelTensor, b: LevelTensor) -> np.ndarray:
        return product_of_levels(a, b, self.fields.scale)
