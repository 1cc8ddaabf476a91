"""Rules of layers with weights: quantized and float convolution and linear layers, and quantizers on their own."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from bnn_kernels.dense_bits import to_dense_bits
from torch import Tensor, nn

from bnn.converter.builder import Builder
from bnn.converter.graph import BinaryLayer, FloatLayer, Levels, Unpacked, Value
from bnn.converter.level_table import as_one_term, check_input, monotone_table
from bnn.converter.registry import register_rule
from bnn.layers import QuantConv1d, QuantConv2d, QuantLinear
from bnn.layers.base import QuantLayer, output_scale, weight_planes
from bnn.planes import Planes, Term
from bnn.quantizers.base import Quantizer


@register_rule(nn.Conv1d, nn.Conv2d)
def conv(build: Builder, module: Any, x: Value) -> Value:
    """Convolution in float."""
    check_padding(build, module)
    padding = same_padding(build, module) if module.padding == "same" else module.padding
    padding = 0 if padding == "valid" else padding
    return build.float_conv(x, module.weight, module.bias, module.stride, padding, module.dilation, module.groups)


@register_rule(nn.Linear)
def linear(build: Builder, module: Any, x: Value) -> Value:
    """Matrix product in float."""
    return build.float_linear(x, module.weight, module.bias)


@register_rule(F.conv1d, F.conv2d, torch.conv1d, torch.conv2d)
def functional_conv(
    build: Builder, x: Value, weight: Any, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Value:  # fmt: skip
    """Convolution with a weight that the network computes from its parameters alone."""
    if not isinstance(weight, Tensor):
        build.fail("a convolution whose weight depends on the input cannot be converted")
    return build.float_conv(x, weight, bias, stride, padding, dilation, groups)


@register_rule(F.linear)
def functional_linear(build: Builder, x: Value, weight: Any, bias: Tensor | None = None) -> Value:
    """Matrix product with a weight that the network computes from its parameters alone."""
    if not isinstance(weight, Tensor):
        build.fail("a linear layer whose weight depends on the input cannot be converted")
    return build.float_linear(x, weight, bias)


def check_padding(build: Builder, module: Any) -> None:
    """Refuse reflections and the like."""
    if module.padding_mode != "zeros":
        build.fail(f"padding must have mode 'zeros', got {module.padding_mode!r}; pad explicitly")


def same_padding(build: Builder, module: Any) -> list[int]:
    """Return the numbers of padding="same"."""
    reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if any(r % 2 for r in reach):
        build.fail("padding='same' of an even filter is lopsided; pad explicitly")
    return [r // 2 for r in reach]


# -- quantized --------------------------------------------------------------------------------------------------------


def quantize(build: Builder, quantizer: Quantizer, x: Value, source: str) -> Levels:
    """Return the levels of a value. source: what the report calls them."""
    maps = len(x.shape) > 1

    def spread(y: Tensor) -> Tensor:
        return y.reshape(*y.shape, *[1] * (len(x.shape) - 1)) if maps else y

    try:
        planes = quantizer.planes(spread(torch.zeros(1, x.shape[0])))
    except RuntimeError as error:
        build.fail(f"{quantizer} does not take {x.shape[0]} channels: {error}")
    check_input(quantizer, planes, build.place)

    def levels(y: Tensor) -> Tensor:
        return as_one_term(quantizer.planes(spread(y))).levels().reshape(y.shape)

    uniform = not quantizer.channelwise and _takes(quantizer, spread(torch.zeros(1, x.shape[0] + 1)))
    table = monotone_table(quantizer, planes, levels, x.shape[0], build.place)
    return Levels(x.shape, (x,), source, levels=levels, uniform=uniform, planes=planes, table=table)


def _takes(quantizer: Quantizer, x: Tensor) -> bool:
    """Whether a quantizer quantizes any number of channels: it holds nothing for each of them."""
    try:
        return quantizer.planes(x).terms[0].bits.shape[1:] == x.shape
    except RuntimeError:
        return False


def quantizer_value(build: Builder, module: Quantizer, x: Value) -> Value:
    """Return a quantizer's values as floats; a layer behind it reads its bits."""
    if not module.packable:
        return x
    return Unpacked(x.shape, (quantize(build, module, x, f"{build.place} levels"),))


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


