"""Layers of bits by bits: convolution and matrix product, with outputs of integers, bits or floats."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from bnn_kernels.bits.level_bytes import LevelTensor
from bnn_kernels.bits.planes import level_of_code
from bnn_kernels.bits.storage import check_dense_bits, to_dense_bits
from bnn_kernels.bits.sum_range import largest_level, largest_sum
from bnn_kernels.bits.tensor import BitTensor
from bnn_kernels.bits.zero_points import ZeroPoints
from bnn_kernels.ops.filters import Filters
from bnn_kernels.ops.geometry import Maps
from bnn_kernels.ops.input_scale import scale_by_input
from bnn_kernels.ops.packed_layers.choice import Choice, choose
from bnn_kernels.ops.packed_layers.conv2d import PackedConv2d
from bnn_kernels.ops.packed_layers.linear import PackedLinear
from bnn_kernels.runtime.lazy import Lazy
from bnn_kernels.runtime.recording import do
from bnn_kernels.steps.base import LevelWriter, Spec, Step, need, step
from bnn_kernels.steps.conv_geometry import ConvFields, conv_size, geometry_of
from bnn_kernels.steps.finish import EPILOGUE_ATTRIBUTES, EpilogueFields, Finish, as_map
from bnn_kernels.steps.input_terms import InputFields, InputTerms, add_scaled, offset_map
from bnn_kernels.steps.thresholds import ThresholdFields, integer_thresholds
from bnn_kernels.steps.weights import PlaneFields, read_terms, weight_bits


def _times_mean_abs(x: np.ndarray, y: np.ndarray) -> None:
    """Multiply y (N, 1, 1, O) by each input's mean of |x|."""
    y *= np.abs(x).reshape(len(x), math.prod(x.shape[1:])).mean(1).reshape(-1, 1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class BinaryLayerFields(PlaneFields, InputFields, ThresholdFields, EpilogueFields):
    """Weights in planes, and of an output of "bits" the thresholds, of one of "float" the epilogue.

    scales: for each term of the weight in turn one (filters,) for each part of the input. zero_points: of each channel
    of the input, or one for all, whose levels count as input_factor * level - zero_point; see `bits.zero_points`.
    """

    output: Literal["int", "float", "bits"]
    zero_points: list[int] | None = None
    input_factor: int = 1


# What needs an output of floats.
INPUT_ATTRIBUTES = tuple(one.stored for one in InputFields.declared())


class BinaryLayer(Step):
    """What binary convolution and linear share: weight terms and three kinds of output.

    output "int": int32 sums. "bits": sums through integer thresholds. "float": sum over the weight's terms, and for
    each over the input's (see `InputTerms`), of float32(dot) * scale, times XNOR-Net's K of a second input if
    `input_scale`, then what `Finish` says. With a scale and a shift alone these are the operations of the PyTorch layer
    in evaluation in the same order, so the same numbers.
    """

    fields: BinaryLayerFields
    # Whether outputs are vectors.
    is_flat: ClassVar[bool]
    geometry: tuple[int, ...] = ()
    pads = False
    pad_level = 0
    groups = 1

    def layer(self, dense: np.ndarray, shape: tuple[int, ...], multipliers: tuple[int, ...], signed: bool) -> Any:
        raise NotImplementedError

    def build(self) -> None:
        self.shape = self.layer_shape()
        given = self.fields
        self.output = given.output
        filters = self.shape[0]
        terms = read_terms(given)
        self.given = InputTerms(given)
        self.zero = self._zero_points()
        offset = given.weight_offset
        several = len(terms) + offset > 1 or self.given.several
        need(self.output == "float" or not several, "integer sums need a weight and an input with one scale")
        need(self.pad_level == 0 or not self.given.several, "an input of several terms can be padded with zeros only")
        self.layers = [self._lazy(i, *term) for i, term in enumerate(terms)]
        if offset:
            self.layers.append(Lazy(self._ones))
        # What the input's offset adds, for each term of the weight and shape of the input.
        self.offsets: dict[tuple[int, tuple[int, ...]], Lazy[np.ndarray]] = {}
        self.input_scale = given.input_scale
        self.arity = 1
        if self.output == "float":
            count = len(self.layers) * self.given.count
            self.scales = [self.tensor(f"scale.{i}", (filters,)) for i in range(count)]
            # One term without K goes through the epilogue as the layer's integers; all else as a sum of floats.
            self.fused = not several and not self.input_scale
            self.finish = Finish(self, filters, self.scales[0] if self.fused else None)
            self.arity += self.input_scale + self.finish.arity
        else:
            extra = given.attrs().keys() & {"weight_offset", *INPUT_ATTRIBUTES, *EPILOGUE_ATTRIBUTES}
            need(not extra, f"attributes {sorted(extra)} need a float output")
        self.thresholds = integer_thresholds(self, filters) if self.output == "bits" else None

    def _zero_points(self) -> ZeroPoints | None:
        given = self.fields
        if given.zero_points is None:
            need(given.input_factor == 1, "attribute 'input_factor' goes with zero points")
            return None
        need(1 <= given.input_factor <= 1 << 15, f"attribute 'input_factor' is no factor: {given.input_factor}")
        need(not self.is_flat, "zero points are for the channels of maps")
        need(not self.given.several, "an input of several terms has no zero points")
        need(self.pad_level == 0 or not self.pads, "inputs with zero points are padded with 0")
        points = self.ints("zero_points", None, -(1 << 22), 1 << 22)
        channels = self.shape[1] * self.groups
        need(len(points) in (1, channels), f"has zero points for {len(points)} channels, takes {channels}")
        return ZeroPoints(given.input_factor, points)

    def _lazy(self, index: int, multipliers: tuple[int, ...], signed: bool) -> Lazy[Any]:
        """Return the layer of one term, made of its dense bits when it is first used."""
        dense = self.stored(f"bits.{index}", (len(multipliers), None))
        check_dense_bits(dense, self.shape)

        def make() -> Any:
            return self.layer(dense, self.shape, multipliers, signed)

        return Lazy(make)

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
        largest = max(largest_level(*term) for term in read_terms(self.fields))
        level = self.given.largest_level(x) if self.zero is None else self.zero.largest(x.multipliers, x.signed)
        largest_sum(math.prod(self.shape[1:]), level, largest)
        if self.zero is not None:
            self.chosen(inputs)
        if self.pad_level != 0 and self.pads:
            multipliers, signed = self.given.terms[0] if self.given.terms else (x.multipliers, x.signed)
            is_level = self.pad_level in level_of_code(multipliers, signed)
            need(is_level, f"attribute 'pad_level' {self.pad_level} is not a level of the input, {x}")
        if self.thresholds is not None:
            return Spec("bits", shape, self.thresholds.signed, self.thresholds.multipliers)
        if self.output == "int":
            return Spec("int", shape)
        if self.input_scale:
            need(inputs[1].kind == "float" and inputs[1].shape == x.shape, f"K is of floats {x.shape}, got {inputs[1]}")
        return self.finish.infer(shape, inputs[1 + self.input_scale :])

    def macs(self, inputs: list[Spec]) -> int:
        return math.prod(self.shape) * math.prod(self.out_shape(inputs[0].shape)[1:])

    def filters_and_maps(self, x: Spec) -> tuple[tuple[int, ...], tuple[int, int], tuple[int, int]]:
        """Return (shape of the filters, size of the map, size of the output) for an input: what its kernels see."""
        raise NotImplementedError

    def chosen(self, inputs: list[Spec]) -> list[Choice]:
        """Return the kernels for inputs of these specs: of each term of the weight with each one of the input."""
        shape, extent, out = self.filters_and_maps(inputs[0])
        parts = self.given.terms or [(inputs[0].multipliers, inputs[0].signed)]
        return [
            choose(Filters(shape, *term, self.groups), Maps(extent, out, signed, multipliers, self.zero))
            for term in read_terms(self.fields)
            for multipliers, signed in parts
        ]

    def kernel(self, inputs: list[Spec]) -> str:
        return "; ".join(dict.fromkeys(f"{choice.name}: {choice.why}" for choice in self.chosen(inputs)))

    def reads_bytes(self, inputs: list[Spec]) -> bool:
        if self.given.terms is not None or self.fields.weight_offset:
            return False
        return all(choice.multiplies for choice in self.chosen(inputs))

    @property
    def level_writer(self) -> LevelWriter | None:
        if self.thresholds is not None:
            return None if self.thresholds.is_sign else self.thresholds
        return self.finish.level_writer if self.output == "float" else None

    def precision(self, inputs: list[Spec]) -> str:
        return f"W{weight_bits(self.fields)}A{len(inputs[0].multipliers)}"

    def run(self, x: LevelTensor, *given: np.ndarray) -> Any:
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

    def sums(self, x: LevelTensor, *floats: np.ndarray) -> np.ndarray:
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
                do(np.add, y, self._offset(i, x.shape[1:]), y)
        assert y is not None
        if self.input_scale:
            self.scale_by_input(floats[0], y)
        return self.trim(y)

    def _offset(self, index: int, shape: tuple[int, ...]) -> np.ndarray:
        """Return what the input's offset adds to every output for one term of the weight; shape: the input's."""

        def make() -> np.ndarray:
            scale = self.scales[(index + 1) * self.given.count - 1]
            return offset_map(self.layers[index]().channels_last, shape, scale)

        return self.offsets.setdefault((index, shape), Lazy(make))()

    def nearby(self, share: float, x: LevelTensor, *floats: np.ndarray) -> tuple[BitTensor, BitTensor] | None:
        if self.output != "float" or not self.finish.bits:
            return None
        return self.finish.nearby(share, self.sums(x, *floats), None if self.finish.residual is None else floats[-1])

    def scale_by_input(self, floats: np.ndarray, y: np.ndarray) -> None:
        raise NotImplementedError

    def trim(self, y: np.ndarray) -> np.ndarray:
        return y[:, 0, 0] if self.is_flat else y


@step
class BinaryConv(BinaryLayer):
    """Convolution of bit planes; attribute shape = (O, C/groups, kh, kw), pad_level = an integer level of the input."""

    @dataclass(frozen=True, kw_only=True)
    class Fields(BinaryLayerFields, ConvFields):
        op = "binary_conv"
        pad_level: int

    fields: Fields
    is_flat = False

    def layer_shape(self) -> tuple[int, ...]:
        shape = self.ints("shape", 4, 1)
        self.geometry = geometry_of(self, shape[2:])
        self.pads = any(self.fields.padding)
        self.groups = self.fields.groups
        need(self.groups >= 1 and shape[0] % self.groups == 0, f"groups {self.groups} do not divide {shape[0]} filters")
        self.pad_level = self.fields.pad_level
        need(abs(self.pad_level) <= 1 << 15, f"attribute 'pad_level' is no level of an input: {self.pad_level}")
        return shape

    def layer(
        self, dense: np.ndarray, shape: tuple[int, ...], multipliers: tuple[int, ...], signed: bool
    ) -> PackedConv2d:
        g = self.geometry
        sides = (g[2:4], (*g[4:6], *g[8:]), g[6:8], self.groups, self.pad_level)
        return PackedConv2d.from_dense_bits(dense, shape, multipliers, signed, *sides, self.zero)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        channels = self.shape[1] * self.groups
        need(len(shape) == 3 and shape[0] == channels, f"takes a map of {channels} channels, got {shape}")
        return self.shape[0], *conv_size(shape, self.geometry)

    def filters_and_maps(self, x: Spec) -> tuple[tuple[int, ...], tuple[int, int], tuple[int, int]]:
        return self.shape, (x.shape[1], x.shape[2]), conv_size(x.shape, self.geometry)

    def scale_by_input(self, floats: np.ndarray, y: np.ndarray) -> None:
        scale_by_input(floats, y, self.groups, self.geometry[:8])


@step
class BinaryLinear(BinaryLayer):
    """Matrix product of bit planes; attribute shape = (O, K); the input is (K,) or a map (C, H, W) with C*H*W = K."""

    @dataclass(frozen=True, kw_only=True)
    class Fields(BinaryLayerFields):
        op = "binary_linear"
        shape: list[int]

    fields: Fields
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

    def filters_and_maps(self, x: Spec) -> tuple[tuple[int, ...], tuple[int, int], tuple[int, int]]:
        channels, height, width = x.shape if len(x.shape) == 3 else (x.shape[0], 1, 1)
        return (self.shape[0], channels, height, width), (height, width), (1, 1)

    def scale_by_input(self, floats: np.ndarray, y: np.ndarray) -> None:
        do(_times_mean_abs, floats, y)
