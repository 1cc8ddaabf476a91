"""Layers in ONNX: sums of levels or floats, and what follows them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bnn_kernels.bits.planes import level_of_code
from bnn_kernels.bits.storage import from_dense_bits
from bnn_kernels.onnx_file.folding import Folded
from bnn_kernels.onnx_file.graph import Graph, by_channel, need
from bnn_kernels.onnx_file.values import Floats, Levels, compared, rounded, signs
from bnn_kernels.steps.base import Spec
from bnn_kernels.steps.weights import read_terms

Value = Floats | Levels
# A layer's sums of an input and a weight by their names, and a bias (O,) if there is one.
Product = Callable[[str, str, np.ndarray | None], str]


def floats_of(value: Value) -> str:
    """Return the name of a register of floats."""
    need(isinstance(value, Floats), "it reads floats where there are levels")
    return value.name


def residual_of(step: Any, given: list[Value]) -> str:
    """Return the floats that are added, "" if none are."""
    return "" if step.finish.residual is None else floats_of(given[-1])


def affine(g: Graph, x: str, scale: np.ndarray | None, shift: np.ndarray | None, axes: int) -> str:
    """Return x * scale + shift, vectors of channels; either may be missing."""
    if scale is not None:
        x = g.add("Mul", [x, g.floats(by_channel(scale, axes), "scale")])
    return x if shift is None else g.add("Add", [x, g.floats(by_channel(shift, axes), "shift")])


def finished(g: Graph, step: Any, x: str, residual: str, made: list[Spec]) -> list[Value]:
    """Return what `Finish` hands on, of floats that were scaled and shifted by the layer itself.

    See `ops.epilogue` for the order.
    """
    fields, t, shape = step.fields, step.tensors, made[0].shape
    axes = len(shape)
    x = affine(g, x, t.get("norm_scale"), t.get("norm_shift"), axes)
    if fields.residual == "before":
        x = g.add("Add", [x, residual])
    if fields.pre is not None:
        x = g.add("Sub", [x, g.floats(by_channel(t["pre"], axes), "pre")])
    if fields.slope is not None:
        x = g.add("PRelu", [x, g.floats(by_channel(t["slope"], axes), "slope")])
    x = affine(g, x, None, t.get("post"), axes)
    x = clipped(g, x, fields.low, fields.high)
    if fields.residual == "after":
        x = g.add("Add", [x, residual])
    results: list[Value] = [Floats(x, made[0])] if fields.keep else []
    if fields.bounds is not None:
        results.append(signs(g, x, t["bounds"], t["flip"], shape))
    elif step.finish.levels is not None:
        x = affine(g, x, t.get("level_scale"), t.get("level_shift"), axes)
        results.append(rounded(g, x, step.finish.levels, made[-1]))
    return results


def clipped(g: Graph, x: str, low: float, high: float) -> str:
    """Return x within bounds; infinite ones are none."""
    if low == 0 and high == math.inf:
        return g.add("Relu", [x])
    if low == -math.inf and high == math.inf:
        return x
    return g.add("Clip", [x, g.floats(low) if low > -math.inf else "", *([g.floats(high)] if high < math.inf else [])])


def levels_of_terms(step: Any, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return the integers of each term of a weight, and the ones of its offset."""
    found = [
        level_of_code(*term)[from_dense_bits(np.asarray(step.tensors[f"bits.{i}"]), shape)]
        for i, term in enumerate(read_terms(step.fields))
    ]
    return [*found, *([np.ones(shape, np.int64)] if step.fields.weight_offset else [])]


def weight_of(g: Graph, step: Any, axis: int) -> str:
    """Return the weight of a layer with float inputs; axis: of the filters, 1 of a matrix that was turned."""
    shape = step.shape
    if step.fields.terms is None:
        weight = np.asarray(step.tensors["weight"], np.float32).reshape(shape)
        return g.floats(weight.T if axis else weight, "weight")
    parts = [
        g.weight(levels.T if axis else levels, step.tensors[f"scale.{i}"], axis)
        for i, levels in enumerate(levels_of_terms(step, shape))
    ]
    total = parts[0]
    for part in parts[1:]:
        total = g.add("Add", [total, part])
    return total


def convolution(g: Graph, step: Any, pad: float) -> Product:
    """Return the convolution of a step; pad: what lies outside the map."""
    kh, kw, sy, sx, py, px, dy, dx, ey, ex = step.geometry
    around = [py, px, ey, ex]
    outside = pad != 0 and any(around)
    pads = [0, 0, 0, 0] if outside else around
    sides: dict[str, Any] = {"kernel_shape": [kh, kw], "strides": [sy, sx], "dilations": [dy, dx]}

    def product(x: str, weight: str, bias: np.ndarray | None) -> str:
        if outside:
            border = g.constant(np.array([0, 0, py, px, 0, 0, ey, ex], np.int64), "border")
            x = g.add("Pad", [x, border, g.floats(pad, "outside")], mode="constant")
        given = [x, weight, *([] if bias is None else [g.floats(bias, "bias")])]
        return g.add("Conv", given, pads=pads, group=step.fields.groups, **sides)

    return product


def matrix(g: Graph) -> Product:
    """Return the product with a weight that was turned, (K, O)."""

    def product(x: str, weight: str, bias: np.ndarray | None) -> str:
        made = g.add("MatMul", [x, weight])
        # A difference: a sum would become a Gemm in ONNX Runtime, which it runs in integers only with such a bias.
        return made if bias is None else g.add("Sub", [made, g.floats(-bias, "negative_bias")])

    return product