def stored_terms(terms: tuple[Term, ...]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Return the attribute "terms" and the bits of weight terms."""
    return term_attrs(terms), {f"bits.{i}": dense(term) for i, term in enumerate(terms)}


def term_attrs(terms: tuple[Term, ...]) -> list[dict[str, Any]]:
    """Return the planes of terms as attributes."""
    return [{"multipliers": list(term.multipliers), "signed": term.signed} for term in terms]


def _attrs(build: Builder, layer: Any, x: Value) -> tuple[str, dict[str, Any], tuple[int, ...]]:
    """Return op, attributes and output shape, both for binary and float layers."""
    if isinstance(layer, nn.Linear):
        if len(x.shape) != 1:
            build.fail(f"a linear layer can be converted for inputs (N, K), got {('N', *x.shape)}; flatten before it")
        return "linear", {"shape": list(layer.weight.shape)}, (layer.weight.shape[0],)
    check_padding(build, layer)
    attrs, shape = build.conv_attrs(x, layer.weight.shape, layer.stride, layer.padding, layer.dilation, layer.groups)
    return "conv", attrs, shape


@register_rule(QuantConv1d, QuantConv2d, QuantLinear)
def quantized_layer(build: Builder, layer: Any, x: Value) -> Value:
    """Return what a quantized layer makes of x: bits where both sides have them, floats elsewhere."""
    kind, attrs, shape = _attrs(build, layer, x)
    levels: Levels | None = None
    if layer.input_quantizer.packable:
        levels = quantize(build, layer.input_quantizer, x, f"{build.place} input")
    elif isinstance(x, Unpacked) and layer.weight_quantizer.packable:
        levels = x.inputs[0]  # type: ignore[assignment]
    if levels is not None and layer.weight_quantizer.packable:
        return _binary(build, layer, x, levels, kind, attrs, shape)
    given = x if levels is None else Unpacked(x.shape, (levels,))
    tensors: dict[str, np.ndarray] = {}
    if layer.weight_quantizer.packable:
        terms = weight_terms(build, layer)
        attrs["terms"], tensors = stored_terms(terms)
        filters = layer.weight.shape[0]
        for i, term in enumerate(terms):
            tensors[f"scale.{i}"] = term.scale.detach().to(torch.float32).expand(filters).numpy().copy()
    else:
        tensors["weight"] = layer.weight.detach().numpy().reshape(attrs["shape"]).copy()
    if layer.bias is not None:
        tensors["bias"] = layer.bias.detach().numpy().copy()
    if kind == "conv":
        attrs["pad_value"] = float(layer.pad_value)
    return FloatLayer(shape, (given,), op=f"float_{kind}", attrs=attrs, tensors=tensors)


def _binary(
    build: Builder, layer: Any, x: Value, levels: Levels, kind: str, attrs: dict[str, Any], shape: tuple[int, ...]
) -> Value:
    parts = levels.planes.parts
    if kind == "conv":
        attrs["pad_level"] = _pad_level(build, layer, parts)
    terms = weight_terms(build, layer)
    largest = max(given.max_level * term.max_level for given in parts for term in terms) * layer.weight[0].numel()
    if largest > np.iinfo(np.int32).max:
        build.fail(f"sums of up to {largest} do not fit 32 bits; use fewer bits or inputs")
    filters = layer.weight.shape[0]
    attrs["terms"], tensors = stored_terms(terms)
    scales = tuple(output_scale(given, term, 2).reshape(-1).expand(filters) for term in terms for given in parts)
    return BinaryLayer(
        shape,
        (levels, x) if layer.input_scale else (levels,),
        op=f"binary_{kind}",
        attrs=attrs,
        tensors=tensors,
        terms=terms,
        scales=scales,
        input_attrs=_input_attrs(levels.planes),
        constant=_constant(levels.planes, terms, scales, any(attrs.get("padding", ()))),
        bias=None if layer.bias is None else layer.bias.detach(),
        largest=largest,
        input_scale=bool(layer.input_scale),
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
