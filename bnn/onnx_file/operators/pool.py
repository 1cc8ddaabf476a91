"""Pooling, and sums, means and extremes over axes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn.onnx_file.builder import Builder
from bnn.onnx_file.network import Operation
from bnn.onnx_file.operators.elementwise import present
from bnn.onnx_file.operators.shape import listed
from bnn.onnx_file.operators.windows import windows
from bnn.onnx_file.registry import operator
from bnn.onnx_file.values import Const, Counted, Quantized, Value

_MAX = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_MEAN = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


@operator("MaxPool")
def max_pool(build: Builder, values: Sequence[Value | None]) -> Value:
    """The largest number of each window; of levels that of what they are made of."""
    (x,) = present(build, values)
    build.need(len(build.node.outputs) == 1 or not build.node.outputs[1], "its indices cannot be had")
    build.need(not build.node.attributes.get("storage_order", 0), "its storage_order is 1")
    x = build.settled(x)
    before = x.before if isinstance(x, Quantized) else build.real(x)
    at = windows(build, before.example.shape[2:], build.node.attributes["kernel_shape"])
    if at.uneven:
        before = build.add(Operation(F.pad, pad=at.backwards, value=-torch.inf), before, place=build.place("_pad"))
    module = _MAX[at.axes - 1](
        at.kernel, at.stride, (0,) * at.axes if at.uneven else at.padding, at.dilation, ceil_mode=_ceil(build)
    )
    made = build.add(module, before)
    return Quantized(made, x.quantizer, x.place, x.codes) if isinstance(x, Quantized) else made


def _ceil(build: Builder) -> bool:
    return bool(build.node.attributes.get("ceil_mode", 0))


@operator("AveragePool")
def average_pool(build: Builder, values: Sequence[Value | None]) -> Value:
    """The mean of each window."""
    (given,) = present(build, values)
    x = build.real(given)
    at = windows(build, x.example.shape[2:], build.node.attributes["kernel_shape"])
    counts = bool(build.node.attributes.get("count_include_pad", 0)) or not any(at.pads)
    build.need(set(at.dilation) == {1}, "its windows are dilated")
    if at.uneven:
        build.need(counts, "its pads differ before and after, and do not count")
        x = build.add(Operation(F.pad, pad=at.backwards), x, place=build.place("_pad"))
        at = at.without_pads()
    kind: Any = _MEAN[at.axes - 1]
    return build.add(kind(at.kernel, at.stride, at.padding, _ceil(build), counts), x)


@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pool(build: Builder, values: Sequence[Value | None]) -> Value:
    """The mean or the largest number of each channel."""
    (given,) = present(build, values)
    x = build.real(given)
    axes = x.example.ndim - 2
    build.need(1 <= axes <= 3, f"it reads a tensor of {axes + 2} axes")
    means = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
    largest = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
    kind: Any = (means if build.node.op == "GlobalAveragePool" else largest)[axes - 1]
    return build.add(kind(1), x)


_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin,
}  # fmt: skip


@operator(*_REDUCTIONS)
def reduction(build: Builder, values: Sequence[Value | None]) -> Value:
    """A mean, sum or extreme over axes; a sum of comparisons is how many thresholds are reached."""
    x = values[0]
    assert x is not None
    axes = listed(build, values, "axes")
    keeps = bool(build.node.attributes.get("keepdims", 1))
    if axes is None or not axes:
        build.need(not build.node.attributes.get("noop_with_empty_axes", 0) or axes is None, "it goes over no axes")
        build.fail("it goes over all axes, the batch among them: name those that it is to go over")
    if isinstance(x, Counted) and x.stacked:
        rank = x.before.example.ndim
        build.need(build.node.op == "ReduceSum" and not keeps and axes in ([-1], [rank]), "it does not sum thresholds")
        step, count = x.table.to(torch.float32), len(x.bounds)
        reached = torch.arange(count + 1)
        table = step[0] * (count - reached) + step[1] * reached
        return Counted(x.before, x.bounds, x.flip, x.axis, table, x.place)
    if isinstance(x, Const):
        return Const(_REDUCTIONS[build.node.op](x.tensor, axes, keeps))
    real = build.real(x)
    build.need(all(axis % real.example.ndim for axis in axes), "it goes over the batch")
    return build.call(_reduced, real, name=build.node.op, axes=tuple(axes), keeps=keeps)


def _reduced(x: Tensor, name: str, axes: tuple[int, ...], keeps: bool) -> Tensor:
    return _REDUCTIONS[name](x, axes, keeps)


@operator("ArgMax")
def argmax(build: Builder, values: Sequence[Value | None]) -> Value:
    """The place of the largest number along an axis."""
    (x,) = present(build, values)
    options = {"dim": build.node.attributes.get("axis", 0), "keepdim": bool(build.node.attributes.get("keepdims", 1))}
    return build.call(torch.argmax, x, **options)
