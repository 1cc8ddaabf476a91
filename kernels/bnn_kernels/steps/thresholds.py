"""Integer sums to bits through the thresholds of each channel: their form in a file, and the step."""

from dataclasses import dataclass

import numpy as np

from bnn_kernels.bits.level_bytes import LevelTensor
from bnn_kernels.bits.planes import check_planes
from bnn_kernels.bits.threshold_storage import expand
from bnn_kernels.bits.thresholds import Thresholds
from bnn_kernels.errors import PlanError
from bnn_kernels.steps.base import LevelWriter, Spec, Step, need, step
from bnn_kernels.steps.fields import Bool, Int8, Int32, StepFields, Uint8
from bnn_kernels.steps.finish import as_map


@dataclass(frozen=True, kw_only=True)
class ThresholdFields(StepFields):
    """Integer thresholds (levels - 1, channels), as they are or as the first and last of each channel and residuals.

    signed, multipliers: the planes of the bits. flip: (channels,). codes: (levels,), the planes of each level.
    """

    signed: bool | None = None
    multipliers: list[int] | None = None
    thresholds: Int32 | None = None
    threshold_ends: Int32 | None = None
    threshold_residuals: Int8 | None = None
    flip: Bool | None = None
    codes: Uint8 | None = None


def integer_thresholds(this: Step, channels: int | None) -> Thresholds:
    """Return the integer thresholds of a step, stored as they are or as residuals."""
    given: ThresholdFields = this.fields
    if given.thresholds is not None:
        t = this.tensor("thresholds", (None, channels))
    else:
        residuals = this.stored("threshold_residuals", (None, channels))
        t = expand(this.stored("threshold_ends", (2, residuals.shape[1])), residuals)
    flip = this.tensor("flip", (t.shape[1],))
    codes = this.tensor("codes", (len(t) + 1,))
    signed, multipliers = given.signed, given.multipliers
    if signed is None or multipliers is None:
        raise PlanError("attributes 'signed' and 'multipliers' are missing")
    return Thresholds(t, flip, codes, signed, check_planes(multipliers, signed))


@step
class Threshold(Step):
    """int32 sums -> bits, where something lies between the layer and its thresholds."""

    @dataclass(frozen=True, kw_only=True)
    class Fields(ThresholdFields):
        op = "threshold"
        signed: bool
        multipliers: list[int]
        flip: Bool
        codes: Uint8

    fields: Fields

    def build(self) -> None:
        self.thresholds = integer_thresholds(self, None)

    def infer(self, inputs: list[Spec]) -> Spec:
        (x,) = inputs
        need(x.kind == "int", f"takes integers, got {x}")
        need(x.shape[0] == self.thresholds.channels, f"has {self.thresholds.channels} channels, got {x}")
        return Spec("bits", x.shape, self.thresholds.signed, self.thresholds.multipliers)

    @property
    def level_writer(self) -> LevelWriter | None:
        return None if self.thresholds.is_sign else self.thresholds

    def run(self, x: np.ndarray) -> LevelTensor:
        levels = self.thresholds(as_map(x))
        return levels if x.ndim == 4 else levels.with_shape(levels.shape[:2])
