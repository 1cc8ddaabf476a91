"""Operators of integers, which are DequantizeLinear, an operator of floats and QuantizeLinear at once."""

from collections.abc import Sequence
from typing import Any

import torch

from bnn.onnx_file.builder import Builder
from bnn.onnx_file.operators.elementwise import activation, pair
from bnn.onnx_file.operators.layers import conv, gemm, matmul
from bnn.onnx_file.operators.pool import global_pool
from bnn.onnx_file.operators.quantize import constant_of, dequantize_linear, quantize_linear
from bnn.onnx_file.operators.shape import concat
from bnn.onnx_file.registry import Rule, operator
from bnn.onnx_file.values import Const, Value


def _floats(build: Builder, values: Sequence[Value | None], axis: int = 1) -> Value:
    """Return what integers, their scale and their zero point stand for."""
    return _as(build, dequantize_linear, values, op="DequantizeLinear", axis=axis)


def _as(build: Builder, rule: Rule, values: Sequence[Value | None], **attributes: Any) -> Value:
    """Return what another operator, with these attributes, makes of values."""
    node = build.node
    build.node = node.named(**attributes)
    try:
        made = rule(build, values)
    finally:
        build.node = node
    assert not isinstance(made, list)
    return made


def _bias(build: Builder, integers: Value | None, *scales: Value | None) -> Value | None:
    """Return a bias of integers times both scales."""
    if integers is None:
        return None
    first, second = (constant_of(build, scale, "scale").tensor for scale in scales)
    return Const(constant_of(build, integers, "bias").tensor.to(torch.float32) * (first * second).reshape(-1))


def _integers(build: Builder, made: Value, scale: Value | None, zero: Value | None) -> Value:
    return _as(build, quantize_linear, [made, scale, zero], op="QuantizeLinear", axis=1)


@operator("QLinearConv")
def integer_conv(build: Builder, values: Sequence[Value | None]) -> Value:
    """A convolution."""
    x, w, (y_scale, y_zero) = values[:3], values[3:6], values[6:8]
    bias = _bias(build, values[8] if len(values) > 8 else None, x[1], w[1])
    made = conv(build, [_floats(build, x), _floats(build, w, axis=0), bias])
    return _integers(build, made, y_scale, y_zero)


@operator("QLinearMatMul")
def integer_matmul(build: Builder, values: Sequence[Value | None]) -> Value:
    """A matrix product."""
    made = matmul(build, [_floats(build, values[:3]), _floats(build, values[3:6])])
    return _integers(build, made, *values[6:8])


@operator("QGemm")
def integer_gemm(build: Builder, values: Sequence[Value | None]) -> Value:
    """A matrix product and a bias."""
    a, b, (c, y_scale, y_zero) = values[:3], values[3:6], (*values[6:], None, None, None)[:3]
    axis = 0 if build.node.attributes.get("transB", 0) else 1
    made = gemm(build, [_floats(build, a), _floats(build, b, axis), _bias(build, c, a[1], b[1])])
    return made if y_scale is None else _integers(build, made, y_scale, y_zero)


@operator("QLinearAdd", "QLinearMul")
def integer_pair(build: Builder, values: Sequence[Value | None]) -> Value:
    """A sum or product of two values."""
    given = [_floats(build, values[:3]), _floats(build, values[3:6])]
    made = _as(build, pair, given, op=build.node.op.removeprefix("QLinear"))
    return _integers(build, made, *(*values[6:], None)[:2])


_OF_ONE: dict[str, Rule] = {
    "QLinearGlobalAveragePool": global_pool, "QLinearSigmoid": activation, "QLinearLeakyRelu": activation,
}  # fmt: skip


@operator(*_OF_ONE)
def integer_function(build: Builder, values: Sequence[Value | None]) -> Value:
    """A function of one value."""
    build.need(not build.node.attributes.get("channels_last", 0), "its channels come last")
    rule, name = _OF_ONE[build.node.op], build.node.op.removeprefix("QLinear")
    return _integers(build, _as(build, rule, [_floats(build, values[:3])], op=name), *(*values[3:], None)[:2])


@operator("QLinearConcat")
def integer_concat(build: Builder, values: Sequence[Value | None]) -> Value:
    """One after the other along an axis."""
    given = [_floats(build, values[i : i + 3]) for i in range(2, len(values), 3)]
    return _integers(build, _as(build, concat, given), *values[:2])
