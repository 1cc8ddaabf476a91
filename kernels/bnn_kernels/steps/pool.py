"""Pooling over windows of one size: maximum and mean of floats, extremes of integer sums and of sign bits."""

from dataclasses import dataclass

import numpy as np

from bnn_kernels.bits.tensor import BitTensor, pack_codes
from bnn_kernels.ops import pooling
from bnn_kernels.steps.base import Spec, Step, need, step
from bnn_kernels.steps.fields import Bool, StepFields


@dataclass(frozen=True, kw_only=True)
class PoolFields(StepFields):
    """Windows (y, x); dilation: from one number of a window to the next, 1 if not given."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int] | None = None


class Pool(Step):
    """Geometry shared by all pooling steps."""

    fields: PoolFields
    kind = "float"

    def build(self) -> None:
        kernel, padding = self.ints("kernel", 2, 1), self.ints("padding", 2, 0)
        dilation = (1, 1) if self.fields.dilation is None else self.ints("dilation", 2, 1)
        need(all(2 * p <= k for p, k in zip(padding, kernel, strict=True)), "padding is more than half the window")
        self.geometry = (*kernel, *self.ints("stride", 2, 1), *padding, *dilation)

    def infer(self, inputs: list[Spec]) -> Spec:
        (x,) = inputs
        need(x.kind == self.kind and len(x.shape) == 3, f"takes a map of {self.kind}, got {x}")
        return x._replace(shape=(x.shape[0], *pooling.pooled_size(x.shape[1:], self.geometry)))


@step
class MaxPool(Pool):
    """Maximum over floats."""

    class Fields(PoolFields):
        op = "max_pool"

    fields: Fields

    def run(self, x: np.ndarray) -> np.ndarray:
        return pooling.max_pool(x, self.geometry)


@step
class AvgPool(Pool):
    """Mean over floats, pads counted."""

    class Fields(PoolFields):
        op = "avg_pool"

    fields: Fields

    def build(self) -> None:
        super().build()
        need(self.geometry[6:] == (1, 1), "attribute 'dilation' is for a maximum")

    def run(self, x: np.ndarray) -> np.ndarray:
        return pooling.avg_pool(x, self.geometry)


@step
class PoolInt(Pool):
    """Max pooling after an integer layer, moved before its thresholds: a minimum in channels whose thresholds fall."""

    kind = "int"

    @dataclass(frozen=True, kw_only=True)
    class Fields(PoolFields):
        op = "pool_int"
        rising: Bool

    fields: Fields

    def build(self) -> None:
        super().build()
        self.rising = self.tensor("rising", (None,)).astype(np.uint8)

    def infer(self, inputs: list[Spec]) -> Spec:
        need(inputs[0].shape[0] == len(self.rising), f"has {len(self.rising)} channels, got {inputs[0]}")
        return super().infer(inputs)

    def run(self, x: np.ndarray) -> np.ndarray:
        return pooling.extreme_pool(x, self.rising, self.geometry)


@step
class PoolBits(Pool):
    """Max pooling on sign bits: AND, or OR in channels that fall."""

    kind = "bits"

    @dataclass(frozen=True, kw_only=True)
    class Fields(PoolFields):
        op = "pool_bits"
        rising: Bool

    fields: Fields

    def build(self) -> None:
        super().build()
        rising = self.tensor("rising", (None,))
        self.channels = len(rising)
        self.or_mask = pack_codes((~rising).astype(np.uint8)[None], 1)[0, 0]

    def infer(self, inputs: list[Spec]) -> Spec:
        (x,) = inputs
        need((x.signed, x.multipliers) == (True, (1,)), f"takes sign bits, got {x}")
        need(x.shape[0] == self.channels, f"has {self.channels} channels, got {x}")
        return super().infer(inputs)

    def run(self, x: BitTensor) -> BitTensor:
        return pooling.pool_signs(x, self.or_mask, self.geometry)
