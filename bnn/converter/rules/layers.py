"""Rules of layers with float weights, among them those whose weights the network has binarized itself."""

from collections.abc import Sequence
from typing import Any

import torch
from bnn_kernels.steps.embedding import Embedding
from torch import Tensor

from bnn.converter.graph.builder import Builder
from bnn.converter.graph.values import Input, Padding, Unpacked, Value
from bnn.converter.recognize.few_values import few_values
from bnn.converter.recognize.moved_levels import bits_of
from bnn.converter.registry import register_rule
from bnn.converter.rules.quantized import Weight, binary_layer, float_layer, stored_weight, weight_terms
from bnn.layers import QuantEmbedding
from bnn.planes import Term


@register_rule(torch.ops.aten.conv1d, torch.ops.aten.conv2d)
def conv(
    build: Builder, x: Value, weight: Any, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Value:  # fmt: skip
    """Convolution with a weight that the network computes from its parameters alone."""
    if not isinstance(weight, Tensor):
        build.fail("a convolution whose weight depends on the input cannot be converted")
    if isinstance(padding, str):
        padding = same_padding(build, weight.shape[2:], dilation) if padding == "same" else 0
    return _conv(build, x, weight, bias, stride, padding, dilation, groups)


@register_rule(torch.ops.aten.linear)
def linear(build: Builder, x: Value, weight: Any, bias: Tensor | None = None) -> Value:
    """Matrix product with a weight that the network computes from its parameters alone."""
    if not isinstance(weight, Tensor):
        build.fail("a linear layer whose weight depends on the input cannot be converted")
    return linear_of(build, x, weight, bias)


@register_rule(torch.ops.aten.embedding)
def embedding(build: Builder, weight: Any, x: Any, *options: Any) -> Value:
    """Rows of a table."""
    if not isinstance(weight, Tensor):
        build.fail("an embedding needs a constant table, and no max_norm")
    found = few_values(weight)
    table: Weight = weight.detach() if found is None else found.terms
    return rows_of(build, x, table, tuple(weight.shape))


@register_rule(QuantEmbedding)
def quantized_embedding(build: Builder, layer: Any, x: Value) -> Value:
    """Rows of a table of bits."""
    packable = layer.weight_quantizer.packable
    weight: Weight = weight_terms(build, layer) if packable else layer.weight.detach()
    return rows_of(build, x, weight, tuple(layer.weight.shape))


def rows_of(build: Builder, x: Value, weight: Weight, shape: tuple[int, ...]) -> Value:
    """Return the rows of a table (rows, features) that x (T,) numbers, (T, features)."""
    if not isinstance(x, Input) or len(x.shape) != 1:
        build.fail("an embedding can be converted for integers (N, T) that are an input of the network")
    table = Embedding.Fields(shape=list(shape), **stored_weight(weight, shape))
    rows = build.step(x, (shape[1], x.shape[0]), table)
    return build.channels_last(rows)


def _conv(
    build: Builder, x: Value, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Value:
    found = few_values(weight)
    if found is not None and x.padded is not None and not any(build.sides(x, padding, 0)):
        y = _padded_conv(build, x.padded, found.terms, weight, bias, stride, dilation, groups)
        if y is not None:
            return y
    x = x if found is None else bits_of(build, x)
    bits = found is not None and isinstance(x, Unpacked)
    if found is None:
        return build.float_conv(x, weight, bias, stride, padding, dilation, groups)
    sides, shape = build.conv_sides(x, weight.shape, stride, padding, dilation, groups)
    if not bits:
        return float_layer(x, found.terms, bias, sides, shape)
    return binary_layer(build, x.inputs[0], found.terms, bias, sides, shape, in_floats=True)


def _padded_conv(
    build: Builder, padding: Padding, terms: tuple[Term, ...], weight: Tensor, bias: Tensor | None, stride: Any,
    dilation: Any, groups: int,
) -> Value | None:  # fmt: skip
    """Return the convolution of bits around which there is one of their levels; None if it is none."""
    bits = bits_of(build, padding.x)
    if not isinstance(bits, Unpacked) or any(before != behind for before, behind in padding.around):
        return None
    levels = bits.inputs[0]
    (part, *others) = bits.planes.parts
    level = padding.number / float(part.scale)
    axes = len(bits.shape) - 1
    if others or level != round(level) or len(padding.around) != axes:
        return None
    around = [before for before, _ in reversed(padding.around)]
    sides, shape = build.conv_sides(bits, weight.shape, stride, around, dilation, groups)
    return binary_layer(build, levels, terms, bias, sides, shape, in_floats=True, pad_level=round(level))


def linear_of(build: Builder, x: Value, weight: Tensor, bias: Tensor | None) -> Value:
    """Return x @ weight.T + bias over the last axis; weights of few values are stored as bits."""
    if len(x.shape) > 1:  # a convolution of 1x1 over tokens
        filters = weight.reshape(*weight.shape, *[1] * (len(x.shape) - 1))
        return build.channels_last(_conv(build, build.channels_first(x), filters, bias, 1, 0, 1, 1))
    found = few_values(weight)
    x = x if found is None else bits_of(build, x)
    shape = (len(weight),)
    if found is not None and isinstance(x, Unpacked):
        return binary_layer(build, x.inputs[0], found.terms, bias, None, shape, in_floats=True)
    if found is not None:
        return float_layer(x, found.terms, bias, None, shape)
    return build.float_linear(x, weight, bias)


def same_padding(build: Builder, kernel: Sequence[int], dilation: Any) -> list[int]:
    """Return the numbers of padding="same"."""
    spread = [dilation] * len(kernel) if isinstance(dilation, int) else dilation
    reach = [d * (k - 1) for d, k in zip(spread, kernel, strict=True)]
    if any(r % 2 for r in reach):
        build.fail("padding='same' of an even filter is lopsided; pad explicitly")
    return [r // 2 for r in reach]
