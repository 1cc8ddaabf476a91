"""Steps that treat every number by itself: batch norm, residual, activation and the next signs in one pass; gates."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bnn_kernels.bits.tensor import BitTensor
from bnn_kernels.compile.jit import jit
from bnn_kernels.ops.epilogue import Epilogue
from bnn_kernels.runtime.lazy import Later
from bnn_kernels.runtime.recording import do
from bnn_kernels.runtime.workspace import empty
from bnn_kernels.steps.base import Spec, Step, need, step

EPILOGUE_ATTRIBUTES = ("residual", "low", "high", "keep")
EPILOGUE_TENSORS = ("shift", "norm_scale", "norm_shift", "pre", "slope", "post", "bounds", "flip")


def as_map(x: np.ndarray) -> np.ndarray:
    """Return (N, 1, 1, K) of a (N, K) array; maps pass."""
    return x.reshape(len(x), 1, 1, x.shape[1]) if x.ndim == 2 else x


def within(share: float, x: np.ndarray) -> np.float32:
    """Return a share of the largest finite number of x."""
    return np.float32(share * np.abs(x, where=np.isfinite(x), out=np.zeros_like(x)).max(initial=0))


class Finish:
    """What a step does to its floats before it hands them on: read from its attributes and tensors.

    residual: None, "before" or "after" (the step reads one more register then). keep: whether it hands on the floats.
    signs: whether it hands on bits too. scale, shift: float32 (channels,) that the step reads by itself.
    """

    def __init__(self, this: Step, channels: int, scale: np.ndarray | None, shift: np.ndarray | None = None):
        self.residual = this.attrs.get("residual")
        need(self.residual in (None, "before", "after"), f"unknown residual {self.residual!r}")
        self.keep = this.attr("keep", bool) if "keep" in this.attrs else True
        self.signs = "bounds" in this.tensors
        need(self.keep or self.signs, "a step must make floats or bits")
        parts: dict[str, Any] = {
            name: this.tensor(name, np.float32, (channels,))
            for name in ("shift", "norm_scale", "norm_shift", "pre", "slope", "post", "bounds")
            if name in this.tensors
        }
        if shift is not None:
            parts["shift"] = shift
        if self.signs:
            parts["flip"] = this.tensor("flip", np.bool_, (channels,))
        for name in ("low", "high"):
            if this.attrs.get(name) is not None:
                parts[name] = float(this.attr(name, float))
        need(parts.get("low", -np.inf) <= parts.get("high", np.inf), "low is above high")
        self.channels = channels
        self._epilogue = Later(lambda: Epilogue(channels, scale=scale, residual=self.residual, **parts))
        # Nothing to do to the floats themselves.
        self.is_plain = scale is None and not this.tensors.keys() & set(EPILOGUE_TENSORS) and set(parts) == set()
        self.is_plain = self.is_plain and self.residual is None

    @property
    def epilogue(self) -> Epilogue:
        """The pass itself, made at its first use: no attribute of a file makes it allocate before."""
        return self._epilogue()

    @property
    def arity(self) -> int:
        """How many registers are read: the residual, if there is one."""
        return 0 if self.residual is None else 1

    def infer(self, shape: tuple[int, ...], residual: list[Spec]) -> Spec | tuple[Spec, ...]:
        """Return the specs of floats and bits, those that are handed on."""
        need(shape[0] == self.channels, f"takes {self.channels} channels, got {shape}")
        for spec in residual:
            need(spec == Spec("float", shape), f"the residual must be float {shape}, got {spec}")
        made = [Spec("float", shape)] * self.keep + [Spec("bits", shape)] * self.signs
        return made[0] if len(made) == 1 else tuple(made)

    def hand_on(self, floats: np.ndarray | None, bits: Any, flat: bool) -> Any:
        """Return what `infer` promised of the epilogue's results; flat: as (N, K)."""
        if flat:
            floats = None if floats is None else floats.reshape(len(floats), self.channels)
            bits = None if bits is None else type(bits)(bits.words, bits.shape[:2], bits.signed, bits.multipliers)
        return (floats, bits) if self.keep and self.signs else floats if self.keep else bits

    def nearby(self, share: float, y: np.ndarray, residual: np.ndarray | None) -> tuple[BitTensor, BitTensor] | None:
        """Return the signs (N, C, H, W) if all finished floats were lower, and higher, by a share of the largest."""
        if not self.signs:
            return None
        floats, _ = self.epilogue(as_map(y), None if residual is None else as_map(residual))
        assert floats is not None
        rounding = within(share, floats)
        signs = Epilogue(self.channels, bounds=self.epilogue.bounds, flip=self.epilogue.flip)
        _, lower = signs(floats - rounding, keep=False)
        _, higher = signs(floats + rounding, keep=False)
        assert lower is not None and higher is not None
        return lower, higher

    def __call__(self, y: np.ndarray, residual: np.ndarray | None) -> Any:
        """Finish floats (N, H, W, C) or (N, K)."""
        if self.is_plain:
            return y
        other = None if residual is None else as_map(residual)
        return self.hand_on(*self.epilogue(as_map(y), other, self.keep), flat=y.ndim == 2)


