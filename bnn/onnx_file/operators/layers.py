"""Convolutions, matrix products and normalization; with levels on either side they are quantized layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn.layers import QuantConv1d, QuantConv2d, QuantConv3d, QuantLinear
from bnn.onnx_file.builder import Builder
from bnn.onnx_file.network import Operation
from bnn.onnx_file.operators.elementwise import present
from bnn.onnx_file.operators.shape import rank_of
from bnn.onnx_file.operators.windows import windows
from bnn.onnx_file.quantizers import MOST_LEVELS, CountedLevels, EvenLevels, StoredWeight
from bnn.onnx_file.registry import operator
from bnn.onnx_file.values import Const, Padded, Quantized, Real, Value
from bnn.quantizers.base import FullPrecision, Quantizer

_CONVS = ((nn.Conv1d, QuantConv1d), (nn.Conv2d, QuantConv2d), (nn.Conv3d, QuantConv3d))
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@dataclass(frozen=True)
class Weight:
    """A weight (O, ...), and what quantizes it, if it is integers times a scale of each filter."""

    tensor: Tensor
    quantizer: StoredWeight | None


def weight_of(build: Builder, value: Value | None, turned: bool = False) -> Weight:
    """Return a constant weight, filters first; turned: it is a matrix (K, O)."""
    build.need(isinstance(value, Const), "its weight depends on an input")
    assert isinstance(value, Const)
    if turned:
        value = value.moved(torch.t)
    tensor = value.tensor.to(torch.float32).contiguous()
    if value.levels is None or value.scale is None:
        return Weight(tensor, None)
    levels, scale = value.levels.flatten(1), value.scale.flatten(1)
    low, high = levels.aminmax(dim=1)
    if not bool((scale == scale[:, :1]).all()) or int((high - low).max()) >= MOST_LEVELS:
        return Weight(tensor, None)
    step = scale[:, 0].clone()
    levels = levels * step.sign().to(torch.int64)[:, None]
    found = StoredWeight(levels, torch.where(step == 0, 1, step.abs()))
    same = torch.equal(found.levels(tensor).flatten(1), levels)
    return Weight(tensor, found if same else None)


def input_of(build: Builder, value: Value, weight: Weight) -> tuple[Real, Quantizer | None]:
    """Return what a layer reads, and what quantizes it there, if it has levels on both sides."""
    found = build.settled(value)
    if isinstance(found, Quantized) and found.codes is None and weight.quantizer is not None:
        return found.before, build.quantizer(found)
    return build.real(found), None


def _factories(weight: Weight, quantizer: Quantizer | None) -> dict[str, Any]:
    assert weight.quantizer is not None
    own = weight.quantizer
    return {
        "weight_quantizer": lambda: own,
        "input_quantizer": FullPrecision if quantizer is None else lambda: quantizer,
    }


def bias_of(build: Builder, value: Value | None) -> Tensor | None:
    """Return a constant bias (O,)."""
    if value is None:
        return None
    build.need(isinstance(value, Const), "its bias depends on an input")
    assert isinstance(value, Const)
    return value.tensor.to(torch.float32).reshape(-1)


def _with(module: Any, weight: Tensor, bias: Tensor | None) -> Any:
    module.weight = nn.Parameter(weight.clone())
    if bias is not None:
        module.bias = nn.Parameter(bias.clone())
    return module


@operator("Conv")
def conv(build: Builder, values: Sequence[Value | None]) -> Value:
    """A convolution."""
    x, w, b = (*values, None, None)[:3]
    build.need(x is not None, "its input is missing")
    assert x is not None
    weight, bias = weight_of(build, w), bias_of(build, b)
    padded, value = None, 0.0
    if isinstance(x, Padded):
        padded, value, x = x, x.value, x.inside
    real, quantizer = input_of(build, x, weight)
    at = windows(build, real.example.shape[2:], weight.tensor.shape[2:])
    if padded is not None:
        pads = [*padded.pads, *(0,) * (2 * at.axes - len(padded.pads))][::-1]  # after and before, first axis first
        before, after = pads[1::2], pads[::2]
        if any(at.pads) or before != after or (value != 0 and quantizer is None) or value not in (0, 1, -1):
            return _conv(build, build.real(padded), None, weight, bias, 0.0, at)
        at = at._replace(pads=(*before, *after))
    return _conv(build, real, quantizer, weight, bias, value, at, x)


def _conv(
    build: Builder, real: Real, quantizer: Quantizer | None, weight: Weight, bias: Tensor | None, value: float, at: Any,
    x: Value | None = None,
) -> Value:  # fmt: skip
    if at.uneven:
        if quantizer is not None and float(quantizer(torch.zeros(1, 1))) != value:  # padded with what is no level
            assert x is not None
            real, quantizer = build.real(x), None
        real = build.add(Operation(F.pad, pad=at.backwards, value=value), real, place=build.place("_pad"))
        at = at.without_pads()
    filters, inputs = weight.tensor.shape[:2]
    groups = build.node.attributes.get("group", 1)
    given: dict[str, Any] = {
        "stride": at.stride, "padding": at.padding, "dilation": at.dilation, "groups": groups, "bias": bias is not None,
    }  # fmt: skip
    plain: Any
    quantized: Any
    plain, quantized = _CONVS[at.axes - 1]
    if weight.quantizer is None:
        module: Any = plain(inputs * groups, filters, at.kernel, **given)
    else:
        pad = {"pad_value": value if any(at.pads) else 0.0}
        module = quantized(inputs * groups, filters, at.kernel, **given, **pad, **_factories(weight, quantizer))
    return build.add(_with(module, weight.tensor, bias), real)


@operator("ConvTranspose")
def conv_transpose(build: Builder, values: Sequence[Value | None]) -> Value:
    """A transposed convolution."""
    x, w, b = (*values, None, None)[:3]
    assert x is not None
    build.need(isinstance(w, Const), "its weight depends on an input")
    assert isinstance(w, Const)
    real, bias = build.real(x), bias_of(build, b)
    at = windows(build, real.example.shape[2:], w.tensor.shape[2:])
    given = build.node.attributes
    same = given.get("auto_pad", "NOTSET") in ("NOTSET", "VALID") and not at.uneven
    build.need(same and "output_shape" not in given, "give it pads that are the same before and after each axis")
    groups = given.get("group", 1)
    kind: Any = _TRANSPOSED[at.axes - 1]
    module = kind(
        w.tensor.shape[0], w.tensor.shape[1] * groups, at.kernel, at.stride, at.padding,
        tuple(given.get("output_padding", (0,) * at.axes)), groups, bias is not None, at.dilation,
    )  # fmt: skip
    return build.add(_with(module, w.tensor, bias), real)


def linear(build: Builder, x: Value, weight: Weight, bias: Tensor | None) -> Value:
    """Return the product of the last axis with a weight (O, K)."""
    real, quantizer = input_of(build, x, weight)
    if isinstance(quantizer, CountedLevels | EvenLevels) and quantizer.channelwise and real.example.ndim != 2:
        real, quantizer = build.real(x), None
    outputs, inputs = weight.tensor.shape
    if weight.quantizer is None:
        module: Any = nn.Linear(inputs, outputs, bias is not None)
    else:
        module = QuantLinear(inputs, outputs, bias is not None, **_factories(weight, quantizer))
    return build.add(_with(module, weight.tensor, bias), real)


@operator("Gemm")
def gemm(build: Builder, values: Sequence[Value | None]) -> Value:
    """A matrix product, perhaps scaled, plus a bias."""
    a, b, c = (*values, None)[:3]
    build.need(a is not None and b is not None, "an input is missing")
    assert a is not None and b is not None
    given = build.node.attributes
    alpha, beta = given.get("alpha", 1.0), given.get("beta", 1.0)
    if given.get("transA", 0):
        a = build.moved(torch.t, a)
    turned = not given.get("transB", 0)
    if not isinstance(b, Const):
        made = build.call(torch.matmul, a, b if turned else build.moved(torch.t, b))
        made = made if alpha == 1 else build.call(torch.mul, made, Const(torch.tensor(alpha)))
        return made if c is None else build.call(_plus, made, c, beta=beta)
    weight = weight_of(build, b, turned)
    vector = isinstance(c, Const) and c.tensor.numel() == len(weight.tensor) and alpha == 1
    bias = bias_of(build, c) if vector else None
    made = linear(build, a, weight, bias if bias is None else bias * beta)
    made = made if alpha == 1 else build.call(torch.mul, made, Const(torch.tensor(alpha)))
    return made if c is None or vector else build.call(_plus, made, c, beta=beta)


def _plus(x: Tensor, c: Tensor, beta: float) -> Tensor:
    return x + beta * c


@operator("MatMul")
def matmul(build: Builder, values: Sequence[Value | None]) -> Value:
    """A matrix product with a constant, or of two values."""
    a, b = present(build, values)
    if isinstance(b, Const) and b.tensor.ndim == 2 and not isinstance(a, Const) and rank_of(build, a) > 1:
        return linear(build, a, weight_of(build, b, turned=True), None)
    return build.call(torch.matmul, a, b)


@operator("BatchNormalization")
def batch_norm(build: Builder, values: Sequence[Value | None]) -> Value:
    """Batch norm with the statistics of the training."""
    x, *parts = present(build, values)
    build.need(not build.node.attributes.get("training_mode", 0), "it is in training mode: export in evaluation")
    build.need(all(isinstance(part, Const) for part in parts) and len(parts) == 4, "its parameters must be constants")
    real = build.real(x)
    build.need(real.example.ndim in _NORMS, f"it reads a tensor of {real.example.ndim} axes")
    scale, shift, mean, variance = (part.tensor for part in parts)  # type: ignore[union-attr]
    module: Any = _NORMS[real.example.ndim](len(scale), eps=build.node.attributes.get("epsilon", 1e-5))
    module.weight.data, module.bias.data = scale.clone(), shift.clone()
    module.running_mean, module.running_var = mean.clone(), variance.clone()
    return build.add(module, real)


@operator("LayerNormalization")
def layer_norm(build: Builder, values: Sequence[Value | None]) -> Value:
    """Layer norm over the last axes."""
    x, scale, shift = (*values, None)[:3]
    assert x is not None
    build.need(isinstance(scale, Const) and isinstance(shift, Const | None), "its parameters must be constants")
    assert isinstance(scale, Const)
    real = build.real(x)
    axis = build.node.attributes.get("axis", -1) % real.example.ndim
    module = nn.LayerNorm(real.example.shape[axis:], eps=build.node.attributes.get("epsilon", 1e-5))
    module.weight.data = scale.tensor.clone()
    if isinstance(shift, Const):
        module.bias.data = shift.tensor.clone()
    return build.add(module, real)
