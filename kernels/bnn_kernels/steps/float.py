"""Layers on floats, such as stem and classifier, and pooling."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bnn_kernels.bits.planes import level_of_code
from bnn_kernels.bits.storage import check_dense_bits, from_dense_bits
from bnn_kernels.ops import pooling
from bnn_kernels.ops.float_conv import POINTWISE, FloatConv2d
from bnn_kernels.runtime.lazy import Later
from bnn_kernels.steps.base import Spec, Step, need, read_planes, step
from bnn_kernels.steps.elementwise import EPILOGUE_ATTRIBUTES, EPILOGUE_TENSORS, Finish, as_map


def geometry_of(this: Step, kernel: Sequence[int]) -> tuple[int, ...]:
    """Return (kh, kw, sy, sx, py, px, dy, dx) of a convolution step."""
    stride, padding = this.ints("stride", 2, 1), this.ints("padding", 2, 0)
    return (*kernel, *stride, *padding, *this.ints("dilation", 2, 1))


def conv_size(shape: tuple[int, ...], geometry: tuple[int, ...]) -> tuple[int, int]:
    """Return (Ho, Wo) of a convolution over (C, H, W); PlanError if the filter does not fit."""
    kh, kw, sy, sx, py, px, dy, dx = geometry
    for extent, padding in zip(shape[1:], (py, px), strict=True):
        need(padding <= 2 * extent + 16, f"padding {padding} of a side of {extent} is mostly outside")
    ho = (shape[1] + 2 * py - dy * (kh - 1) - 1) // sy + 1
    wo = (shape[2] + 2 * px - dx * (kw - 1) - 1) // sx + 1
    need(ho > 0 and wo > 0, f"a {kh}x{kw} filter does not fit a {shape[1]}x{shape[2]} map")
    return ho, wo


def float_weight(this: Step, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    """Return what makes the float32 weights: stored as floats, or as scaled bit planes; both are checked here."""
    if "terms" not in this.attrs:
        weight = this.tensor("weight", np.float32, shape)
        return lambda: weight
    terms = []
    for i, (multipliers, signed) in enumerate(read_terms(this)):
        dense = this.tensor(f"bits.{i}", np.uint8, (len(multipliers), None))
        check_dense_bits(dense, shape)
        scale = this.tensor(f"scale.{i}", np.float32, (shape[0],)).reshape(-1, *[1] * (len(shape) - 1))
        terms.append((dense, level_of_code(multipliers, signed).astype(np.float32), scale))
    offset = None
    if has_offset(this):
        offset = this.tensor(f"scale.{len(terms)}", np.float32, (shape[0],)).reshape(-1, *[1] * (len(shape) - 1))

    def make() -> np.ndarray:
        parts = (levels[from_dense_bits(dense, shape)] * scale for dense, levels, scale in terms)
        weight = functools.reduce(np.add, parts)
        return weight if offset is None else weight + offset

    return make


def weight_bits(this: Step) -> int:
    """Return the bits of a weight: its planes, 32 for a float."""
    return sum(len(term["multipliers"]) for term in this.attrs["terms"]) if "terms" in this.attrs else 32


WEIGHT_ATTRIBUTES = ("terms", "weight_offset")


def has_offset(this: Step) -> bool:
    """Whether a quantized weight has an offset, a term that is 1 everywhere: of it only the scale is stored."""
    return bool(this.attr("weight_offset", bool)) if "weight_offset" in this.attrs else False


def read_terms(this: Step) -> list[tuple[tuple[int, ...], bool]]:
    """Return (multipliers, signed) of each term of a quantized weight."""
    return read_planes(this, "terms")


class FloatLayer(Step):
    """What float convolution and linear share: a weight of float32 or bit planes (BWN, TWN), a bias, an epilogue.

    The bias is the epilogue's shift, behind its scale.
    """

    recordable = True
    tensor_names = ("weight", "bits.*", "scale.*", "bias", "scale", *EPILOGUE_TENSORS)

    def read_finish(self, filters: int) -> None:
        """Read what comes behind the sums."""
        vectors = (self.tensor(name, np.float32, (filters,)) if name in self.tensors else None
                   for name in ("scale", "bias"))  # fmt: skip
        need(not {"bias", "shift"} <= set(self.tensors), "has a bias and a shift, which are the same")
        self.finish = Finish(self, filters, *vectors)
        self.arity = 1 + self.finish.arity

    def precision(self, inputs: list[Spec]) -> str:
        return f"W{weight_bits(self)}A32"


@step
class FloatConv(FloatLayer):
    """Convolution with float input."""

    op = "float_conv"
    attributes = (
        "shape", "stride", "padding", "dilation", "groups", "pad_value", *WEIGHT_ATTRIBUTES, *EPILOGUE_ATTRIBUTES,
    )  # fmt: skip

    def build(self) -> None:
        self.shape = self.ints("shape", 4, 1)
        groups = self.attr("groups", int)
        need(groups >= 1 and self.shape[0] % groups == 0, f"groups {groups} do not divide {self.shape[0]} filters")
        self.channels = self.shape[1] * groups
        self.geometry = geometry_of(self, self.shape[2:])
        pad = float(self.attr("pad_value", float))
        need(np.isfinite(pad), f"attribute 'pad_value' must be finite, got {pad}")
        weight = float_weight(self, self.shape)
        self.conv = Later(lambda: FloatConv2d(weight(), None, self.geometry, groups, pad))
        self.read_finish(self.shape[0])

    def infer(self, inputs: list[Spec]) -> Spec | tuple[Spec, ...]:
        x = inputs[0]
        need(x.kind == "float" and len(x.shape) == 3, f"takes a float map, got {x}")
        need(x.shape[0] == self.channels, f"takes {self.channels} channels, got {x.shape[0]}")
        return self.finish.infer((self.shape[0], *conv_size(x.shape, self.geometry)), inputs[1:])

    def macs(self, inputs: list[Spec]) -> int:
        return math.prod(self.shape) * math.prod(conv_size(inputs[0].shape, self.geometry))

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

    op = "float_linear"
    attributes = ("shape", *WEIGHT_ATTRIBUTES, *EPILOGUE_ATTRIBUTES)

    def build(self) -> None:
        self.shape = self.ints("shape", 2, 1, 1 << 30)
        weight = float_weight(self, self.shape)
        self.product = Later(lambda: FloatConv2d(weight()[:, :, None, None], None, POINTWISE))
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


class Pool(Step):
    """Geometry shared by all pooling steps."""

    attributes = ("kernel", "stride", "padding")
    recordable = True
    kind = "float"

    def build(self) -> None:
        kernel, padding = self.ints("kernel", 2, 1), self.ints("padding", 2, 0)
        need(all(2 * p <= k for p, k in zip(padding, kernel, strict=True)), "padding is more than half the window")
        self.geometry = (*kernel, *self.ints("stride", 2, 1), *padding)

    def infer(self, inputs: list[Spec]) -> Spec:
        (x,) = inputs
        need(x.kind == self.kind and len(x.shape) == 3, f"takes a map of {self.kind}, got {x}")
        g = self.geometry
        size = pooling.pooled_size(x.shape[1:], g[:2], g[2:4], g[4:])
        return x._replace(shape=(x.shape[0], *size))


@step
class MaxPool(Pool):
    """Maximum over floats."""

    op = "max_pool"

    def run(self, x: np.ndarray) -> np.ndarray:
        return pooling.max_pool(x, self.geometry)


@step
class AvgPool(Pool):
    """Mean over floats, pads counted."""

    op = "avg_pool"

    def run(self, x: np.ndarray) -> np.ndarray:
        return pooling.avg_pool(x, self.geometry)
