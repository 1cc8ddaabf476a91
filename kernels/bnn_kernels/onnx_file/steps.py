"""The steps of a plan that are no layers, in ONNX; maps are (N, C, H, W)."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bnn_kernels.onnx_file.graph import Graph, by_channel, need
from bnn_kernels.onnx_file.layers import Value, affine, finished, float_layer, floats_of, residual_of
from bnn_kernels.onnx_file.values import Floats, Levels, compared, lookup, rounded
from bnn_kernels.steps.base import Spec

Writer = Callable[[Graph, Any, list[Value], list[Spec]], list[Value]]


def levels_of(value: Value) -> Levels:
    """Return a register of levels."""
    need(isinstance(value, Levels), "it reads levels where there are floats")
    assert isinstance(value, Levels)
    return value


def _sides(geometry: tuple[int, ...]) -> dict[str, Any]:
    kh, kw, sy, sx, py, px, *_ = geometry
    return {"kernel_shape": [kh, kw], "strides": [sy, sx], "pads": [py, px, py, px]}


def _extreme(g: Graph, step: Any, x: str, rising: np.ndarray) -> str:
    """The maximum of windows, or the minimum in channels that do not rise."""
    given = {**_sides(step.geometry), "dilations": list(step.geometry[6:])}
    if rising.all():
        return g.add("MaxPool", [x], **given)
    direction = g.floats(by_channel(np.where(rising, 1, -1), 3), "direction")
    return g.add("Mul", [g.add("MaxPool", [g.add("Mul", [x, direction])], **given), direction])


def max_pool(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """A maximum of floats: of those that were multiplied by a negative number for rounding the minimum."""
    x = given[0]
    if not isinstance(x, Floats) or x.rounding is None or x.falling is None:
        return [Floats(_extreme(g, step, floats_of(x), np.ones(1, np.bool_)), made[0])]
    return [Floats(_extreme(g, step, x.name, ~x.falling), made[0], x.rounding, x.falling)]


def pool_int(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """An extreme of sums: of those that were scaled by a negative number the other one."""
    x, rising = given[0], step.rising.astype(np.bool_)
    assert isinstance(x, Floats)
    if x.falling is not None:
        rising = rising != x.falling
    y = _extreme(g, step, x.name, rising)
    return [Floats(y, made[0], x.rounding, x.falling)]


def pool_bits(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """An extreme of signs."""
    x = levels_of(given[0]).stored(g)
    return [Levels(made[0], g.signs_again(_extreme(g, step, x, step.tensors["rising"])))]


def avg_pool(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """A mean of floats, pads counted."""
    return [Floats(g.add("AveragePool", [floats_of(given[0])], count_include_pad=1, **_sides(step.geometry)), made[0])]


def window_pool(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """A mean over windows of several sizes, as two matrix products."""
    need(step.kind == "avg", "it is a maximum over windows of several sizes")
    _, height, width = given[0].spec.shape
    x = floats_of(given[0])
    for windows, sizes, extent, right in (
        (step.rows, step.sizes[0], height, False),
        (step.columns, step.sizes[1], width, True),
    ):
        share = np.zeros((len(windows), extent), np.float64)
        for row, (first, last), size in zip(share, windows, sizes, strict=True):
            row[first:last] = 1 / size
        x = g.add("MatMul", [x, g.floats(share.T)] if right else [g.floats(share), x])
    return [Floats(x, made[0])]


def pack(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """Floats to levels."""
    x = floats_of(given[0])
    if step.levels is not None:
        return [rounded(g, x, step.levels, made[0])]
    return [compared(g, x, step.thresholds, step.flip, step.codes, made[0])]


def threshold(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """Sums to levels: through thresholds, or rounded where a layer was folded with them."""
    (x,) = given
    t = step.thresholds
    if not isinstance(x, Floats) or x.rounding is None:
        return [compared(g, floats_of(x), t.t, t.flip, t.codes, made[0])]
    return [rounded(g, x.name, x.rounding, made[0])]


def elementwise(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """The operations that follow a layer, by themselves."""
    x = given[0]
    if isinstance(x, Floats) and x.rounding is not None:
        return [rounded(g, x.name, x.rounding, made[0])]
    t = step.tensors
    y = affine(g, floats_of(x), t.get("scale"), t.get("shift"), len(made[0].shape))
    return finished(g, step, y, residual_of(step, given), made)


def unpack(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """Levels to floats, by a scale or a table of every code."""
    x = levels_of(given[0])
    if step.scale is not None:
        return [Floats(g.add("Mul", [x.stored(g), g.floats(step.scale)]), made[0])]
    index, codes = x.places(g)
    if step.values.ndim == 1:
        return [Floats(lookup(g, index, step.values[codes]), made[0])]
    # The tables of all channels one after the other.
    first = by_channel(np.arange(len(step.values)) * len(codes), len(made[0].shape))
    place = g.add("Add", [index, g.floats(first)])
    return [Floats(lookup(g, place, step.values[:, codes].reshape(-1)), made[0])]


def reshape(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """The same numbers in another shape."""
    return [Floats(reshaped(g, floats_of(given[0]), made[0].shape), made[0])]


def reshaped(g: Graph, x: str, shape: tuple[int, ...]) -> str:
    """Return a value (N, ...) in another shape without batch."""
    return g.add("Reshape", [x, g.constant(np.array([-1, *shape], np.int64), "shape")])


def permute(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """The same numbers in another order."""
    x = reshaped(g, floats_of(given[0]), step.split)
    x = g.add("Transpose", [x], perm=[0, *(1 + axis for axis in step.order)])
    return [Floats(reshaped(g, x, step.shape), made[0])]


def concat(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """Channels one after the other."""
    return [Floats(g.add("Concat", [floats_of(x) for x in given], axis=1), made[0])]


def select(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """Channels, rows and columns by index, zeros where it is -1."""
    x = floats_of(given[0])
    for axis, name in enumerate(("channels", "rows", "columns"), start=1):
        index = step.index.get(name)
        if index is None:
            continue
        # A number where there is none is multiplied away.
        x = g.add("Gather", [x, g.constant(np.maximum(index, 0).astype(np.int64), "index")], axis=axis)
        if (index < 0).any():
            there = (index >= 0).reshape(-1, *[1] * (len(made[0].shape) - axis))
            zero = g.floats(0, "zero")
            x = g.add("Where", [g.constant(there, "there"), x, zero])
    return [Floats(x, made[0])]


# ONNX's operations of one number; others are put together below.
_FUNCTIONS = {
    "sigmoid": "Sigmoid", "tanh": "Tanh", "hard_swish": "HardSwish", "softplus": "Softplus", "softsign": "Softsign",
    "abs": "Abs", "exp": "Exp", "sqrt": "Sqrt", "reciprocal": "Reciprocal", "round": "Round", "floor": "Floor",
    "ceil": "Ceil", "elu": "Elu",
}  # fmt: skip


def activation(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """A function of one number."""
    kind, x = step.fields.kind, floats_of(given[0])
    if kind in _FUNCTIONS:
        y = g.add(_FUNCTIONS[kind], [x])
    elif kind == "hard_sigmoid":
        y = g.add("HardSigmoid", [x], alpha=1 / 6, beta=0.5)
    elif kind == "silu":
        y = g.add("Mul", [x, g.add("Sigmoid", [x])])
    elif kind == "gelu":
        inner = g.add("Erf", [g.add("Mul", [x, g.floats(math.sqrt(0.5))])])
        y = g.add("Mul", [g.add("Mul", [x, g.floats(0.5)]), g.add("Add", [inner, g.floats(1)])])
    elif kind == "log_sigmoid":
        y = g.add("Neg", [g.add("Softplus", [g.add("Neg", [x])])])
    elif kind == "mish":
        y = g.add("Mul", [x, g.add("Tanh", [g.add("Softplus", [x])])])
    elif kind == "square":
        y = g.add("Mul", [x, x])
    elif kind == "rsqrt":
        y = g.add("Reciprocal", [g.add("Sqrt", [x])])
    else:
        need(False, f"there is no operation for {kind}")
    return [Floats(y, made[0])]


_COMBINATIONS = {"add": "Add", "multiply": "Mul", "divide": "Div", "maximum": "Max", "minimum": "Min"}


def combine(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """An operation of two values."""
    return [Floats(g.add(_COMBINATIONS[step.fields.kind], [floats_of(x) for x in given]), made[0])]


def by_place(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """A sum or product with a constant."""
    value = step.value.transpose(2, 0, 1) if step.value.ndim == 3 else step.value
    return [Floats(g.add(_COMBINATIONS[step.fields.kind], [floats_of(given[0]), g.floats(value)]), made[0])]


def softmax(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """A softmax over channels, or its logarithm."""
    return [Floats(g.add("LogSoftmax" if step.log else "Softmax", [floats_of(given[0])], axis=1), made[0])]


def normalize(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """Layer normalization, or that by the root of the mean square."""
    x = floats_of(given[0])
    if step.center:
        x = g.add("Sub", [x, g.add("ReduceMean", [x], axes=[1], keepdims=1)])
    mean = g.add("ReduceMean", [g.add("Mul", [x, x])], axes=[1], keepdims=1)
    root = g.add("Sqrt", [g.add("Add", [mean, g.floats(step.eps)])])
    return [Floats(g.add("Div", [x, root]), made[0])]


def absmax(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """The largest magnitude, as the step of a quantizer."""
    axes = list(range(1, 1 + len(given[0].spec.shape))) if step.over_all else [1]
    y = g.add("ReduceMax", [g.add("Abs", [floats_of(given[0])])], axes=axes, keepdims=1)
    y = g.add("Max", [y, g.floats(step.smallest)])
    return [Floats(g.add("Div", [y, g.floats(step.levels)]), made[0])]


def matmul(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """A matrix product for each channel."""
    return [Floats(g.add("MatMul", [floats_of(x) for x in given]), made[0])]


STEPS: dict[str, Writer] = {
    function.__name__: function
    for function in (
        max_pool, pool_int, pool_bits, avg_pool, window_pool, pack, unpack, threshold, elementwise, reshape, permute,
        concat, select, activation, combine, by_place, softmax, normalize, absmax, matmul,
    )
} | {"float_conv": float_layer, "float_linear": float_layer}  # fmt: skip
