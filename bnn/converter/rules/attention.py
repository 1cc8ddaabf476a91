"""Rules of products of two values, and of attention."""

import math
from typing import Any

import numpy as np
import torch
from bnn_kernels.steps.cached_attention import CachedAttention as CachedAttentionStep
from bnn_kernels.steps.level_matmul import LevelMatmul
from bnn_kernels.steps.matmul import Matmul
from torch import Tensor

from bnn.converter.graph.builder import Builder
from bnn.converter.graph.values import Input, LevelProduct, Value
from bnn.converter.recognize.scaled import Link, Scaled, scaled_levels, times
from bnn.converter.registry import register_rule
from bnn.converter.rules.layers import linear_of
from bnn.converter.rules.normalize import softmax_of
from bnn.converter.rules.pool import over_axes
from bnn.layers import CachedAttention


def _swapped(build: Builder, x: Value) -> Value:
    moved: Value = build.move(x, lambda p: p.transpose(-1, -2))
    return moved


@register_rule(torch.ops.aten.matmul, torch.ops.aten.bmm)
def product(build: Builder, a: Any, b: Any) -> Value:
    """Matrix product over the last axes of two values, or of a value and a constant matrix."""
    if isinstance(a, Value) and isinstance(b, Value):
        return _product(build, a, b)
    constant = b if isinstance(a, Value) else a
    if constant.ndim > 2 and math.prod(constant.shape[:-2]) == 1:
        constant = constant.reshape(constant.shape[-2:])
    if constant.ndim != 2:
        build.fail(
            f"a product with a constant of shape {tuple(constant.shape)} cannot be converted, only with a matrix"
        )
    if isinstance(a, Value):
        return linear_of(build, a, constant.T, None)
    return _swapped(build, linear_of(build, _swapped(build, b), constant, None))


