"""Rules of layers with float weights, among them those whose weights the network has binarized itself."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from bnn_kernels.steps.embedding import Embedding
from torch import Tensor

from bnn.converter.graph.builder import Builder, ConvSides
from bnn.converter.graph.values import Input, Padding, Unpacked, Value
from bnn.converter.recognize.few_values import few_values
from bnn.converter.recognize.moved_levels import bits_of
from bnn.converter.recognize.scaled import Link, Scaled, scaled_levels, times
from bnn.converter.recognize.zero_padding import zeros_around
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
        padding = same_padding(weight.shape[2:], dilation) if padding == "same" else 0
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
    if not any(build.around(x, padding)) and (outside := zeros_around(x)) is not None:
        x, padding = outside
    found = few_values(weight)
    if found is None:
        return build.float_conv(x, weight, bias, stride, padding, dilation, groups)
    if x.padded is not None and not any(build.around(x, padding)):
        y = _padded_conv(build, x.padded, found.terms, weight, bias, stride, dilation, groups)
        if y is not None:
            return y
    sides, shape = build.conv_sides(x, weight.shape, stride, padding, dilation, groups)

    def of_ones() -> Tensor:
        operator = F.conv2d if weight.ndim == 4 else F.conv1d
        top, left, bottom, right = (*sides["padding"], *sides["padding"])[:4]
        ones = F.pad(torch.ones(1, *x.shape), [left, right, top, bottom][: 2 * (weight.ndim - 2)])
        return operator(ones, weight, None, stride, 0, dilation, groups)

    return _of_few_values(build, x, found.terms, bias, sides, shape, of_ones)


def _of_few_values(
    build: Builder, x: Value, terms: tuple[Term, ...], bias: Tensor | None, sides: ConvSides | None,
    shape: tuple[int, ...], of_ones: Callable[[], Tensor],
) -> Value:  # fmt: skip
    """Return the product of a weight's terms and floats, or levels, perhaps scaled by what follows the input.

    of_ones: what the weight makes of ones, (1, *shape).
    """
    scaled = scaled_levels(build, x)
    if scaled is None or not _can_follow(scaled, sides):
        return float_layer(x, terms, bias, sides, shape)
    levels = scaled.levels.inputs[0]
    if not scaled.links:
        return binary_layer(build, levels, terms, bias, sides, shape, in_floats=True)
    y = _following(build, binary_layer(build, levels, terms, None, sides, shape, in_floats=True), scaled, of_ones)
    return y if bias is None else build.affine(y, shift=bias)


def _can_follow(scaled: Scaled, sides: ConvSides | None) -> bool:
    """Whether what levels are scaled and shifted by is the same in all numbers that each sum goes over."""
    one_place = sides is None or (sides["shape"][2:] == [1, 1] == sides["stride"] and not any(sides["padding"]))
    depthwise = sides is not None and sides["shape"][1] == 1
    return all(
        (one_place or set(link.shape[1:]) <= {1})
        and (link.shape[0] == 1 or (depthwise and isinstance(link.by, Tensor) and link.kind != "add"))
        for link in scaled.links
    )


def _following(build: Builder, y: Value, scaled: Scaled, of_ones: Callable[[], Tensor]) -> Value:
    """Return a layer's product of levels, scaled and shifted as they are.

    of_ones: what its weight makes of ones, (1, *y.shape).
    """
    shift: Value | None = None
    for link in scaled.links:
        if link.kind == "add":
            assert isinstance(link.by, Value)
            shift = link.by if shift is None else build.add(shift, link.by)
        else:
            y = times(build, y, _of_filters(link, y.shape[0]))
            shift = None if shift is None else times(build, shift, link)
    if shift is None:
        return y
    spread = build.move(shift, lambda p: p.expand(2, *y.shape))
    return build.add(y, build.affine(spread, scale=build.aligned(spread, of_ones())))


def _padded_conv(
    build: Builder, padding: Padding, terms: tuple[Term, ...], weight: Tensor, bias: Tensor | None, stride: Any,
    dilation: Any, groups: int,
) -> Value | None:  # fmt: skip
    """Return the convolution of bits around which there is one of their levels; None if it is none."""
    bits = bits_of(build, padding.x)
    if not isinstance(bits, Unpacked):
        return None
    levels = bits.inputs[0]
    (part, *others) = bits.planes.parts
    level = padding.number / float(part.scale)
    axes = len(bits.shape) - 1
    if others or level != round(level) or len(padding.around) != axes:
        return None
    around = [side for part in zip(*reversed(padding.around), strict=True) for side in part]
    sides, shape = build.conv_sides(bits, weight.shape, stride, around, dilation, groups)
    return binary_layer(build, levels, terms, bias, sides, shape, in_floats=True, pad_level=round(level))


def _of_filters(link: Link, filters: int) -> Link:
    """Return a link with constants of each channel as one of the filters that read them alone."""
    if not isinstance(link.by, Tensor) or len(link.by) == 1:
        return link
    return Link(link.kind, link.by.repeat_interleave(filters // len(link.by), 0))


def linear_of(build: Builder, x: Value, weight: Tensor, bias: Tensor | None) -> Value:
    """Return x @ weight.T + bias over the last axis; weights of few values are stored as bits."""
    if len(x.shape) > 1:  # a convolution of 1x1 over tokens
        filters = weight.reshape(*weight.shape, *[1] * (len(x.shape) - 1))
        return build.channels_last(_conv(build, build.channels_first(x), filters, bias, 1, 0, 1, 1))
    found = few_values(weight)
    if found is None:
        return build.float_linear(x, weight, bias)
    return _of_few_values(build, x, found.terms, bias, None, (len(weight),), lambda: weight.sum(1)[None])


def same_padding(kernel: Sequence[int], dilation: Any) -> list[int]:
    """Return the numbers of padding="same" before each axis and behind it, where PyTorch puts one more if need be."""
    spread = [dilation] * len(kernel) if isinstance(dilation, int) else dilation
    reach = [d * (k - 1) for d, k in zip(spread, kernel, strict=True)]
    return [*(r // 2 for r in reach), *(r - r // 2 for r in reach)]