@step
class Elementwise(Step):
    """y * scale + shift, batch norm, residual, PReLU with shifts, clamp, signs: each if given, as in `Epilogue`."""

    op = "elementwise"
    recordable = True
    attributes = ("channels", *EPILOGUE_ATTRIBUTES)
    tensor_names = ("scale", *EPILOGUE_TENSORS)

    def build(self) -> None:
        channels = self.attr("channels", int)
        need(1 <= channels <= 1 << 24, f"attribute 'channels' must be positive, got {channels}")
        scale = self.tensor("scale", np.float32, (channels,)) if "scale" in self.tensors else None
        self.finish = Finish(self, channels, scale)
        self.arity = 1 + self.finish.arity

    def infer(self, inputs: list[Spec]) -> Spec | tuple[Spec, ...]:
        need(inputs[0].kind == "float", f"takes floats, got {inputs[0]}")
        return self.finish.infer(inputs[0].shape, inputs[1:])

    def run(self, x: np.ndarray, residual: np.ndarray | None = None) -> Any:
        return self.finish(x, residual)

    def nearby(self, share: float, *inputs: Any) -> tuple[BitTensor, BitTensor] | None:
        return self.finish.nearby(share, inputs[0], inputs[1] if len(inputs) > 1 else None)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, np.float32(1), small) / (1 + small)


def _hard_sigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip(x + np.float32(3), 0, 6) / np.float32(6)


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


@jit
def _erf_rows(x, y, first, last):
    """y = erf(x), flat."""
    for i in range(first, last):
        y[i] = math.erf(x[i])


def _erf(x: np.ndarray) -> np.ndarray:
    y = np.empty(x.shape, np.float32)
    _erf_rows(np.ascontiguousarray(x).reshape(-1), y.reshape(-1), 0, x.size)
    return y


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (1 + np.tanh(inner))


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "hard_sigmoid": _hard_sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "hard_swish": lambda x: x * _hard_sigmoid(x),
    "gelu": lambda x: np.float32(0.5) * x * (1 + _erf(x * np.float32(math.sqrt(0.5)))),
    "gelu_tanh": _gelu_tanh,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "softplus": _softplus,
    "log_sigmoid": lambda x: -_softplus(-x),
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "abs": np.abs,
    "exp": np.exp,
    "square": np.square,
}


@step
class Activation(Step):
    """A function of one number that is no chain of straight pieces; attribute kind names it."""

    op = "activation"
    recordable = True
    attributes = ("kind",)

    def build(self) -> None:
        kind = self.attr("kind", str)
        need(kind in ACTIVATIONS, f"unknown activation {kind!r}; known are {', '.join(ACTIVATIONS)}")
        self.function = ACTIVATIONS[kind]

    def infer(self, inputs: list[Spec]) -> Spec:
        need(inputs[0].kind == "float", f"takes floats, got {inputs[0]}")
        return inputs[0]

    def run(self, x: np.ndarray) -> np.ndarray:
        y = empty(x.shape, np.float32)
        do(self._apply, x, y)
        return y

    def _apply(self, x: np.ndarray, y: np.ndarray) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # infinite, as in PyTorch
            y[...] = self.function(x)


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

    op = "combine"
    recordable = True
    attributes = ("kind",)
    arity = 2

    def build(self) -> None:
        kind = self.attr("kind", str)
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
        do(self.function, a, b, out)
        return out