@register_rule(torch.ops.aten.baddbmm)
def product_and_sum(build: Builder, x: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> Value:
    """beta x + alpha a b of matrices."""
    y = product(build, a, b)
    y = y if alpha == 1 else build.affine(y, scale=alpha)
    if isinstance(x, Value):
        return build.add(y, x if beta == 1 else build.affine(x, scale=beta))
    return build.by_place(y, "add", build.aligned(y, x * beta))


def _product(build: Builder, a: Value, b: Value) -> Value:
    """Return the products of the last two axes of two values; those before are the same, or 1."""
    ranks = len(a.shape), len(b.shape)
    leading = [max(sides) for sides in zip(a.shape[:-2], b.shape[:-2], strict=False)]
    fits = ranks[0] == ranks[1] > 1 and a.shape[-1] == b.shape[-2]
    if not fits or any(m not in (1, n) for x in (a, b) for m, n in zip(x.shape[:-2], leading, strict=True)):
        build.fail(f"a product of {('N', *a.shape)} and {('N', *b.shape)} cannot be converted")
    heads = math.prod(leading)
    a, b = (
        build.move(x, lambda p: p.expand(2, *leading, *p.shape[-2:]).reshape(2, heads, *p.shape[-2:])) for x in (a, b)
    )
    made = _product_of_levels(build, a, b)
    if made is None:
        made = build.step((a, b), (heads, a.shape[1], b.shape[2]), Matmul.Fields())
    y: Value = build.move(made, lambda p: p.reshape(2, *leading, *p.shape[-2:]))
    return y


class _Side:
    """One side of a product (C, H, R) of levels: what is done to them, and their sums over what is multiplied.

    The sums, (1, H, R) of the first side and (C, H, 1) of the second, are of what the levels have become so far.
    """

    def __init__(self, build: Builder, x: Scaled, turned: bool):
        self.build, self.count = build, x.levels.shape[0]
        self.links = [Link(link.kind, self._placed(link.by)) for link in x.links] if turned else list(x.links)
        sums = over_axes(build, x.levels, "sum", 1, True)
        offset = x.levels.planes.offset
        if offset is not None:
            sums = build.affine(sums, shift=-self.count * float(offset))
            self.links.insert(0, Link("add", offset.to(torch.float64).reshape(1, 1, 1)))
        self.sums: Value = self._placed(sums) if turned else sums

    def _placed(self, x: Value | Tensor) -> Any:
        """Return what belongs to columns, (1, H, C), as one of the product, (C, H, 1)."""
        return x.transpose(0, 2) if isinstance(x, Tensor) else self.build.move(x, lambda p: p.transpose(1, 3))

    def follow(self, y: Value, other: "_Side", shifts: bool) -> Value:
        """Return the product after the next operations on this side: all that are left, or the first sums alone."""
        build = self.build
        while self.links and (self.links[0].kind == "add" or not shifts):
            link = self.links.pop(0)
            if link.kind == "add":
                y = build.add(y, _by(build, other.sums, link.by))
                self.sums = _sum(build, self.sums, link.by, self.count)
            else:
                y, self.sums = times(build, y, link), times(build, self.sums, link)
        return y


def _by(build: Builder, x: Value, factor: Value | Tensor) -> Value:
    return build.multiply(x, factor) if isinstance(factor, Value) else build.affine(x, scale=factor[None])


def _sum(build: Builder, x: Value, shift: Value | Tensor, count: int) -> Value:
    """Return x + count shift."""
    if isinstance(shift, Value):
        return build.add(x, build.affine(shift, scale=float(count)))
    return build.affine(x, shift=count * shift[None])


def _product_of_levels(build: Builder, a: Value, b: Value) -> Value | None:
    """Return the products (H, R, C) of levels (H, R, K) and (H, K, C), perhaps scaled and shifted; None if it is none.

    A shift z of one side adds z times the sums of the other side. Zero points come first, while the sums are whole, so
    that they are exact.
    """
    first = scaled_levels(build, build.channels_first(a))
    second = scaled_levels(build, build.move(b, lambda p: p.transpose(1, 2)))
    if first is None or second is None:
        return None
    for x in (first, second):
        terms = x.levels.planes.terms
        if len(terms) > 1 or terms[0].zero_points is not None or any(link.shape[0] != 1 for link in x.links):
            return None
    scale = math.prod(float(x.levels.planes.terms[0].scale) for x in (first, second))
    shape = (b.shape[2], *a.shape[:2])
    levels = first.levels.inputs[0], second.levels.inputs[0]
    y: Value = LevelProduct(shape, levels, fields=LevelMatmul.Fields(scale=float(np.float32(scale))))
    one, two = _Side(build, first, turned=False), _Side(build, second, turned=True)
    for shifts in (True, False):
        y = two.follow(one.follow(y, two, shifts), one, shifts)
    return build.channels_last(y)


def _attention(build: Builder, q: Value, k: Value, v: Value, mask: Any, causal: bool, scale: float | None) -> Value:
    """Return softmax(q k^T scale + mask) v of values (heads, tokens, features)."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    scores = _product(build, build.affine(q, scale=factor), _swapped(build, k))
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        if not isinstance(mask, Tensor):
            build.fail("a mask that depends on the input cannot be converted")
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
        scores = build.by_place(scores, "add", build.aligned(scores, mask))
    return _product(build, softmax_of(build, scores, -1, False), v)


@register_rule(torch.ops.aten.scaled_dot_product_attention)
def attention(
    build: Builder, query: Value, key: Value, value: Value, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Value:  # fmt: skip
    """softmax(q k^T / sqrt(features) + mask) v."""
    if dropout_p or enable_gqa:
        build.fail("attention with dropout or grouped queries cannot be converted")
    return _attention(build, query, key, value, attn_mask, is_causal, scale)


@register_rule(CachedAttention)
def cached_attention(
    build: Builder, layer: CachedAttention, query: Any, key: Any, value: Any, keys: Any, values: Any, place: Any
) -> tuple[Value, Value, Value]:
    """Attention of one token to a cache, which its key and value join in place."""
    if not all(isinstance(x, Input) for x in (keys, values, place)):
        build.fail("its caches and place must be those of a state as they are: convert with bnn.convert_step")
    if not all(isinstance(x, Value) for x in (query, key, value)) or query.shape[0] != 1:
        build.fail("can be converted for one token (N, 1, heads, features) at a time")
    y = build.step((query, key, value, keys, values, place), query.shape, CachedAttentionStep.Fields())
    return y, keys, values
