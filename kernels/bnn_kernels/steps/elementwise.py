"""Elementwise steps: the epilogue as a step of its own, activation functions, sums and products of two values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnn_kernels.bits.tensor import BitTensor
from bnn_kernels.ops import activations
from bnn_kernels.ops.stretched import KINDS, combine
from bnn_kernels.runtime.recording import do
from bnn_kernels.runtime.workspace import contiguous, empty
from bnn_kernels.steps.base import LevelWriter, Spec, Step, need, step
from bnn_kernels.steps.fields import Float32, StepFields
from bnn_kernels.steps.finish import EpilogueFields, Finish


@step
class Elementwise(Step):
    """y * scale + shift, batch norm, residual, PReLU with shifts, clamp, bits: each if given, as in `Epilogue`.

    y: floats, or a layer's integers of which levels are made.
    """

    @dataclass(frozen=True, kw_only=True)
    class Fields(EpilogueFields):
        op = "elementwise"
        channels: int
        scale: Float32 | None = None

    fields: Fields

    def build(self) -> None:
        channels = self.fields.channels
        need(1 <= channels <= 1 << 24, f"attribute 'channels' must be positive, got {channels}")
        scale = None if self.fields.scale is None else self.tensor("scale", (channels,))
        self.finish = Finish(self, channels, scale)
        self.arity = 1 + self.finish.arity

    def infer(self, inputs: list[Spec]) -> Spec | tuple[Spec, ...]:
        of_integers = inputs[0].kind == "int" and self.finish.levels is not None
        need(inputs[0].kind == "float" or of_integers, f"takes floats, got {inputs[0]}")
        return self.finish.infer(inputs[0].shape, inputs[1:])

    def run(self, x: np.ndarray, residual: np.ndarray | None = None) -> Any:
        return self.finish(x, residual)

    @property
    def level_writer(self) -> LevelWriter | None:
        return self.finish.level_writer

    def nearby(self, share: float, *inputs: Any) -> tuple[BitTensor, BitTensor] | None:
        return self.finish.nearby(share, inputs[0], inputs[1] if len(inputs) > 1 else None)


def _log_sigmoid(x: np.ndarray) -> np.ndarray:
    return np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))


# What NumPy computes; the curves of `activations` have kernels.
FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "log_sigmoid": _log_sigmoid,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "abs": np.abs,
    "exp": np.exp,
    "square": np.square,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "round": np.rint,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
}
ACTIVATIONS = (*activations.KINDS, *FUNCTIONS)


@step
class Activation(Step):
    """A function of one number that is no chain of straight pieces; attribute kind names it."""

    @dataclass(frozen=True, kw_only=True)
    class Fields(StepFields):
        op = "activation"
        kind: str

    fields: Fields

    def build(self) -> None:
        kind = self.fields.kind
        need(kind in ACTIVATIONS, f"unknown activation {kind!r}; known are {', '.join(ACTIVATIONS)}")
        self.function = FUNCTIONS.get(kind)

    def infer(self, inputs: list[Spec]) -> Spec:
        need(inputs[0].kind == "float", f"takes floats, got {inputs[0]}")
        return inputs[0]

    def run(self, x: np.ndarray) -> np.ndarray:
        y = empty(x.shape, np.float32)
        if self.function is None:
            activations.activate(self.fields.kind, contiguous(x), y)
        else:
            do(_apply, self.function, x, y)
        return y


def _apply(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray) -> None:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # infinite, as in PyTorch
        y[...] = function(x)


def _divide(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    with np.errstate(divide="ignore", invalid="ignore"):  # infinite, as in PyTorch
        np.divide(a, b, out)


COMBINATIONS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "multiply": np.multiply,
    "divide": _divide,
    "maximum": lambda a, b, out: np.maximum(a, b, out=out),
    "minimum": lambda a, b, out: np.minimum(a, b, out=out),
}


@step
class Combine(Step):
    """Sum, product or quotient of two values, sides of 1 stretched to the other's.

    Gates (C, 1, 1), attention maps (1, H, W), scales that follow the input.
    """

    @dataclass(frozen=True, kw_only=True)
    class Fields(StepFields):
        op = "combine"
        kind: str

    fields: Fields
    arity = 2

    def build(self) -> None:
        kind = self.fields.kind
        need(kind in COMBINATIONS, f"unknown kind {kind!r}; known are {', '.join(COMBINATIONS)}")
        self.function = COMBINATIONS[kind]

    def infer(self, inputs: list[Spec]) -> Spec:
        a, b = inputs
        need(a.kind == b.kind == "float", f"takes floats, got {a} and {b}")
        fits = len(a.shape) == len(b.shape) and all(
            m == n or 1 in (m, n) for m, n in zip(a.shape, b.shape, strict=True)
        )
        need(fits, f"the shapes {a.shape} and {b.shape} do not fit")
        return Spec("float", tuple(max(m, n) for m, n in zip(a.shape, b.shape, strict=True)))

    def run(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        out = empty(np.broadcast_shapes(a.shape, b.shape), np.float32)
        if self.fields.kind not in KINDS or not combine(self.fields.kind, contiguous(a), contiguous(b), out):
            do(self.function, a, b, out)
        return out
