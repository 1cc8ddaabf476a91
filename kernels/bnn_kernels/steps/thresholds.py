"""Integer sums to bits through the thresholds of each channel: their form in a file, and the step."""

import numpy as np

from bnn_kernels.bits.tensor import BitTensor
from bnn_kernels.bits.threshold_storage import expand
from bnn_kernels.bits.thresholds import Thresholds
from bnn_kernels.steps.base import Spec, Step, need, step
from bnn_kernels.steps.finish import as_map
from bnn_kernels.steps.planes import output_planes

THRESHOLDS = ("thresholds", "threshold_ends", "threshold_residuals", "flip", "codes")


def integer_thresholds(this: Step, channels: int | None) -> Thresholds:
    """Return the integer thresholds of a step, stored as they are or as residuals."""
    if "thresholds" in this.tensors:
        t = this.tensor("thresholds", np.int32, (None, channels))
    else:
        residuals = this.tensor("threshold_residuals", np.int8, (None, channels))
        t = expand(this.tensor("threshold_ends", np.int32, (2, residuals.shape[1])), residuals)
    flip = this.tensor("flip", np.bool_, (t.shape[1],))
    codes = this.tensor("codes", np.uint8, (len(t) + 1,))
    return Thresholds(t, flip, codes, *output_planes(this))


@step
class Threshold(Step):
    """int32 sums -> bits, where something lies between the layer and its thresholds."""

    op = "threshold"
    attributes = ("signed", "multipliers")
    tensor_names = THRESHOLDS

    def build(self) -> None:
        self.thresholds = integer_thresholds(self, None)

    def infer(self, inputs: list[Spec]) -> Spec:
        (x,) = inputs
        need(x.kind == "int", f"takes integers, got {x}")
        need(x.shape[0] == self.thresholds.channels, f"has {self.thresholds.channels} channels, got {x}")
        return Spec("bits", x.shape, self.thresholds.signed, self.thresholds.multipliers)

    def run(self, x: np.ndarray) -> BitTensor:
        bits = self.thresholds(as_map(x))
        return bits if x.ndim == 4 else BitTensor(bits.words, bits.shape[:2], bits.signed, bits.multipliers)
