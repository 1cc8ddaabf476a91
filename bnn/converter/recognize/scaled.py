"""Levels times a scale, or plus a shift, that the network computes from its input: of each token, image or channel.

What is the same in all numbers that a layer sums up can follow the sum: with levels L, a scale s and a shift b of a
token, the layer of weights W computes W (s L + b) = s (W L) + b (W 1).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bnn.converter.graph.builder import Builder
from bnn.converter.graph.values import Add, Affine, Channelwise, Combine, Levels, Moved, Unpacked, Value
from bnn.converter.recognize.moved_levels import bits_of
from bnn.converter.recognize.whole import whole_numbers
from bnn.converter.sources import levels_at


@dataclass(frozen=True)
class Link:
    """One operation on the way from levels to a value; by: a value or constant of as many axes, with sides of 1."""

    kind: Literal["multiply", "divide", "add"]
    by: Value | Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The sides of what is multiplied or added."""
        return tuple(self.by.shape)


@dataclass(frozen=True)
class Scaled:
    """Levels, and what is done to them, first computed first."""

    levels: Unpacked
    links: tuple[Link, ...]


def scaled_levels(build: Builder, x: Value) -> Scaled | None:
    """Return the levels that a value is, scaled and shifted; None if it is none."""
    bits = bits_of(build, x)
    if not isinstance(bits, Unpacked) and (quantizer := whole_numbers(x)) is not None:
        bits = build.quantize(x, quantizer)
        (levels,) = bits.inputs
        assert isinstance(levels, Levels)
        levels.source = levels_at(x.source, levels.planes, levels.table) if x.source else ""
    if isinstance(bits, Unpacked):
        return Scaled(bits, ())
    if isinstance(x, Moved):
        inner = scaled_levels(build, x.inputs[0])
        return None if inner is None else _moved(build, inner, x)
    if isinstance(x, Channelwise):
        return _affine(build, x)
    kind = x.kind if isinstance(x, Combine) else "add" if isinstance(x, Add) else ""
    if kind not in ("multiply", "divide", "add"):
        return None
    pairs = [x.inputs] if kind == "divide" else [x.inputs, x.inputs[::-1]]
    for operand, factor in pairs:
        by = _unstretched(factor)
        if operand.shape == x.shape and by.shape != x.shape:
            found = scaled_levels(build, operand)
            if found is not None:
                return Scaled(found.levels, (*found.links, Link(kind, by)))  # type: ignore[arg-type]
    return None


def _affine(build: Builder, x: Channelwise) -> Scaled | None:
    """Return a multiple of scaled levels by constants."""
    form = x.form
    if not isinstance(form, Affine) or form.is_norm or form.shift is not None or form.scale is None:
        return None
    found = scaled_levels(build, x.inputs[0])
    if found is None:
        return None
    scale = torch.from_numpy(form.scale[:1] if x.uniform else form.scale).reshape(-1, *[1] * (len(x.shape) - 1))
    return Scaled(found.levels, (*found.links, Link("multiply", scale)))


def _moved(build: Builder, found: Scaled, x: Moved) -> Scaled | None:
    """Return scaled levels with their numbers where a view has them."""
    shape = x.inputs[0].shape
    bits = bits_of(build, Moved(x.shape, (found.levels,), index=x.index))
    if not isinstance(bits, Unpacked):
        return None
    padded = bool((x.index == 0).any())
    links: list[Link] = []
    for link in found.links:
        if padded and (link.kind == "add" or set(link.shape) != {1}):
            return None
        links.append(Link(link.kind, _thin(link.by, shape, x)))
    return Scaled(bits, tuple(links))


def _without_copies(index: np.ndarray) -> np.ndarray:
    """Return places with sides of 1 where all along a side are the same."""
    for axis in range(index.ndim):
        first = index.take([0], axis)
        if bool((index == first).all()):
            index = first
    return index


def _unstretched(x: Value) -> Value:
    """Return a value that a view has stretched with sides of 1 there."""
    if not isinstance(x, Moved):
        return x
    index = _without_copies(x.index)
    return x if index.shape == x.shape else Moved(index.shape, x.inputs, index=index)


def _thin(operand: Value | Tensor, shape: tuple[int, ...], x: Moved) -> Value | Tensor:
    """Return an operand of a value of this shape as one of the view x of it, sides of 1 where it is the same."""
    places = np.broadcast_to(np.arange(1, 1 + int(np.prod(operand.shape))).reshape(operand.shape), shape)
    index = places.reshape(-1)[np.maximum(x.index, 1) - 1]
    index = _without_copies(index)
    if isinstance(operand, Tensor):
        return operand.reshape(-1)[torch.from_numpy(index - 1)]
    same = index.shape == operand.shape and np.array_equal(index.reshape(-1), np.arange(1, index.size + 1))
    return operand if same else Moved(index.shape, (operand,), index=index)


def times(build: Builder, y: Value, link: Link) -> Value:
    """Return a value multiplied or divided as a link says."""
    if not isinstance(link.by, Value):
        return build.affine(y, scale=link.by[None])
    return build.multiply(y, link.by) if link.kind == "multiply" else build.divide(y, link.by)
