"""Rules of quantized layers, and of quantizers on their own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from bnn_kernels.bits.storage import dense_of_planes
from bnn_kernels.bits.sum_range import largest_sum
from bnn_kernels.steps.binary import BinaryConv, BinaryLayerFields, BinaryLinear
from bnn_kernels.steps.fields import Float32, Uint8
from bnn_kernels.steps.fields import Term as StoredTerm
from bnn_kernels.steps.float import FloatConv, FloatLayerFields, FloatLinear
from bnn_kernels.steps.normalize import Absmax as AbsmaxStep
from torch import Tensor, nn

from bnn.converter.capture.sign_of_zero import zero_is_positive
from bnn.converter.graph.builder import Builder, ConvSides
from bnn.converter.graph.input_levels import levels_of
from bnn.converter.graph.values import BinaryLayer, FloatLayer, Levels, Unpacked, Value
from bnn.converter.recognize.few_values import multiplies_exactly
from bnn.converter.recognize.moved_levels import bits_of
from bnn.converter.recognize.staircase import Steps
from bnn.converter.recognize.zero_padding import Padded, level_of_zero, zeros_around
from bnn.converter.recognize.zeros import meets_no_zero
from bnn.converter.registry import register_rule
from bnn.layers import QuantConv1d, QuantConv2d, QuantLinear
from bnn.layers.base import QuantLayer, output_scale, weight_planes
from bnn.planes import Planes, Term
from bnn.quantizers.base import Absmax


@register_rule(torch.ops.aten.sign, torch.ops.aten.sgn)
def sign(build: Builder, x: Value) -> Value:
    """-1, 0 or +1: three levels, or two where no 0 is to be expected, or sign(0) is to be +1."""
    zero = torch.tensor(0.0)
    starts = [zero] if zero_is_positive() or meets_no_zero(x) else [zero, torch.nextafter(zero, torch.tensor(1.0))]
    return build.quantize(x, Steps(2.0 / len(starts), -1.0, torch.arange(len(starts) + 1), torch.stack(starts)))


def weight_terms(build: Builder, layer: QuantLayer) -> tuple[Term, ...]:
    """Return the terms of a layer's weight, its offset among them; refuse what is no scale of an output channel."""
    terms = weight_planes(layer).terms
    if any(term.scale.ndim > 1 for term in terms):
        build.fail("a weight with other scales than one for each output channel cannot be converted")
    return terms


def dense(term: Term) -> np.ndarray:
    """Return a weight term's planes as dense bits, uint8 (P, bytes)."""
    return dense_of_planes(term.bits.cpu().numpy())


class StoredPlanes(TypedDict):
    """A weight's terms as the fields of a step, without their scales."""

    terms: list[StoredTerm]
    weight_offset: bool
    bits: tuple[Uint8, ...]


class GivenParts(TypedDict):
    """How a step takes its input apart, as its fields."""

    input_terms: list[StoredTerm] | None
    input_offset: bool
    input_scale: bool


class StoredWeight(TypedDict):
    """A weight as the fields of a step on floats."""

    terms: list[StoredTerm] | None
    weight_offset: bool
    bits: tuple[Uint8, ...]
    scales: tuple[Float32, ...]
    weight: Float32 | None


def stored_planes(terms: tuple[Term, ...]) -> StoredPlanes:
    """Return how weight terms are stored; an offset, which is 1 everywhere, needs no bits."""
    last = terms[-1]
    offset = len(terms) > 1 and not last.signed and last.multipliers == (1,) and bool(last.bits.all())
    stored = terms[:-1] if offset else terms
    return {"terms": planes_of(stored), "weight_offset": offset, "bits": tuple(dense(term) for term in stored)}


def stored_weight(weight: "Weight", shape: Sequence[int]) -> StoredWeight:
    """Return how a weight of floats or of terms is stored, filters first; shape: the step's."""
    if isinstance(weight, Tensor):
        floats = weight.numpy().reshape(shape).copy()
        return {"terms": None, "weight_offset": False, "bits": (), "scales": (), "weight": floats}
    scales = tuple(term.scale.detach().to(torch.float32).expand(shape[0]).numpy().copy() for term in weight)
    return {**stored_planes(weight), "scales": scales, "weight": None}


def planes_of(terms: tuple[Term, ...]) -> list[StoredTerm]:
    """Return the planes of terms as an attribute."""
    return [{"multipliers": list(term.multipliers), "signed": term.signed} for term in terms]