def float_layer(g: Graph, step: Any, given: list[Value], made: list[Spec]) -> list[Value]:
    """A layer of floats."""
    is_conv = step.op == "float_conv"
    product = convolution(g, step, float(step.fields.pad_value)) if is_conv else matrix(g)
    t = step.tensors
    shift = t.get("bias", t.get("shift"))
    scale = t.get("scale")
    bias = None if scale is not None else shift
    x = product(floats_of(given[0]), weight_of(g, step, 0 if is_conv else 1), bias)
    if scale is not None:
        x = affine(g, x, scale, shift, len(made[0].shape))
    return finished(g, step, x, residual_of(step, given), made)


def _input_scale(g: Graph, step: Any, x: str) -> str:
    """XNOR-Net's K: the mean of |x| over channels, and that over the window of a convolution, zeros outside."""
    size = g.add("Abs", [x])
    if step.is_flat:
        flat = g.add("Flatten", [size], axis=1)
        return g.add("ReduceMean", [flat], axes=[1], keepdims=1)
    need(step.groups == 1, "it scales the inputs of a convolution in groups")
    mean = g.add("ReduceMean", [size], axes=[1], keepdims=1)
    kh, kw, sy, sx, py, px, dy, dx, ey, ex = step.geometry
    box = g.floats(np.full((1, 1, kh, kw), 1 / (kh * kw)), "box")
    sides: dict[str, Any] = {"kernel_shape": [kh, kw], "strides": [sy, sx], "dilations": [dy, dx]}
    return g.add("Conv", [mean, box], pads=[py, px, ey, ex], **sides)


def level_layer(
    g: Graph, step: Any, given: list[Value], made: list[Spec], rounding: Folded | None = None
) -> list[Value]:
    """A layer of levels. rounding: what stands for all that follows its sums."""
    x = given[0]
    need(isinstance(x, Levels), "it reads levels where there are floats")
    assert isinstance(x, Levels)
    flat, axes, shape = step.is_flat, len(made[0].shape), step.shape
    # Tools of QONNX expect the scales in the quantizers.
    exact = rounding is None and (step.output != "float" or g.style == "qdq")
    names, unit, offset = _inputs(g, step, x, exact)
    product = matrix(g) if flat else convolution(g, step, float(step.pad_level) * float(unit))
    weights = levels_of_terms(step, shape)

    def sums(name: str, levels: np.ndarray, scale: np.ndarray, bias: np.ndarray | None = None) -> str:
        if flat and len(x.spec.shape) > 1:
            name = g.flatten(name)
        return product(name, g.weight(levels.T if flat else levels, scale, 1 if flat else 0), bias)

    one = np.ones(shape[0], np.float32)
    if rounding is not None:
        scale = (rounding.scale / float(unit)).astype(np.float32)
        y = sums(names[0], weights[0], scale, rounding.shift)
        if rounding.bounds is not None:
            y = g.quantize(y, rounding.levels)
            low, high = (g.floats(by_channel(bound, axes), "bound") for bound in rounding.bounds)
            y = g.add("Min", [g.add("Max", [y, low]), high])
        if step.output == "int":
            return [Floats(y, made[0], rounding.levels, rounding.scale < 0)]
        if rounding.turned is not None:  # what makes the levels comes later
            return [Floats(y, made[0], rounding.levels, rounding.turned)]
        return [rounded(g, y, rounding.levels, made[0])]
    if step.output != "float":
        y = sums(names[0], weights[0], one)
        if step.output == "int":
            return [Floats(y, made[0])]
        t = step.thresholds
        return [compared(g, y, t.t, t.flip, t.codes, made[0])]
    shift, count = step.tensors.get("shift"), step.given.count
    total = ""
    for i, levels in enumerate(weights):
        for j, name in enumerate([*names, *offset]):
            scale = step.scales[i * count + j]
            if exact:  # sums of integers, and then the operations of the packed model in its order
                y = affine(g, sums(name, levels, one), scale, None, axes)
            else:  # the offset is 1 whatever the unit
                y = sums(name, levels, scale / (unit if j < len(names) else np.float32(1)))
            total = g.add("Add", [total, y]) if total else y
    if step.input_scale:
        total = g.add("Mul", [total, _input_scale(g, step, floats_of(given[1]))])
    total = affine(g, total, None, shift, axes)
    return finished(g, step, total, residual_of(step, given), made)


def _inputs(g: Graph, step: Any, x: Levels, exact: bool) -> tuple[list[str], np.float32, list[str]]:
    """Return (the terms of the input, what their levels are multiplied by, the offset if there is one)."""
    if step.zero is not None:
        factor, points = step.zero.factor, np.array(step.zero.points)
        if x.codes is None and factor == 1 and (points == x.zero).all():
            if not exact or x.unit == 1:
                return [x.name], x.unit, []
            if (found := g.integers_of(x.name, less_zero=True)) is not None:
                return [found], np.float32(1), []
        stored = x.stored(g)
        stored = g.add("Mul", [stored, g.floats(factor)]) if factor != 1 else stored
        return [affine(g, stored, None, -points.astype(np.float32), len(x.spec.shape))], np.float32(1), []
    offset = []
    if step.given.offset:
        offset = [g.floats(np.ones((1, *x.spec.shape)), "ones")]
    if exact and step.given.terms is None:
        return [x.stored(g)], np.float32(1), offset
    return (*x.parts(g, step.given.terms), offset)
