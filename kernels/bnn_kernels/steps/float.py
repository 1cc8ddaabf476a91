"""Layers with float inputs, such as stem and classifier; their weights are floats or bits."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnn_kernels.ops.depthwise.windows import suits
from bnn_kernels.ops.float_conv import POINTWISE, FloatConv2d
from bnn_kernels.runtime.lazy import Lazy
from bnn_kernels.steps.base import LevelWriter, Spec, Step, need, step
from bnn_kernels.steps.conv_geometry import ConvFields, conv_size, geometry_of
from bnn_kernels.steps.fields import Float32
from bnn_kernels.steps.finish import EpilogueFields, Finish, as_map
from bnn_kernels.steps.weights import WeightFields, filters_of, weight_bits


@dataclass(frozen=True, kw_only=True)
class FloatLayerFields(WeightFields, EpilogueFields):
    """A weight, a bias (filters,), and a scale of the sums (filters,) before it."""

    bias: Float32 | None = None
    scale: Float32 | None = None


class FloatLayer(Step):
    """What float convolution and linear share: a weight of float32 or bit planes (BWN, TWN), a bias, an epilogue.

    The bias is the epilogue's shift, after its scale.
    """

    fields: FloatLayerFields

    def read_finish(self, filters: int) -> None:
        """Read the epilogue, which follows the sums."""
        vectors = (self.tensor(name, (filters,)) if name in self.tensors else None for name in ("scale", "bias"))
        need(self.fields.bias is None or self.fields.shift is None, "has a bias and a shift, which are the same")
        self.finish = Finish(self, filters, *vectors)
        self.arity = 1 + self.finish.arity

    def precision(self, inputs: list[Spec]) -> str:
        return f"W{weight_bits(self.fields)}A32"

    def kernel(self, inputs: list[Spec]) -> str:
        return "float32" if self.fields.terms is None else "float32, weights held as bits"

    @property
    def level_writer(self) -> LevelWriter | None:
        return self.finish.level_writer


@step
class FloatConv(FloatLayer):
    """Convolution with float input."""

    @dataclass(frozen=True, kw_only=True)
    class Fields(FloatLayerFields, ConvFields):
        op = "float_conv"
        pad_value: float

    fields: Fields

    def build(self) -> None:
        self.shape = self.ints("shape", 4, 1)
        groups = self.fields.groups
        need(groups >= 1 and self.shape[0] % groups == 0, f"groups {groups} do not divide {self.shape[0]} filters")
        self.channels = self.shape[1] * groups
        self.geometry = geometry_of(self, self.shape[2:])
        pad = float(self.fields.pad_value)
        need(np.isfinite(pad), f"attribute 'pad_value' must be finite, got {pad}")
        weight = filters_of(self, self.shape, groups)
        self.conv = Lazy(lambda: FloatConv2d(weight(), None, self.geometry, groups, pad))
        self.read_finish(self.shape[0])

    def infer(self, inputs: list[Spec]) -> Spec | tuple[Spec, ...]:
        x = inputs[0]
        need(x.kind == "float" and len(x.shape) == 3, f"takes a float map, got {x}")
        need(x.shape[0] == self.channels, f"takes {self.channels} channels, got {x.shape[0]}")
        return self.finish.infer((self.shape[0], *conv_size(x.shape, self.geometry)), inputs[1:])

    def macs(self, inputs: list[Spec]) -> int:
        return math.prod(self.shape) * math.prod(conv_size(inputs[0].shape, self.geometry))

    def kernel(self, inputs: list[Spec]) -> str:
        depthwise = suits(self.fields.groups, self.shape[1], self.shape[0] // self.fields.groups)
        return "float32, depthwise" if depthwise else super().kernel(inputs)

    def run(self, x: np.ndarray, residual: np.ndarray | None = None) -> Any:
        done = self.conv().finish(x, self.out_size(x), self.finish.epilogue, residual, self.finish.keep)
        return self.finish.hand_on(*done, flat=False)

    def out_size(self, x: np.ndarray) -> tuple[int, int]:
        return conv_size((x.shape[3], *x.shape[1:3]), self.geometry)

    def nearby(self, share: float, x: np.ndarray, *residual: np.ndarray) -> tuple[Any, Any] | None:
        return self.finish.nearby(share, self.conv()(x, self.out_size(x)), residual[0] if residual else None)


@step
class FloatLinear(FloatLayer):
    """Matrix product with float input (N, K)."""

    @dataclass(frozen=True, kw_only=True)
    class Fields(FloatLayerFields):
        op = "float_linear"
        shape: list[int]

    fields: Fields

    def build(self) -> None:
        self.shape = self.ints("shape", 2, 1, 1 << 30)
        weight = filters_of(self, self.shape)
        self.product = Lazy(lambda: FloatConv2d(weight(), None, POINTWISE))
        self.read_finish(self.shape[0])

    def infer(self, inputs: list[Spec]) -> Spec | tuple[Spec, ...]:
        x = inputs[0]
        need(x == Spec("float", (self.shape[1],)), f"takes {self.shape[1]} float features, got {x}")
        return self.finish.infer((self.shape[0],), inputs[1:])

    def macs(self, inputs: list[Spec]) -> int:
        return math.prod(self.shape)

    def run(self, x: np.ndarray, residual: np.ndarray | None = None) -> Any:
        other = None if residual is None else as_map(residual)
        done = self.product().finish(as_map(x), (1, 1), self.finish.epilogue, other, self.finish.keep)
        return self.finish.hand_on(*done, flat=True)

    def nearby(self, share: float, x: np.ndarray, *residual: np.ndarray) -> tuple[Any, Any] | None:
        y = self.product()(as_map(x), (1, 1))[:, 0, 0]
        return self.finish.nearby(share, y, residual[0] if residual else None)
