"""Operations on views whose first axis is not the batch: tokens counted as images, heads folded into the batch.

`linear(x.view(-1, C))` treats every row by itself, wherever its image lies. So the rows of one image are gathered, the
operation runs on them as on tokens, and the result is again a view, from which another one may lead back.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnn.converter.capture.record import Node, leaves, mapped
from bnn.converter.graph.builder import Builder
from bnn.converter.graph.values import Moved, OffBatch, Value

aten = torch.ops.aten

# Operations that treat each row (the last axis), or each number, by itself.
_BY_ROW = {
    aten.linear, aten.layer_norm, aten.rms_norm, aten.relu, aten.gelu, aten.silu, aten.hardtanh, aten.tanh,
    aten.sigmoid, aten.clamp, aten.clamp_min, aten.leaky_relu, aten.hardswish, aten.hardsigmoid, aten.elu, aten.mul,
    aten.add, aten.sub, aten.div, aten.neg, aten.sign, aten.abs, aten.exp, aten.dropout, aten._to_copy,
}  # fmt: skip
# Those that treat each matrix (the last two axes) by itself.
_BY_MATRIX = {aten.bmm, aten.matmul}
_OVER_AN_AXIS = {aten.softmax, aten.log_softmax}
# Those that meet constants number by number, stretched as they may be: biases and masks of windows of tokens.
_BY_NUMBER = {aten.add, aten.sub, aten.mul, aten.div}
# Stands for a constant that is not the same for all images.
MIXED = object()


def by_parts(node: Node, build: Builder, args: Any, kwargs: Any, rule: Callable[..., Any]) -> Value | None:
    """Return what an operation on OffBatch operands makes, an OffBatch itself; None if it may mix images."""
    operands = [a for a in leaves((args, kwargs)) if isinstance(a, Value)]
    axes = _axes_of_part(node, operands, args, kwargs)
    if axes is None or not all(isinstance(a, OffBatch) for a in operands):
        return None
    found = [_Parts.of(a, axes) for a in operands if isinstance(a, OffBatch)]
    parts = [part for part in found if part is not None]
    if len(parts) != len(operands) or any(not part.same_images(parts[0]) for part in parts):
        return None
    is_norm = getattr(node.target, "overloadpacket", None) is aten.batch_norm  # whose channels come first
    given = iter([build.channels_first(part.value) if is_norm else part.value for part in parts])
    shape = tuple(node.results[0].shape)
    if getattr(node.target, "overloadpacket", None) in _BY_NUMBER:
        args, kwargs = mapped((args, kwargs), lambda a: parts[0].constant(a, shape) if isinstance(a, Tensor) else a)
    if any(a is MIXED for a in leaves((args, kwargs))):
        return None
    named = mapped((args, kwargs), lambda a: next(given) if isinstance(a, Value) else a)
    build.by_image = parts[0].by_image
    made = rule(build, *named[0], **named[1])
    made = build.channels_last(made) if is_norm else made
    return parts[0].spread(made, shape, build)


def _axes_of_part(node: Node, operands: Sequence[Value], args: Any, kwargs: Any) -> int | None:
    """Return how many of the last axes an operation needs together; None if it may need the others as well."""
    if isinstance(node.target, nn.Linear):
        return 1
    packet = getattr(node.target, "overloadpacket", None)
    rank = len(operands[0].shape) + 1
    constants = [a for a in leaves((args, kwargs)) if isinstance(a, Tensor)]
    if packet is aten.batch_norm:
        return 1 if rank == 2 else None
    if packet in _OVER_AN_AXIS:
        return 1 if args[1] % rank == rank - 1 else None
    if packet is aten.baddbmm:  # the same is added to all matrices
        return 2 if all(c.ndim == 2 or len(c) == 1 for c in constants) else None
    if packet in _BY_MATRIX:
        if constants:
            return 1 if args[0] is operands[0] and math.prod(constants[0].shape[:-2]) == 1 else None
        return 2 if rank > 2 and len({a.shape[:-2] for a in operands}) == 1 else None
    if packet not in _BY_ROW:
        return None
    if packet not in {aten.linear, aten.layer_norm, aten.rms_norm, *_BY_NUMBER} and any(
        c.numel() > 1 and c.numel() != c.shape[-1] for c in constants
    ):
        return None
    return 1


class _Parts:
    """Rows, or matrices, of a view: those of the first image as a value, and which of the view's are whose."""

    def __init__(self, value: Value, first: Tensor, second: Tensor):
        self.value, self.first, self.second = value, first, second

    @classmethod
    def of(cls, x: OffBatch, axes: int) -> "_Parts | None":
        count = math.prod(x.base.shape)
        sides = tuple(x.places.shape[x.places.ndim - axes :])
        parts = x.places.reshape(-1, math.prod(sides)).to(torch.int64)
        image = (parts - 1).div(count, rounding_mode="floor")
        if bool((parts == 0).any()) or bool((image != image[:, :1]).any()):
            return None
        first, second = (image[:, 0] == i for i in (0, 1))
        if not torch.equal(parts[first] + count, parts[second]):
            return None
        index = parts[first].reshape(-1, *sides).numpy()
        return cls(Moved(index.shape, (x.base,), index=index), first.nonzero()[:, 0], second.nonzero()[:, 0])

    def same_images(self, other: "_Parts") -> bool:
        """Whether the parts of another view belong to the same images."""
        return torch.equal(self.first, other.first) and torch.equal(self.second, other.second)

    @property
    def by_image(self) -> bool:
        """Whether the parts of the first image come before those of the second."""
        return bool((self.first < self.second[0]).all())

    def constant(self, a: Tensor, shape: tuple[int, ...]) -> Any:
        """Return a constant as it meets the parts, (parts, *sides), or MIXED if images meet different ones.

        shape: of the view that it is stretched to.
        """
        if a.numel() == 1:
            return a
        sides = self.value.shape[1:]
        found = a.detach().expand(shape).reshape(-1, *sides)
        first, second = found[self.first], found[self.second]
        return first if torch.equal(first, second) else MIXED

    def spread(self, made: Value, shape: tuple[int, ...], build: Builder) -> OffBatch:
        """Return the view of this shape of what was made of the parts."""
        count = math.prod(made.shape)
        numbers = torch.arange(1, count + 1, dtype=torch.float64).reshape(len(self.first), -1)
        places = torch.empty(2 * len(self.first), numbers.shape[1], dtype=torch.float64)
        places[self.first], places[self.second] = numbers, numbers + count
        places = places.reshape(shape)
        return build.off_batch(made, places)
