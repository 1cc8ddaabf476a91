"""Operators that move numbers, or tell shapes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn.onnx_file.builder import Builder
from bnn.onnx_file.operators.elementwise import present
from bnn.onnx_file.quantizers import CountedLevels
from bnn.onnx_file.registry import operator
from bnn.onnx_file.values import Const, Counted, Padded, Quantized, Real, Value


def integers(build: Builder, value: Value | None, what: str) -> list[int] | None:
    """Return a constant input of integers, None if it is missing."""
    if value is None:
        return None
    build.need(isinstance(value, Const), f"its {what} must be constant")
    assert isinstance(value, Const)
    return [int(i) for i in value.tensor.reshape(-1)]


def listed(build: Builder, values: Sequence[Value | None], name: str, at: int = 1) -> list[int] | None:
    """Return integers that older files have as an attribute and newer ones as an input."""
    if name in build.node.attributes:
        found = build.node.attributes[name]
        return [int(i) for i in found] if isinstance(found, Sequence) else [int(found)]
    return integers(build, values[at] if len(values) > at else None, name)


def rank_of(build: Builder, x: Value) -> int:
    """Return how many axes a value has."""
    if isinstance(x, Const):
        return x.tensor.ndim
    return x.before.example.ndim if isinstance(x, Counted | Quantized) else build.real(x).example.ndim


class Reshape(nn.Module):
    """Another shape: 0 keeps a side, unless zeros are meant; the first may be the batch, of any size."""

    def __init__(self, shape: list[int], keep: bool, batch: int | None):
        super().__init__()
        self.shape, self.keep, self.batch = shape, keep, batch

    def extra_repr(self) -> str:
        return str(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reshaped tensor."""
        sides = [x.shape[i] if side == 0 and self.keep else side for i, side in enumerate(self.shape)]
        if sides and self.batch is not None and sides[0] == self.batch:
            sides[0] = x.shape[0]
        return x.reshape(sides)


@operator("Reshape")
def reshape(build: Builder, values: Sequence[Value | None]) -> Value:
    """Another shape."""
    x, shape = (*values, None)[:2]
    assert x is not None
    sides = listed(build, values, "shape") if isinstance(shape, Const) or shape is None else None
    if sides is None:
        build.need(shape is not None, "its shape is missing")
        assert shape is not None
        return build.call(_reshaped, x, shape)
    keep = not build.node.attributes.get("allowzero", 0)
    if isinstance(x, Const):
        return x.moved(Reshape(sides, keep, None))
    return reshaped(build, x, Reshape(sides, keep, build.batch))


def _reshaped(x: Tensor, shape: Tensor) -> Tensor:
    sides = [int(side) for side in shape.tolist()]
    return x.reshape([x.shape[i] if side == 0 else side for i, side in enumerate(sides)])


def reshaped(build: Builder, x: Value, function: Any) -> Value:
    """Return a value in another shape; levels that differ by channel keep theirs, of every number of a channel."""
    x = build.settled(x)
    if isinstance(x, Quantized) and x.by_channel and isinstance(x.quantizer, CountedLevels):
        before = x.before.example
        made = function(before)
        if x.quantizer.axis == 1 and made.shape == (len(before), math.prod(before.shape[1:])):
            bounds = x.quantizer.bounds.repeat_interleave(math.prod(before.shape[2:]), 1)
            moved = build.moved(function, Quantized(x.before, _plain(x), x.place, x.codes))
            assert isinstance(moved, Quantized)
            return Quantized(moved.before, CountedLevels(bounds, x.quantizer.table), x.place, x.codes)
    return build.moved(function, x)


def _plain(x: Quantized) -> CountedLevels:
    assert isinstance(x.quantizer, CountedLevels)
    return CountedLevels(x.quantizer.bounds[:, :1], x.quantizer.table)


@operator("Flatten")
def flatten(build: Builder, values: Sequence[Value | None]) -> Value:
    """All axes up to one, and all from it on, as one each."""
    (x,) = present(build, values)
    axis = build.node.attributes.get("axis", 1)
    if isinstance(x, Const):
        return x.moved(lambda t: t.reshape(math.prod(t.shape[:axis]), -1))
    build.need(axis == 1, f"it has axis {axis}: with 1 the batch stays the first")
    return reshaped(build, x, nn.Flatten())


@operator("Transpose")
def transpose(build: Builder, values: Sequence[Value | None]) -> Value:
    """Axes in another order."""
    (x,) = present(build, values)
    order = build.node.attributes.get("perm")
    order = list(order) if order is not None else list(range(rank_of(build, x)))[::-1]
    return build.moved(torch.permute, x, dims=order)


