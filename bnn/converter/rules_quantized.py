"""Rules of quantized layers, and of quantizers on their own."""

from typing import Any

import numpy as np
import torch
from bnn_kernels.bits.storage import to_dense_bits
from bnn_kernels.bits.sum_range import largest_sum
from torch import Tensor, nn

from bnn.converter.builder import Builder
from bnn.converter.few_values import multiplies_exactly
from bnn.converter.graph import BinaryLayer, FloatLayer, Levels, Unpacked, Value
from bnn.converter.input_levels import levels_of
from bnn.converter.registry import register_rule
from bnn.layers import QuantConv1d, QuantConv2d, QuantLinear
from bnn.layers.base import QuantLayer, output_scale, weight_planes
from bnn.planes import Planes, Term, ternary_bits
from bnn.quantizers.base import Absmax, Quantizer


class _TorchSign(Quantizer):
    """torch.sign: unlike the quantizers' sign it is 0 at 0."""

    elementwise = True

    def forward(self, x: Tensor) -> Tensor:
        return x.sign()

    def planes(self, x: Tensor) -> Planes:
        return Planes((Term(ternary_bits(x.sign()), False, (1, -1), torch.tensor(1.0)),))


@register_rule(torch.sign, "sign", "sign_")
def sign(build: Builder, x: Value) -> Value:
    """-1, 0 or +1: three levels."""
    return build.quantize(x, _TorchSign())


def weight_terms(build: Builder, layer: QuantLayer) -> tuple[Term, ...]:
    """Return the terms of a layer's weight, its offset among them; refuse what is no scale of an output channel."""
    terms = weight_planes(layer).terms
    if any(term.scale.ndim > 1 for term in terms):
        build.fail("a weight with other scales than one for each output channel cannot be converted")
    return terms


def dense(term: Term) -> np.ndarray:
    """Return a weight term's planes as dense bits, uint8 (P, bytes)."""
    bits = term.bits.cpu().numpy().astype(np.uint8)
    codes = np.zeros(bits.shape[1:], np.uint8)
    for p in range(len(bits)):
        codes |= bits[p] << p
    return to_dense_bits(codes, len(bits))


