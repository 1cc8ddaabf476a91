"""A graph of ONNX as it grows: nodes, constants, and the two ways to write integers, Q/DQ and QONNX."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from bnn_kernels.bits.uniform import UniformLevels

Style = Literal["qdq", "qonnx"]
STYLES: tuple[Style, ...] = ("qdq", "qonnx")
# Per-axis DequantizeLinear came with 13; ReduceMean takes its axes as an attribute up to 17.
OPSET, IR_VERSION = 17, 8
QONNX = "qonnx.custom_op.general"


class UnsupportedError(ValueError):
    """A step has no form in ONNX."""


def need(is_so: bool, message: str) -> None:
    """Raise UnsupportedError(message) unless it is so."""
    if not is_so:
        raise UnsupportedError(message)


class Node(NamedTuple):
    """One operation: its inputs and outputs by name."""

    op: str
    inputs: list[str]
    outputs: list[str]
    domain: str
    attributes: dict[str, Any]


class Graph:
    """Nodes and constants in order; `prefix` begins the names of what is added from now on."""

    def __init__(self, style: Style):
        self.style = style
        self.prefix = ""
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self._names: dict[str, int] = {}

    def _name(self, what: str) -> str:
        name = f"{self.prefix}{what}"
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return f"{name}_{count}" if count else name

    def constant(self, value: Any, what: str = "constant") -> str:
        """Return the name of a constant."""
        name = self._name(what)
        self.constants[name] = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
        return name

    def add(self, op: str, inputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        """Add an operation with one output and return its name."""
        name = self._name(op)
        self.nodes.append(Node(op, list(inputs), [name], domain, attributes))
        return name

    def keep(self, outputs: Sequence[str]) -> None:
        """Leave out the nodes and constants that no output needs."""
        needed, live = set(outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                needed.update(node.inputs)
                live.append(node)
        self.nodes = live[::-1]
        self.constants = {name: value for name, value in self.constants.items() if name in needed}

    def floats(self, value: Any, what: str = "constant") -> str:
        """Return the name of a constant of float32."""
        return self.constant(np.asarray(value, np.float32), what)

    def weight(self, levels: np.ndarray, scale: np.ndarray, axis: int = 0) -> str:
        """Return integer weights int (O, ...) times a scale float32 (O,), as integers with their scale.

        axis: that of the filters; 1 of a matrix (K, O). The weight is +-scale, or of so many bits as its levels need.
        """
        levels, scale = levels.astype(np.int64), scale.astype(np.float32).copy()
        shape = [1] * levels.ndim
        shape[axis] = -1
        # No scale is 0, by which QONNX would divide, or negative.
        levels = levels * np.sign(scale).astype(np.int64).reshape(shape)
        least = np.abs(scale[scale != 0]).min(initial=1)
        scale = np.where(scale == 0, np.float32(least), np.abs(scale))
        if self.style == "qdq":
            low, high = int(levels.min()), int(levels.max())
            kind = next(
                (k for k in (np.int8, np.uint8) if np.iinfo(k).min <= low and high <= np.iinfo(k).max), np.int32
            )
            return self.add(
                "DequantizeLinear",
                [
                    self.constant(levels.astype(kind), "weight"),
                    self.floats(scale, "weight_scale"),
                    self.constant(np.zeros(len(scale), kind), "weight_zero_point"),
                ],
                axis=axis,
            )
        wide = scale.reshape(shape)
        given = [self.floats(levels * wide, "weight"), self.floats(wide, "weight_scale")]
        if set(np.unique(levels)) <= {-1, 1}:
            return self.add("BipolarQuant", given, QONNX)
        bits = next(b for b in range(2, 64) if -(1 << (b - 1)) <= levels.min() and levels.max() < 1 << (b - 1))
        given += [self.floats(0, "zero_point"), self.floats(bits, "bits")]
        return self.add("Quant", given, QONNX, signed=1, narrow=0, rounding_mode="ROUND")

    def quantize(self, x: str, levels: UniformLevels, inside: bool = False) -> str:
        """Return floats rounded to evenly spaced levels, as level * `step_of(levels)`.

        In Q/DQ integers level + zero lie between. inside: whether no number is beyond the levels.
        """
        step = step_of(levels)
        low, high = levels.low + levels.zero, levels.high + levels.zero
        signed = low < 0
        bits = levels.bits if self.style == "qonnx" else 8
        least, most = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        if (low, high) != (least, most) and not inside:
            x = self.add("Clip", [x, self.floats(levels.low * step), self.floats(levels.high * step)])
        scale = self.floats(step, "scale")
        if self.style == "qonnx":
            given = [x, scale, self.floats(levels.zero, "zero_point"), self.floats(bits, "bits")]
            return self.add("Quant", given, QONNX, signed=int(signed), narrow=0, rounding_mode="ROUND")
        zero = self.constant(np.array(levels.zero, np.int8 if signed else np.uint8), "zero_point")
        made = self.add("QuantizeLinear", [x, scale, zero])
        return self.add("DequantizeLinear", [made, scale, zero])

    def flatten(self, x: str) -> str:
        """Return (N, K) of a value (N, ...); of integers before they are scaled, so that a product meets those."""
        made = next((node for node in self.nodes if node.outputs == [x]), None)
        if made is None or made.op != "DequantizeLinear":
            return self.add("Flatten", [x], axis=1)
        return self.add(made.op, [self.add("Flatten", made.inputs[:1], axis=1), *made.inputs[1:]])

    def integers_of(self, x: str, less_zero: bool = False) -> str | None:
        """Return the integers of which DequantizeLinear has made x, as floats; None if it has not.

        less_zero: less their zero point.
        """
        made = next((node for node in self.nodes if node.outputs == [x]), None)
        if made is None or made.op != "DequantizeLinear":
            return None
        integers, _, zero = made.inputs
        if not less_zero:
            zero = self.constant(np.zeros_like(self.constants[zero]), "zero_point")
        return self.add("DequantizeLinear", [integers, self.floats(1, "scale"), zero])

    def integers(self, x: str, low: int, high: int) -> str:
        """Return floats that are integers from low to high already, by way of integers where a byte holds them."""
        bits = bits_between(low, high)
        return x if bits is None else self.quantize(x, UniformLevels(1.0, True, low, high, bits), inside=True)

    def signs(self, plus: str) -> str:
        """Return +1 where a bool is true and -1 elsewhere, as values."""
        kind = np.int8 if self.style == "qdq" else np.float32
        made = self.add("Where", [plus, self.constant(np.array(1, kind)), self.constant(np.array(-1, kind))])
        if self.style == "qonnx":
            return self.add("BipolarQuant", [made, self.floats(1, "scale")], QONNX)
        given = [made, self.floats(1, "scale"), self.constant(np.array(0, np.int8), "zero_point")]
        return self.add("DequantizeLinear", given)

    def signs_again(self, x: str) -> str:
        """Return floats that are +1 and -1 already, by way of integers."""
        if self.style == "qonnx":
            return self.add("BipolarQuant", [x, self.floats(1, "scale")], QONNX)
        return self.integers(x, -1, 1)


def bits_between(low: int, high: int) -> int | None:
    """Return the bits of levels from low to high, None if they are more than 8."""
    if low >= 0:
        return next((b for b in range(1, 9) if high < 1 << b), None)
    return next((b for b in range(1, 9) if -(1 << (b - 1)) <= low and high < 1 << (b - 1)), None)


def step_of(levels: UniformLevels) -> np.float32:
    """Return what lies between two levels."""
    return np.float32(levels.factor) if levels.divides else np.float32(1) / np.float32(levels.factor)


def by_channel(vector: np.ndarray, axes: int) -> np.ndarray:
    """Return a vector (C,) so that it meets the channels of a value without batch of so many axes."""
    return vector.reshape(-1, *[1] * (axes - 1))