def _input_and_axes(build: Builder, values: Sequence[Value | None]) -> tuple[Value, list[int]]:
    """Return an operator's input and its axes, which it must have."""
    assert values[0] is not None
    axes = listed(build, values, "axes")
    build.need(axes is not None, "its axes are missing")
    assert axes is not None
    return values[0], axes


@operator("Squeeze")
def squeeze(build: Builder, values: Sequence[Value | None]) -> Value:
    """Without axes of one number."""
    x, axes = _input_and_axes(build, values)
    return build.moved(torch.squeeze, x, dim=axes)


@operator("Unsqueeze")
def unsqueeze(build: Builder, values: Sequence[Value | None]) -> Value:
    """More axes of one number."""
    x, axes = _input_and_axes(build, values)
    rank = rank_of(build, x) + len(axes)
    places = sorted(axis % rank for axis in axes)
    made = build.moved(_unsqueezed, x, places=places)
    if isinstance(made, Real) and places == [rank - 1]:
        build.stacked[made.name] = build.real(x)
    return made


def _unsqueezed(x: Tensor, places: list[int]) -> Tensor:
    for place in places:
        x = x.unsqueeze(place)
    return x


@operator("Concat")
def concat(build: Builder, values: Sequence[Value | None]) -> Value:
    """One after the other along an axis."""
    given = [build.settled(value) for value in present(build, values)]
    axis = build.node.attributes["axis"]
    levels = [value for value in given if isinstance(value, Quantized)]
    if len(levels) == len(given) and _alike(levels):
        before = build.call(_joined, *(value.before for value in levels), axis=axis)
        assert isinstance(before, Real)
        return Quantized(before, levels[0].quantizer, build.place("_levels"), levels[0].codes)
    return build.call(_joined, *given, axis=axis)


def _alike(levels: list[Quantized]) -> bool:
    """Whether all are levels of one kind, none of which differ by channel."""
    first = levels[0]
    kinds = [getattr(value.quantizer, "same_as", None) for value in levels]
    codes = [value.codes is None for value in levels]
    return (
        kinds[0] is not None
        and all(kind == kinds[0] for kind in kinds)
        and all(c == codes[0] for c in codes)
        and (first.codes is None or all(value.codes == first.codes for value in levels))
    )


def _joined(*xs: Tensor, axis: int) -> Tensor:
    return torch.cat(xs, axis)


@operator("Slice")
def slice_(build: Builder, values: Sequence[Value | None]) -> Value:
    """Parts of axes."""
    assert values[0] is not None
    x = values[0]
    starts, ends = listed(build, values, "starts", 1), listed(build, values, "ends", 2)
    build.need(starts is not None and ends is not None, "its starts or ends are missing")
    assert starts is not None and ends is not None
    axes = listed(build, values, "axes", 3) or list(range(len(starts)))
    steps = integers(build, values[4] if len(values) > 4 else None, "steps") or [1] * len(starts)
    build.need(all(step > 0 for step in steps), "it has steps that are not positive")
    return build.moved(_sliced, x, cuts=tuple(zip(axes, starts, ends, steps, strict=True)))


def _sliced(x: Tensor, cuts: tuple[tuple[int, int, int, int], ...]) -> Tensor:
    index = [slice(None)] * x.ndim
    for axis, start, end, step in cuts:
        index[axis] = slice(start, min(end, x.shape[axis]), step)
    return x[tuple(index)]


