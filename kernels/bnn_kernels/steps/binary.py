"""Steps into, on and out of bits: pack, binary layers with their epilogues, pooling on integers and bits."""

import functools
import math
from typing import Any, ClassVar

import numpy as np

from bnn_kernels.bits.planes import check_planes, level_of_code
from bnn_kernels.bits.quantize import in_order
from bnn_kernels.bits.storage import check_dense_bits, from_dense_bits, to_dense_bits
from bnn_kernels.bits.sum_range import largest_level, largest_sum
from bnn_kernels.bits.tensor import (
    BitTensor,
    flip_words,
    pack_by_bounds,
    pack_codes,
    quantize_channels_last,
    unpack_channels_last,
    unpack_codes,
)
from bnn_kernels.bits.threshold_storage import expand
from bnn_kernels.bits.thresholds import Thresholds
from bnn_kernels.ops import pooling
from bnn_kernels.ops.input_scale import scale_by_input
from bnn_kernels.ops.packed_layers.conv2d import PackedConv2d
from bnn_kernels.ops.packed_layers.linear import PackedLinear
from bnn_kernels.runtime.lazy import Later
from bnn_kernels.runtime.recording import do
from bnn_kernels.runtime.workspace import empty
from bnn_kernels.steps.base import Spec, Step, need, step
from bnn_kernels.steps.elementwise import EPILOGUE_ATTRIBUTES, EPILOGUE_TENSORS, Finish, as_map, within
from bnn_kernels.steps.float import WEIGHT_ATTRIBUTES, Pool, conv_size, geometry_of, has_offset, read_terms, weight_bits
from bnn_kernels.steps.input_terms import InputTerms, add_scaled, offset_map