def stored_terms(terms: tuple[Term, ...]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the attributes and the bits of weight terms; an offset, which is 1 everywhere, needs no bits."""
    last = terms[-1]
    offset = len(terms) > 1 and not last.signed and last.multipliers == (1,) and bool(last.bits.all())
    stored = terms[:-1] if offset else terms
    attrs: dict[str, Any] = {"terms": term_attrs(stored)} | ({"weight_offset": True} if offset else {})
    return attrs, {f"bits.{i}": dense(term) for i, term in enumerate(stored)}


def term_attrs(terms: tuple[Term, ...]) -> list[dict[str, Any]]:
    """Return the planes of terms as attributes."""
    return [{"multipliers": list(term.multipliers), "signed": term.signed} for term in terms]


@register_rule(QuantConv1d, QuantConv2d)
def quantized_conv(build: Builder, layer: Any, x: Value) -> Value:
    """Return what a quantized convolution makes of x: bits where both sides have them, floats elsewhere."""
    if layer.padding_mode != "zeros":
        build.fail(f"padding must have mode 'zeros', got {layer.padding_mode!r}; pad explicitly")
    attrs, shape = build.conv_attrs(x, layer.weight.shape, layer.stride, layer.padding, layer.dilation, layer.groups)
    given, weight, scale = operands(build, layer, x)
    bias = layer.bias if scale is None else None
    if isinstance(given, Levels):
        if scale is not None and layer._pad() != 0:
            build.fail(f"pad_value {layer._pad():+g} is no value of an input whose scale follows it: use 0")
        attrs["pad_level"] = _pad_level(build, layer, given.planes.parts)
        scaled_by = x if layer.input_scale else None
        y = binary_layer(build, given, weight, bias, "binary_conv", attrs, shape, scaled_by)
    else:
        attrs["pad_value"] = layer._pad()
        y = float_layer(given, weight, bias, "float_conv", attrs, shape)
    return y if scale is None else rescaled(build, y, scale, layer.bias)


@register_rule(QuantLinear)
def quantized_linear(build: Builder, layer: Any, x: Value) -> Value:
    """Return what a quantized linear layer makes of vectors, or of the last axis of tokens."""
    tokens = len(x.shape) > 1
    if tokens:  # a convolution of 1x1 over them
        x = build.channels_first(x)
        sides = [1] * (len(x.shape) - 1)
        attrs, shape = build.conv_attrs(x, (*layer.weight.shape, *sides), 1, 0, 1, 1)
        kind = "conv"
    else:
        kind, attrs, shape = "linear", {"shape": list(layer.weight.shape)}, (layer.weight.shape[0],)
    given, weight, scale = operands(build, layer, x)
    bias = layer.bias if scale is None else None
    if isinstance(given, Levels):
        attrs |= {"pad_level": 0} if tokens else {}
        scaled_by = x if layer.input_scale else None
        y = binary_layer(build, given, weight, bias, f"binary_{kind}", attrs, shape, scaled_by)
    else:
        attrs |= {"pad_value": 0.0} if tokens else {}
        y = float_layer(given, weight, bias, f"float_{kind}", attrs, shape)
    y = y if scale is None else rescaled(build, y, scale, layer.bias)
    return build.channels_last(y) if tokens else y


Weight = Tensor | tuple[Term, ...]


def operands(build: Builder, layer: Any, x: Value) -> tuple[Value, Weight, Value | None]:
    """Return what a layer multiplies, and what its product is to be multiplied by, if the input's scale follows it.

    Levels and terms where both sides have bits, else floats and terms or floats.
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
        levels = levels_of(quantizer, x, build.place, f"{build.place} input", channels_last=linear)
    elif isinstance(x, Unpacked) and layer.weight_quantizer.packable:
        (levels,) = x.inputs
    if levels is None or layer.weight_quantizer.packable:
        return (x if levels is None else levels), weight, scale
    return Unpacked(x.shape, (levels,)), weight, scale


def _absmax(build: Builder, x: Value, absmax: Absmax, over_all: bool) -> Value:
    """Return the scale of each token (over the channels), or of the whole input."""
    attrs = {"over": "all" if over_all else "channels", "levels": absmax.levels, "smallest": absmax.smallest}
    shape = (1,) * len(x.shape) if over_all else (1, *x.shape[1:])
    return build.step(x, shape, "absmax", attrs)


def rescaled(build: Builder, y: Value, scale: Value, bias: Tensor | None) -> Value:
    """Return a layer's product, without its bias, times the input's scale, and then the bias."""
    y = build.multiply(y, scale)
    return y if bias is None else build.affine(y, shift=bias)


def float_layer(
    x: Value, weight: Weight, bias: Tensor | None, op: str, attrs: dict[str, Any], shape: tuple[int, ...]
) -> Value:
    """Return the product of floats and a weight of floats or of planes, filters first."""
    filters = shape[0]
    if isinstance(weight, Tensor):
        tensors = {"weight": weight.numpy().reshape(attrs["shape"]).copy()}
    else:
        planes, tensors = stored_terms(weight)
        attrs = attrs | planes
        for i, term in enumerate(weight):
            tensors[f"scale.{i}"] = term.scale.detach().to(torch.float32).expand(filters).numpy().copy()
    if bias is not None:
        tensors["bias"] = bias.detach().numpy().copy()
    terms = () if isinstance(weight, Tensor) else weight
    return FloatLayer(shape, (x,), op=op, attrs=attrs, tensors=tensors, terms=terms)


def binary_layer(
    build: Builder, levels: Value, terms: Weight, bias: Tensor | None, op: str, attrs: dict[str, Any],
    shape: tuple[int, ...], scaled_by: Value | None = None, in_floats: bool = False,
) -> Value:  # fmt: skip
    """Return the product of levels and a weight's terms. scaled_by: the floats of which XNOR-Net's K is the scale.

    in_floats: PyTorch computes it in floats, not as scaled integers.
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
    planes, tensors = stored_terms(terms)
    attrs = attrs | planes
    scales = tuple(output_scale(given, term, 2).reshape(-1).expand(filters) for term in terms for given in parts)
    return BinaryLayer(
        shape,
        (levels,) if scaled_by is None else (levels, scaled_by),
        op=op,
        attrs=attrs,
        tensors=tensors,
        terms=terms,
        scales=scales,
        input_attrs=_input_attrs(levels.planes),
        constant=_constant(levels.planes, terms, scales, any(attrs.get("padding", ()))),
        bias=None if bias is None else bias.detach(),
        largest=largest,
        input_scale=scaled_by is not None,
        exact=not in_floats or multiplies_exactly(scales),
        path=build.place,
    )


def _pad_level(build: Builder, layer: Any, parts: tuple[Term, ...]) -> int:
    """Return the level of the input that stands for the layer's pad_value."""
    if layer._pad() != 0 and len(parts) != 1:
        build.fail(f"pad_value {layer._pad():+g} needs an input quantizer of one term without an offset: use 0")
    try:
        return int(layer.pad_level(parts[0]))
    except ValueError as error:
        build.fail(str(error))


def _input_attrs(planes: Planes) -> dict[str, Any]:
    """Return the attributes of a step whose input has several terms or an offset; none for one term alone."""
    attrs: dict[str, Any] = {}
    if len(planes.terms) > 1:
        attrs["input_terms"] = term_attrs(planes.terms)
    if planes.offset is not None:
        attrs["input_offset"] = True
    return attrs


def _constant(planes: Planes, terms: tuple[Term, ...], scales: tuple[Tensor, ...], pads: bool) -> Tensor | None:
    """Return what the input's offset adds to a layer of one term of inputs and weights, unless it varies by place."""
    if planes.offset is None or len(scales) != 2 or len(terms) != 1 or pads:
        return None
    ones = terms[0].levels(torch.int64).flatten(1).sum(1)
    return ones.to(scales[1].dtype) * scales[1]
