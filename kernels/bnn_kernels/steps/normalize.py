"""Steps over the channels of each position (normalization, softmax), and constants that vary by position."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bnn_kernels.checks import plain
from bnn_kernels.ops.over_channels import absmax, normalize, softmax
from bnn_kernels.ops.stretched import combine
from bnn_kernels.runtime.recording import do
from bnn_kernels.runtime.workspace import contiguous, empty
from bnn_kernels.steps.base import Spec, Step, need, step
from bnn_kernels.steps.fields import Float32, StepFields


def _check_floats(inputs: list[Spec]) -> Spec:
    (x,) = inputs
    need(x.kind == "float", f"takes floats, got {x}")
    return x


@step
class Normalize(Step):
    """(x - mean) / sqrt(var + eps) over the channels of each position, the variance biased: layer normalization.

    center false: x / sqrt(mean x^2 + eps), RMS normalization.
    """

    @dataclass(frozen=True, kw_only=True)
    class Fields(StepFields):
        op = "normalize"
        eps: float
        center: bool

    fields: Fields

    def build(self) -> None:
        self.eps = np.float32(self.fields.eps)
        need(bool(self.eps >= 0), f"attribute 'eps' must not be negative, got {self.eps}")
        self.center = self.fields.center

    def infer(self, inputs: list[Spec]) -> Spec:
        return _check_floats(inputs)

    def run(self, x: np.ndarray) -> np.ndarray:
        y = empty(x.shape, np.float32)
        normalize(contiguous(x), y, self.eps, self.center)
        return y


@step
class Absmax(Step):
    """s = max(max|x|, smallest) / levels, over the channels of each position or over "all" numbers of an image."""

    @dataclass(frozen=True, kw_only=True)
    class Fields(StepFields):
        op = "absmax"
        over: Literal["channels", "all"]
        levels: float
        smallest: float

    fields: Fields

    def build(self) -> None:
        self.over_all = self.fields.over == "all"
        self.levels, self.smallest = np.float32(self.fields.levels), np.float32(self.fields.smallest)
        need(bool(self.levels > 0 and self.smallest > 0), "attributes 'levels' and 'smallest' must be positive")

    def infer(self, inputs: list[Spec]) -> Spec:
        shape = _check_floats(inputs).shape
        return Spec("float", (1,) * len(shape) if self.over_all else (1, *shape[1:]))

    def run(self, x: np.ndarray) -> np.ndarray:
        axes = tuple(range(1, x.ndim)) if self.over_all else (x.ndim - 1,)
        y = empty(tuple(1 if axis in axes else side for axis, side in enumerate(x.shape)), np.float32)
        absmax(contiguous(x), y, self.smallest, self.levels)
        return y


@step
class Softmax(Step):
    """exp(x) over its sum along the channels of each position, or the logarithm of that."""

    @dataclass(frozen=True, kw_only=True)
    class Fields(StepFields):
        op = "softmax"
        log: bool

    fields: Fields

    def build(self) -> None:
        self.log = self.fields.log

    def infer(self, inputs: list[Spec]) -> Spec:
        return _check_floats(inputs)

    def run(self, x: np.ndarray) -> np.ndarray:
        y = empty(x.shape, np.float32)
        softmax(contiguous(x), y, self.log)
        return y


@step
class ByPlace(Step):
    """Sum ("add") or product ("multiply") with a constant that may vary over channels, rows and columns.

    value: float32 (H, W, C), or (K,) for a vector; sides of 1 are stretched to the input's.
    """

    @dataclass(frozen=True, kw_only=True)
    class Fields(StepFields):
        op = "by_place"
        kind: Literal["add", "multiply"]
        value: Float32

    fields: Fields

    def build(self) -> None:
        self.function: np.ufunc = np.add if self.fields.kind == "add" else np.multiply
        self.value = plain(self.fields.value)
        need(self.value.ndim in (1, 3), f"tensor 'value' must have one or three axes, got {self.value.ndim}")
        self.shape = (*self.value.shape[2:], *self.value.shape[:2])

    def infer(self, inputs: list[Spec]) -> Spec:
        x = _check_floats(inputs)
        fits = len(x.shape) == len(self.shape) and all(
            a == b or a == 1 for a, b in zip(self.shape, x.shape, strict=True)
        )
        need(fits, f"the constant {self.shape} does not fit {x.shape}")
        return x

    def run(self, x: np.ndarray) -> np.ndarray:
        y = empty(x.shape, np.float32)
        value = self.value.reshape(1, *self.value.shape)
        if not combine(self.fields.kind, contiguous(x), value, y):
            do(self.function, x, self.value, y)
        return y