def output_planes(this: Step) -> tuple[bool, tuple[int, ...]]:
    """Return (signed, multipliers) of the bits that a step makes."""
    signed = this.attr("signed", bool)
    return signed, check_planes(this.attr("multipliers", list), signed)


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
class Pack(Step):
    """Float -> bits: level index = #{i : (x >= thresholds[i]) xor flip}; the codes table gives its planes."""

    op = "pack"
    recordable = True
    attributes = ("signed", "multipliers")
    tensor_names = ("thresholds", "flip", "codes")

    def build(self) -> None:
        self.signed, self.multipliers = output_planes(self)
        self.thresholds = self.tensor("thresholds", np.float32, (None, None))
        self.codes = self.tensor("codes", np.uint8, (len(self.thresholds) + 1,))
        self.flip = self.tensor("flip", np.bool_, self.thresholds.shape[1:])
        need(int(self.codes.max()) >> len(self.multipliers) == 0, "a code does not fit the planes")
        self.channels = self.thresholds.shape[1]
        self.ready: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        # One comparison a bit is far cheaper than a search.
        self.is_sign = self.multipliers == (1,) and tuple(self.codes) == (1, 0)

    def infer(self, inputs: list[Spec]) -> Spec:
        (x,) = inputs
        need(x.kind == "float", f"takes floats, got {x}")
        need(self.channels in (1, x.shape[0]), f"has thresholds for {self.channels} channels, got {x.shape[0]}")
        return Spec("bits", x.shape, self.signed, self.multipliers)

    def run(self, x: np.ndarray) -> BitTensor:
        shape = x.shape if x.ndim == 2 else (x.shape[0], x.shape[3], x.shape[1], x.shape[2])
        thresholds, flip = self.for_channels(shape[1])
        if self.is_sign:
            return pack_by_bounds(as_map(x), shape, thresholds[0], flip)
        return quantize_channels_last(as_map(x), shape, thresholds, flip, self.codes, self.signed, self.multipliers)

    def nearby(self, share: float, x: np.ndarray) -> tuple[BitTensor, BitTensor]:
        rounding = within(share, x)
        return self.run(x - rounding), self.run(x + rounding)

    def for_channels(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """Return thresholds and directions as the kernels take them, for that many channels."""
        if channels not in self.ready:
            thresholds = np.broadcast_to(in_order(self.thresholds, self.flip), (len(self.thresholds), channels))
            flip = np.broadcast_to(self.flip, channels)
            ready = flip_words(flip) if self.is_sign else flip.astype(np.uint8)
            self.ready[channels] = np.ascontiguousarray(thresholds), ready
        return self.ready[channels]


@step
class Unpack(Step):
    """Bits -> float, for float weights behind a quantized input: level * scale, or the value of every code."""

    op = "unpack"
    recordable = True
    attributes = ("scale",)
    tensor_names = ("values",)

    def build(self) -> None:
        need(("scale" in self.attrs) != ("values" in self.tensors), "needs a scale or values, one of them")
        self.values = self.tensor("values", np.float32, (None,)) if "values" in self.tensors else None
        self.scale = np.float32(self.attr("scale", float)) if self.values is None else None

    def infer(self, inputs: list[Spec]) -> Spec:
        (x,) = inputs
        need(x.kind == "bits", f"takes bits, got {x}")
        codes = 1 << len(x.multipliers)
        need(self.values is None or len(self.values) == codes, f"has not one value for each of {codes} codes")
        return Spec("float", x.shape)

    def run(self, x: BitTensor) -> np.ndarray:
        y = empty((*x.words.shape[1:4], x.shape[1]), np.float32)
        do(self._unpack, x, y)
        return y[:, 0, 0] if len(x.shape) == 2 else y

    def _unpack(self, x: BitTensor, y: np.ndarray) -> None:
        if self.scale is not None:
            np.multiply(unpack_channels_last(x), self.scale, y)
        elif self.values is not None:
            np.take(self.values, unpack_codes(x), out=y)


def _times_mean_abs(x: np.ndarray, y: np.ndarray) -> None:
    """Multiply y (N, 1, 1, O) by each input's mean of |x|."""
    y *= np.abs(x).reshape(len(x), math.prod(x.shape[1:])).mean(1).reshape(-1, 1, 1, 1)


INPUT_ATTRIBUTES = ("input_terms", "input_offset", "input_scale")


class BinaryLayer(Step):
    """What binary convolution and linear share: weight terms and three kinds of output.

    output "int": int32 sums. "bits": sums through integer thresholds. "float": sum over the weight's terms, and for
    each over the input's (see `InputTerms`), of float32(dot) * scale, times XNOR-Net's K of a second input if
    `input_scale`, then what `Finish` says. With a scale and a shift alone these are the operations of the PyTorch layer
    in evaluation in the same order, so the same numbers.
    """

    tensor_names = ("bits.*", "scale.*", *EPILOGUE_TENSORS, *THRESHOLDS)
    recordable = True
    # Whether outputs are vectors.
    is_flat: ClassVar[bool]
    geometry: tuple[int, ...] = ()
    pad_level = 0
    groups = 1

    def layer(self, dense: np.ndarray, shape: tuple[int, ...], multipliers: tuple[int, ...], signed: bool) -> Any:
        raise NotImplementedError

    def build(self) -> None:
        self.shape = self.layer_shape()
        self.output = self.attr("output", str)
        need(self.output in ("int", "float", "bits"), f"unknown output {self.output!r}")
        filters = self.shape[0]
        terms = read_terms(self)
        self.given = InputTerms(self)
        offset = has_offset(self)
        several = len(terms) + offset > 1 or self.given.several
        need(self.output == "float" or not several, "integer sums need a weight and an input with one scale")
        need(self.pad_level == 0 or not self.given.several, "an input of several terms can be padded with zeros only")
        self.layers = [self._later(i, *term) for i, term in enumerate(terms)]
        if offset:
            self.layers.append(Later(self._ones))
        self.input_scale = self.attr("input_scale", bool) if "input_scale" in self.attrs else False
        self.arity = 1
        if self.output == "float":
            count = len(self.layers) * self.given.count
            self.scales = [self.tensor(f"scale.{i}", np.float32, (filters,)) for i in range(count)]
            # One term without K goes through the epilogue as the layer's integers; all else as a sum of floats.
            self.fused = not several and not self.input_scale
            self.finish = Finish(self, filters, self.scales[0] if self.fused else None)
            self.arity += self.input_scale + self.finish.arity
        else:
            extra = {*self.attrs} & {"weight_offset", *INPUT_ATTRIBUTES, *EPILOGUE_ATTRIBUTES}
            need(not extra, f"attributes {sorted(extra)} need a float output")
        self.thresholds = integer_thresholds(self, filters) if self.output == "bits" else None

    def _later(self, index: int, multipliers: tuple[int, ...], signed: bool) -> Later[Any]:
        """Return the layer of one term, expanded from its dense bits when it is first used."""
        dense = self.tensor(f"bits.{index}", np.uint8, (len(multipliers), None))
        check_dense_bits(dense, self.shape)

        def make() -> Any:
            return self.layer(dense, self.shape, multipliers, signed)

        return Later(make)

    def _ones(self) -> Any:
        """Return the layer of the weight's offset: one filter of ones a group, whose sums all filters share."""
        shape = (self.groups, *self.shape[1:])
        return self.layer(to_dense_bits(np.ones(shape, np.uint8), 1), shape, (1,), False)

    def layer_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        raise NotImplementedError

    def infer(self, inputs: list[Spec]) -> Spec | tuple[Spec, ...]:
        x = inputs[0]
        need(x.kind == "bits", f"takes bits, got {x}")
        shape = self.out_shape(x.shape)
        largest = max(largest_level(*term) for term in read_terms(self))
        largest_sum(math.prod(self.shape[1:]), self.given.largest_level(x), largest)
        if self.pad_level != 0 and any(self.geometry[4:6]):
            multipliers, signed = self.given.terms[0] if self.given.terms else (x.multipliers, x.signed)
            is_level = self.pad_level in level_of_code(multipliers, signed)
            need(is_level, f"attribute 'pad_level' {self.pad_level} is not a level of the input, {x}")
        if self.given.offset:
            self.offsets = [Later(functools.partial(self._offset, i, x.shape)) for i in range(len(self.layers))]
        if self.thresholds is not None:
            return Spec("bits", shape, self.thresholds.signed, self.thresholds.multipliers)
        if self.output == "int":
            return Spec("int", shape)
        if self.input_scale:
            need(inputs[1].kind == "float" and inputs[1].shape == x.shape, f"K is of floats {x.shape}, got {inputs[1]}")
        return self.finish.infer(shape, inputs[1 + self.input_scale :])

    def macs(self, inputs: list[Spec]) -> int:
        return math.prod(self.shape) * math.prod(self.out_shape(inputs[0].shape)[1:])

    def precision(self, inputs: list[Spec]) -> str:
        return f"W{weight_bits(self)}A{len(inputs[0].multipliers)}"

    def run(self, x: BitTensor, *given: np.ndarray) -> Any:
        layer = self.layers[0]()
        if self.thresholds is not None:
            return layer.to_levels(x, self.thresholds)
        if self.output == "int":
            return self.trim(layer.channels_last(x))
        residual = None if self.finish.residual is None else given[-1]
        if self.fused:
            residual = None if residual is None else as_map(residual)
            floats, bits = layer.finish(x, self.finish.epilogue, residual, self.finish.keep)
            return self.finish.hand_on(floats, bits, self.is_flat)
        return self.finish(self.sums(x, *given), residual)

    def sums(self, x: BitTensor, *floats: np.ndarray) -> np.ndarray:
        """Return what the epilogue finishes: sums over terms, scaled, times K; of one term alone its integers."""
        if self.fused:
            return self.trim(self.layers[0]().channels_last(x).astype(np.float32))
        parts = self.given.split(x)
        scales = iter(self.scales)
        y: np.ndarray | None = None
        for i, layer in enumerate(self.layers):
            for part in parts:
                y = add_scaled(layer().channels_last(part), next(scales), y)
            if self.given.offset:
                next(scales)
                do(np.add, y, self.offsets[i](), y)
        assert y is not None
        if self.input_scale:
            self.scale_by_input(floats[0], y)
        return self.trim(y)

    def _offset(self, index: int, shape: tuple[int, ...]) -> np.ndarray:
        """Return what the input's offset times the weight's term of this number adds to every output."""
        scale = self.scales[(index + 1) * self.given.count - 1]
        return offset_map(self.layers[index]().channels_last, shape, scale)

    def nearby(self, share: float, x: BitTensor, *floats: np.ndarray) -> tuple[BitTensor, BitTensor] | None:
        if self.output != "float" or not self.finish.signs:
            return None
        return self.finish.nearby(share, self.sums(x, *floats), None if self.finish.residual is None else floats[-1])

    def scale_by_input(self, floats: np.ndarray, y: np.ndarray) -> None:
        raise NotImplementedError

    def trim(self, y: np.ndarray) -> np.ndarray:
        return y[:, 0, 0] if self.is_flat else y


@step
class BinaryConv(BinaryLayer):
    """Convolution of bit planes; attribute shape = (O, C/groups, kh, kw), pad_level = an integer level of the input."""

    op = "binary_conv"
    attributes = (
        "shape", "stride", "padding", "dilation", "groups", "pad_level",
        *WEIGHT_ATTRIBUTES, *INPUT_ATTRIBUTES, "output", "signed", "multipliers", *EPILOGUE_ATTRIBUTES,
    )  # fmt: skip
    is_flat = False

    def layer_shape(self) -> tuple[int, ...]:
        shape = self.ints("shape", 4, 1)
        self.geometry = geometry_of(self, shape[2:])
        self.groups = self.attr("groups", int)
        need(self.groups >= 1 and shape[0] % self.groups == 0, f"groups {self.groups} do not divide {shape[0]} filters")
        self.pad_level = self.attr("pad_level", int)
        need(abs(self.pad_level) <= 1 << 15, f"attribute 'pad_level' is no level of an input: {self.pad_level}")
        return shape

    def layer(
        self, dense: np.ndarray, shape: tuple[int, ...], multipliers: tuple[int, ...], signed: bool
    ) -> PackedConv2d:
        codes = from_dense_bits(dense, shape)
        g = self.geometry
        return PackedConv2d.from_codes(codes, multipliers, signed, g[2:4], g[4:6], g[6:8], self.groups, self.pad_level)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        channels = self.shape[1] * self.groups
        need(len(shape) == 3 and shape[0] == channels, f"takes a map of {channels} channels, got {shape}")
        return self.shape[0], *conv_size(shape, self.geometry)

    def scale_by_input(self, floats: np.ndarray, y: np.ndarray) -> None:
        scale_by_input(floats, y, self.groups, self.geometry)


@step
class BinaryLinear(BinaryLayer):
    """Matrix product of bit planes; attribute shape = (O, K); the input is (K,) or a map (C, H, W) with C*H*W = K."""

    op = "binary_linear"
    attributes = (
        "shape", *WEIGHT_ATTRIBUTES, *INPUT_ATTRIBUTES, "output", "signed", "multipliers", *EPILOGUE_ATTRIBUTES,
    )  # fmt: skip
    is_flat = True

    def layer_shape(self) -> tuple[int, ...]:
        return self.ints("shape", 2, 1, 1 << 30)

    def layer(
        self, dense: np.ndarray, shape: tuple[int, ...], multipliers: tuple[int, ...], signed: bool
    ) -> PackedLinear:
        return PackedLinear.from_dense_bits(dense, shape, multipliers, signed)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        need(int(np.prod(shape)) == self.shape[1], f"takes {self.shape[1]} features, got {shape}")
        return (self.shape[0],)

    def scale_by_input(self, floats: np.ndarray, y: np.ndarray) -> None:
        do(_times_mean_abs, floats, y)


@step
class PoolInt(Pool):
    """Max pooling behind an integer layer, moved before its thresholds: a minimum in falling channels."""

    op = "pool_int"
    kind = "int"
    tensor_names = ("rising",)

    def build(self) -> None:
        super().build()
        self.rising = self.tensor("rising", np.bool_, (None,)).astype(np.uint8)

    def infer(self, inputs: list[Spec]) -> Spec:
        need(inputs[0].shape[0] == len(self.rising), f"has {len(self.rising)} channels, got {inputs[0]}")
        return super().infer(inputs)

    def run(self, x: np.ndarray) -> np.ndarray:
        return pooling.extreme_pool(x, self.rising, self.geometry)


@step
class PoolBits(Pool):
    """Max pooling on sign bits: AND, or OR in channels that fall."""

    op = "pool_bits"
    kind = "bits"
    tensor_names = ("rising",)

    def build(self) -> None:
        super().build()
        rising = self.tensor("rising", np.bool_, (None,))
        self.channels = len(rising)
        self.or_mask = pack_codes((~rising).astype(np.uint8)[None], 1)[0, 0]

    def infer(self, inputs: list[Spec]) -> Spec:
        (x,) = inputs
        need((x.signed, x.multipliers) == (True, (1,)), f"takes sign bits, got {x}")
        need(x.shape[0] == self.channels, f"has {self.channels} channels, got {x}")
        return super().infer(inputs)

    def run(self, x: BitTensor) -> BitTensor:
        return pooling.pool_signs(x, self.or_mask, self.geometry)


@step
class Threshold(Step):
    """int32 sums -> bits, where something lies between the layer and its thresholds."""

    op = "threshold"
    recordable = True
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