@register_rule(QuantConv1d, QuantConv2d)
def quantized_conv(build: Builder, layer: Any, x: Value) -> Value:
    """Return what a quantized convolution makes of x: bits where both sides have them, floats elsewhere."""
    if layer.padding_mode != "zeros":
        build.fail(f"padding must have mode 'zeros', got {layer.padding_mode!r}; pad explicitly")
    conv, shape = build.conv_sides(x, layer.weight.shape, layer.stride, layer.padding, layer.dilation, layer.groups)
    by_input = layer.input_scale or layer.input_quantizer.absmax is not None
    if not by_input and not any(conv["padding"]) and (inside := zeros_around(x)) is not None:
        y = _inside_zeros(build, layer, inside)
        if y is not None:
            return y
    given, weight, scale = operands(build, layer, x)
    bias = layer.bias if scale is None else None
    if isinstance(given, Levels):
        if scale is not None and layer._pad() != 0:
            build.fail(f"pad_value {layer._pad():+g} is no value of an input whose scale follows it: use 0")
        pad_level = _pad_level(build, layer, given.planes.parts)
        scaled_by = x if layer.input_scale else None
        y = binary_layer(build, given, weight, bias, conv, shape, scaled_by, pad_level=pad_level)
    else:
        y = float_layer(given, weight, bias, conv, shape, float(layer._pad()))
    return y if scale is None else rescaled(build, y, scale, layer.bias)


def _inside_zeros(build: Builder, layer: Any, inside: Padded) -> Value | None:
    """Return what a convolution makes of a map with zeros around it, its padding; None if they have no level."""
    given, weight, _ = operands(build, layer, inside.x, named=False)
    conv, shape = build.conv_sides(
        inside.x, layer.weight.shape, layer.stride, inside.around, layer.dilation, layer.groups
    )  # fmt: skip
    levels = given if isinstance(given, Levels) else given.inputs[0] if isinstance(given, Unpacked) else None
    if not isinstance(levels, Levels):
        return float_layer(given, weight, layer.bias, conv, shape)
    # Levels that come from before the padding have plain zeros around them.
    pad_level = level_of_zero(levels) if layer.input_quantizer.packable else 0
    if pad_level is None:
        return None
    if isinstance(given, Levels):
        return binary_layer(build, given, weight, layer.bias, conv, shape, pad_level=pad_level)
    pad_value = float(levels.quantizer(torch.zeros(1, 1))) if pad_level else 0.0
    return float_layer(given, weight, layer.bias, conv, shape, pad_value)


@register_rule(QuantLinear)
def quantized_linear(build: Builder, layer: Any, x: Value) -> Value:
    """Return what a quantized linear layer makes of vectors, or of the last axis of tokens."""
    if len(x.shape) == 1 and _has_zero_points(layer):  # which steps of convolutions know: one token
        y = quantized_linear(build, layer, build.move(x, lambda p: p[:, None]))
        moved: Value = build.move(y, lambda p: p[:, 0])
        return moved
    tokens = len(x.shape) > 1
    conv: ConvSides | None = None
    shape: tuple[int, ...] = (layer.weight.shape[0],)
    if tokens:  # a convolution of 1x1 over them
        x = build.channels_first(x)
        sides = [1] * (len(x.shape) - 1)
        conv, shape = build.conv_sides(x, (*layer.weight.shape, *sides), 1, 0, 1, 1)
    given, weight, scale = operands(build, layer, x)
    bias = layer.bias if scale is None else None
    if isinstance(given, Levels):
        scaled_by = x if layer.input_scale else None
        y = binary_layer(build, given, weight, bias, conv, shape, scaled_by)
    else:
        y = float_layer(given, weight, bias, conv, shape)
    y = y if scale is None else rescaled(build, y, scale, layer.bias)
    return build.channels_last(y) if tokens else y


def _has_zero_points(layer: Any) -> bool:
    """Whether a linear layer multiplies levels of inputs that count as less their zero points."""
    if not (layer.input_quantizer.packable and layer.weight_quantizer.packable):
        return False
    terms = layer.input_quantizer.planes(torch.zeros(1, layer.in_features)).terms
    return any(term.zero_points is not None for term in terms)


Weight = Tensor | tuple[Term, ...]


def operands(build: Builder, layer: Any, x: Value, named: bool = True) -> tuple[Value, Weight, Value | None]:
    """Return what a layer multiplies, and what its product is to be multiplied by, if the input's scale follows it.

    Levels and terms where both sides have bits, else floats and terms or floats. named: whether the levels are those
    that the layer in PyTorch makes, so that a report may compare them.
    """
    weight: Weight = layer.filters(layer.weight.detach())
    if layer.weight_quantizer.packable:
        weight = weight_terms(build, layer)
    levels: Value | None = None
    scale: Value | None = None
    quantizer = layer.input_quantizer
    if quantizer.packable:
        # A quantizer of a linear layer has its channels on the last axis.
        linear = isinstance(layer, nn.Linear)
        if quantizer.absmax is not None:
            scale = _absmax(build, x, quantizer.absmax, over_all=not linear)
            x, quantizer = build.divide(x, scale), quantizer.absmax.at_one
        source = f"{build.place} input" if named and build.by_image else ""
        levels = levels_of(quantizer, x, build.place, source, channels_last=linear)
    elif layer.weight_quantizer.packable and isinstance(moved := bits_of(build, x), Unpacked):
        (levels,) = moved.inputs
    if levels is None or layer.weight_quantizer.packable:
        return (x if levels is None else levels), weight, scale
    return Unpacked(x.shape, (levels,)), weight, scale