@operator("Split")
def split(build: Builder, values: Sequence[Value | None]) -> list[Value]:
    """Parts one after the other."""
    assert values[0] is not None
    x = values[0]
    axis, count = build.node.attributes.get("axis", 0), len(build.node.outputs)
    sizes = listed(build, values, "split")
    if sizes is None:
        real = x.tensor if isinstance(x, Const) else build.real(x).example
        side = real.shape[axis]
        most = -(-side // count)
        sizes = [min(most, side - i * most) for i in range(count)]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [build.moved(_sliced, x, cuts=((axis, end - size, end, 1),)) for end, size in zip(ends, sizes, strict=True)]


@operator("Gather")
def gather(build: Builder, values: Sequence[Value | None]) -> Value:
    """Numbers by index: a constant index of a tensor, or a table at whole numbers."""
    x, index = present(build, values)
    axis = build.node.attributes.get("axis", 0)
    if isinstance(x, Const) and not isinstance(index, Const):
        if axis == 0 and x.tensor.ndim == 1:
            return build.number_by_number(_entry, index, Const(torch.tensor(0)), table=x.tensor)
        build.need(axis == 0, f"it looks up along axis {axis} of a constant")
        return build.call(F.embedding, index, x)
    if isinstance(index, Const):
        return build.moved(_gathered, x, index=index.tensor, axis=axis)
    return build.call(_gathered, x, index, axis=axis)


def _entry(index: Tensor, start: Tensor, table: Tensor) -> Tensor:
    return table[index + start]


def _gathered(x: Tensor, index: Tensor, axis: int) -> Tensor:
    index = torch.where(index < 0, index + x.shape[axis], index)
    found = x.index_select(axis, index.reshape(-1))
    axis %= x.ndim
    return found.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


@operator("Pad")
def pad(build: Builder, values: Sequence[Value | None]) -> Value:
    """More numbers around, of constants; other modes as PyTorch has them."""
    assert values[0] is not None
    x, mode = values[0], build.node.attributes.get("mode", "constant")
    pads = listed(build, values, "pads")
    build.need(pads is not None, "its pads are missing")
    assert pads is not None
    value = build.node.attributes.get("value", 0.0)
    if len(values) > 2 and values[2] is not None:
        build.need(isinstance(values[2], Const), "its value must be constant")
        value = float(values[2].tensor)  # type: ignore[union-attr]
    rank = rank_of(build, x)
    axes = integers(build, values[3] if len(values) > 3 else None, "axes") or list(range(rank))
    sides = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        sides[axis % rank] = pads[i], pads[i + len(axes)]
    build.need(sides[0] == (0, 0), "it pads the batch")
    backwards = [p for side in sides[:0:-1] for p in side]
    while backwards[-2:] == [0, 0]:
        del backwards[-2:]
    if not backwards:
        return x
    x = build.settled(x)
    if mode == "constant" and isinstance(x, Real | Quantized) and len(backwards) <= 2 * (rank - 2):
        return Padded(x, tuple(backwards), value, build.place())
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    build.need(mode in modes, f"there is no mode {mode!r}")
    return build.call(_padded, x, pads=backwards, mode=modes[mode], value=value)


def _padded(x: Tensor, pads: list[int], mode: str, value: float) -> Tensor:
    return F.pad(x, pads, value=value) if mode == "constant" else F.pad(x, pads, mode)


@operator("Expand")
def expand(build: Builder, values: Sequence[Value | None]) -> Value:
    """Axes of one number repeated."""
    x, shape = present(build, values)
    return build.call(_expanded, x, shape)


def _expanded(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, [int(side) for side in shape.tolist()]))


@operator("Shape")
def shape(build: Builder, values: Sequence[Value | None]) -> Value:
    """The sides of a tensor."""
    (x,) = present(build, values)
    options = {name: build.node.attributes.get(name) for name in ("start", "end")}
    return build.call(_sides, x, **options)


def _sides(x: Tensor, start: int | None, end: int | None) -> Tensor:
    return torch.tensor(list(x.shape)[start:end])


@operator("Constant")
def constant(build: Builder, values: Sequence[Value | None]) -> Value:
    """A constant in the place of an operator."""
    ((name, found),) = build.node.attributes.items()
    if name == "value":
        return Const(found.tensor, found.range)
    build.need(name in ("value_float", "value_floats", "value_int", "value_ints"), f"it gives {name}")
    return Const(torch.tensor(found))


@operator("ConstantOfShape")
def constant_of_shape(build: Builder, values: Sequence[Value | None]) -> Value:
    """The same number everywhere."""
    found = build.node.attributes.get("value")
    fill = torch.zeros(1) if found is None else found.tensor
    (sides,) = present(build, values)
    return build.call(_filled, sides, fill=fill)


def _filled(sides: Tensor, fill: Tensor) -> Tensor:
    return fill.reshape(-1)[0].expand([int(side) for side in sides.tolist()]).clone()


@operator("DepthToSpace", "SpaceToDepth")
def depth_to_space(build: Builder, values: Sequence[Value | None]) -> Value:
    """Channels as places, or back."""
    (x,) = present(build, values)
    size, mode = build.node.attributes["blocksize"], build.node.attributes.get("mode", "DCR")
    build.need(build.node.op == "DepthToSpace" and mode == "CRD", f"mode {mode} has no form in PyTorch: use CRD")
    return build.moved(F.pixel_shuffle, x, upscale_factor=size)