def _absmax(build: Builder, x: Value, absmax: Absmax, over_all: bool) -> Value:
    """Return the scale of each token (over the channels), or of the whole input."""
    over: Literal["all", "channels"] = "all" if over_all else "channels"
    shape = (1,) * len(x.shape) if over_all else (1, *x.shape[1:])
    return build.step(x, shape, AbsmaxStep.Fields(over=over, levels=absmax.levels, smallest=absmax.smallest))


def rescaled(build: Builder, y: Value, scale: Value, bias: Tensor | None) -> Value:
    """Return a layer's product, without its bias, times the input's scale, and then the bias."""
    y = build.multiply(y, scale)
    return y if bias is None else build.affine(y, shift=bias)


def float_layer(
    x: Value, weight: Weight, bias: Tensor | None, conv: ConvSides | None, shape: tuple[int, ...],
    pad_value: float = 0.0,
) -> Value:  # fmt: skip
    """Return the product of floats and a weight of floats or of planes, filters first; conv: None for a matrix."""
    terms = () if isinstance(weight, Tensor) else weight
    stored_bias = None if bias is None else bias.detach().numpy().copy()
    fields: FloatLayerFields
    if conv is None:
        sides = weight.shape if isinstance(weight, Tensor) else weight[0].bits.shape[1:]
        fields = FloatLinear.Fields(shape=list(sides), bias=stored_bias, **stored_weight(weight, sides))
    else:
        stored = stored_weight(weight, conv["shape"])
        fields = FloatConv.Fields(**conv, pad_value=pad_value, bias=stored_bias, **stored)
    return FloatLayer(shape, (x,), fields=fields, terms=terms)


def binary_layer(
    build: Builder, levels: Value, terms: Weight, bias: Tensor | None, conv: ConvSides | None,
    shape: tuple[int, ...], scaled_by: Value | None = None, in_floats: bool = False, pad_level: int = 0,
) -> Value:  # fmt: skip
    """Return the product of levels and a weight's terms; conv: None for a matrix.

    scaled_by: the floats of which XNOR-Net's K is the scale. in_floats: PyTorch computes it in floats, not as scaled
    integers.
    """
    assert isinstance(terms, tuple)
    assert isinstance(levels, Levels)
    parts = levels.planes.parts
    levels_of = max(part.max_level for part in parts), max(term.max_level for term in terms)
    try:
        largest = largest_sum(terms[0].bits[0, 0].numel(), *levels_of)
    except ValueError as error:
        build.fail(str(error))
    filters = shape[0]
    planes = levels.planes
    given: GivenParts = {
        "input_terms": planes_of(planes.terms) if len(planes.terms) > 1 else None,
        "input_offset": planes.offset is not None,
        "input_scale": scaled_by is not None,
    }
    stored = stored_planes(terms)
    fields: BinaryLayerFields
    if conv is None:
        assert planes.terms[0].zero_points is None, "a linear layer with zero points is a convolution of one token"
        sides = list(terms[0].bits.shape[1:])
        fields = BinaryLinear.Fields(shape=sides, output="float", **stored, **given)
    else:
        fields = BinaryConv.Fields(**conv, pad_level=pad_level, output="float", **stored, **given)
        fields = replace(fields, **_zero_points(planes))
    scales = tuple(output_scale(given, term, 2).reshape(-1).expand(filters) for term in terms for given in parts)
    return BinaryLayer(
        shape,
        (levels,) if scaled_by is None else (levels, scaled_by),
        fields=fields,
        terms=terms,
        scales=scales,
        constant=_constant(planes, terms, scales, conv is not None and any(conv["padding"])),
        bias=None if bias is None else bias.detach(),
        largest=largest,
        exact=not in_floats or multiplies_exactly(scales),
        path=build.place,
    )


class ZeroPointFields(TypedDict):
    """What the levels of an input count as, as the fields of a step."""

    zero_points: list[int] | None
    input_factor: int


def _zero_points(planes: Planes) -> ZeroPointFields:
    """Return what the codes of an input count as: a term with zero points is stored as its code."""
    term = planes.terms[0]
    if term.zero_points is None:
        return {"zero_points": None, "input_factor": 1}
    return {"zero_points": term.zero_points.tolist(), "input_factor": term.multipliers[0]}


def _pad_level(build: Builder, layer: Any, parts: tuple[Term, ...]) -> int:
    """Return the level of the input that stands for the layer's pad_value."""
    if layer._pad() != 0 and len(parts) != 1:
        build.fail(f"pad_value {layer._pad():+g} needs an input quantizer of one term without an offset: use 0")
    try:
        return int(layer.pad_level(parts[0]))
    except ValueError as error:
        build.fail(str(error))


def _constant(planes: Planes, terms: tuple[Term, ...], scales: tuple[Tensor, ...], pads: bool) -> Tensor | None:
    """Return what the input's offset adds to a layer of one term of inputs and weights, unless it varies by place."""
    if planes.offset is None or len(scales) != 2 or len(terms) != 1 or pads:
        return None
    ones = terms[0].levels(torch.int64).flatten(1).sum(1)
    return ones.to(scales[1].dtype) * scales[1]
