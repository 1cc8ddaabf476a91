"""Rules of convolution over three axes, as work on maps of which the slices lie below one another.

A volume (C, D, H, W) is a map (C, D * H, W). The depth taps of a filter become channels: for each output slice the
input slices that it reads are stacked, so that one 2-d convolution gives all output slices, in the sums of PyTorch.
Rows between two slices are padding; outputs that straddle two slices are left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnn.converter.graph.builder import Builder
from bnn.converter.graph.input_levels import levels_of
from bnn.converter.graph.values import Levels, Unpacked, Value
from bnn.converter.recognize.staircase import Staircase, quantizer_of
from bnn.converter.registry import register_rule
from bnn.converter.rules.layers import conv as map_conv
from bnn.converter.rules.layers import same_padding
from bnn.converter.rules.pool import sides_of
from bnn.converter.rules.quantized import binary_layer, float_layer, operands, rescaled
from bnn.layers import QuantConv3d
from bnn.planes import Term

aten = torch.ops.aten


@dataclass(frozen=True)
class _Stack:
    """How the taps of a filter's depth become channels. All sides are (z, y, x)."""

    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    extents: Sequence[int]

    @property
    def counts(self) -> list[int]:
        """Sides of the output."""
        sides = zip(self.extents, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return [(e + 2 * p - d * (k - 1) - 1) // s + 1 for e, k, s, p, d in sides]

    @property
    def rows(self) -> int:
        """Rows of a slice with its padding: a multiple of the stride, so that all slices begin at an output row."""
        return -(-(self.extents[1] + 2 * self.padding[1]) // self.stride[1]) * self.stride[1]

    @property
    def map_sides(self) -> dict[str, Any]:
        """Stride, padding, dilation and groups of the 2-d convolution; the rows of the padding are in the map."""
        return {
            "stride": self.stride[1:], "padding": (0, self.padding[2]), "dilation": self.dilation[1:],
            "groups": self.groups,
        }  # fmt: skip

    @property
    def pads(self) -> bool:
        """Whether the map has numbers from outside the volume."""
        return self.rows > self.extents[1] or self.padding[0] > 0

    def of_input(self, build: Builder, x: Value) -> Value:
        """Return the map (groups * kd * C/groups, Do * rows, W) of a volume, zeros outside."""
        channels, taps = x.shape[0], self.kernel[0]
        parts = [build.move(x, self._tap(t)) for t in range(taps)]
        stacked = build.concat(parts)
        if self.groups == 1 or taps == 1:
            return stacked
        order = torch.arange(taps * channels).reshape(taps, self.groups, -1).transpose(0, 1).reshape(-1)
        moved: Value = build.move(stacked, lambda p: p[:, order], False)
        return moved

    def _tap(self, tap: int) -> Callable[[Tensor], Tensor]:
        (pz, py, _), stride, count = self.padding, self.stride[0], self.counts[0]
        below = self.rows - self.extents[1] - py
        first = tap * self.dilation[0]

        def slices(p: Tensor) -> Tensor:
            p = F.pad(p, (0, 0, py, below, pz, pz))[:, :, first : first + (count - 1) * stride + 1 : stride]
            return p.reshape(*p.shape[:2], -1, p.shape[4])

        return slices

    def of_weight(self, weight: Tensor) -> Tensor:
        """Return filters (..., O, C/groups, kd, kh, kw) as (..., O, kd * C/groups, kh, kw)."""
        return weight.transpose(-4, -3).flatten(-4, -3)

    def of_output(self, build: Builder, y: Value) -> Value:
        """Return the volume of the 2-d convolution's output."""
        depth, height, width = self.counts
        step = self.rows // self.stride[1]
        rows = (torch.arange(depth)[:, None] * step + torch.arange(height)).reshape(-1)
        volume: Value = build.move(y, lambda p: p[:, :, rows].reshape(2, -1, depth, height, width))
        return volume


def _stack(build: Builder, x: Value, kernel: Sequence[int], *sides: Any, groups: int) -> _Stack:
    if len(x.shape) != 4:
        build.fail(f"takes a volume (N, C, D, H, W), got {('N', *x.shape)}: put the batch and the channels first")
    stride, padding, dilation = (sides_of(build, x, value, 1) for value in sides)
    stack = _Stack(kernel, stride, padding, dilation, groups, x.shape[1:])
    if min(stack.counts) < 1:
        build.fail(f"a filter of {tuple(kernel)} with its dilation is larger than the padded volume {stack.extents}")
    return stack


@register_rule(aten.conv3d)
def conv(
    build: Builder, x: Value, weight: Any, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Value:  # fmt: skip
    """Convolution with a weight that the network computes from its parameters alone."""
    if not isinstance(weight, Tensor):
        build.fail("a convolution whose weight depends on the input cannot be converted")
    if isinstance(padding, str):
        around = same_padding(weight.shape[2:], dilation) if padding == "same" else [0] * 6
        padding = around[:3]
        if padding != around[3:]:
            build.fail("padding='same' of an even filter over three axes is lopsided; pad explicitly")
    stack = _stack(build, x, weight.shape[2:], stride, padding, dilation, groups=groups)
    y = map_conv(build, stack.of_input(build, x), stack.of_weight(weight.detach()), bias, **stack.map_sides)
    return stack.of_output(build, y)


@register_rule(QuantConv3d)
def quantized_conv(build: Builder, layer: Any, x: Value) -> Value:
    """Return what a quantized convolution makes of x: bits where both sides have them, floats elsewhere."""
    if layer.padding_mode != "zeros":
        build.fail(f"padding must have mode 'zeros', got {layer.padding_mode!r}; pad explicitly")
    if layer.input_scale:
        build.fail("input_scale (XNOR-Net's K) of a convolution over three axes cannot be converted: leave it out")
    sides = layer.stride, layer.padding, layer.dilation
    stack = _stack(build, x, layer.kernel_size, *sides, groups=layer.groups)
    given, weight, scale = operands(build, layer, x)
    bias = layer.bias if scale is None else None
    taps: Any
    if isinstance(weight, Tensor):
        taps, shape = stack.of_weight(weight), stack.of_weight(weight).shape
    else:
        taps = tuple(Term(stack.of_weight(t.bits), t.signed, t.multipliers, t.scale) for t in weight)
        shape = taps[0].bits.shape[1:]
    pad = float(layer._pad())
    if isinstance(given, Levels):
        operand = _stacked_levels(build, stack, given, pad)
    else:
        operand = _padded(build, stack, given, pad)
    conv, out = build.conv_sides(operand, shape, **stack.map_sides)
    if isinstance(operand, Levels):
        level = round(pad / float(operand.planes.parts[0].scale)) if pad else 0
        y = binary_layer(build, operand, taps, bias, conv, out, pad_level=level)
    else:
        y = float_layer(operand, taps, bias, conv, out, pad)
    y = stack.of_output(build, y)
    return y if scale is None else rescaled(build, y, scale, layer.bias)


def _padded(build: Builder, stack: _Stack, x: Value, pad: float) -> Value:
    """Return the stacked map of floats with one number outside the volume."""
    y = stack.of_input(build, x)
    if not pad or not stack.pads:
        return y
    ones = torch.zeros(1, *y.shape)
    for t in range(stack.kernel[0]):
        there = stack._tap(t)(torch.ones(1, *x.shape))
        ones[:, t * x.shape[0] : (t + 1) * x.shape[0]] = there
    if stack.groups > 1:
        ones = ones.reshape(1, stack.kernel[0], stack.groups, -1, *ones.shape[2:]).transpose(1, 2).reshape(ones.shape)
    return build.affine(y, shift=(1 - ones) * pad)


def _stacked_levels(build: Builder, stack: _Stack, given: Levels, pad: float) -> Value:
    """Return the levels of the stacked map; floats where what lies outside is no level that planes can write."""
    (x,) = given.inputs
    parts = given.planes.parts
    if given.uniform:
        outside = float(given.quantizer(torch.zeros(1, 1)))
        if not stack.pads or (outside == 0 and pad == 0):
            stacked = stack.of_input(build, x)
            return replace(given, shape=stacked.shape, inputs=(stacked,), source="", owner=build.place)
    floats = _padded(build, stack, Unpacked(given.shape, (given,)), pad)
    if len(parts) == 1 and parts[0].zero_points is None and parts[0].scale.numel() == 1:
        # The values, and the one outside, are levels of their own: signs in zeros are ternary.
        numbers = {float(level * parts[0].scale) for level in parts[0].possible_levels()} | {pad}
        values = torch.tensor(sorted(numbers), dtype=torch.float64)
        starts = ((values[1:] + values[:-1]) / 2).to(torch.float32)
        quantizer = quantizer_of(Staircase(values, starts))
        if quantizer is not None and torch.equal(quantizer(values.float()), values.float()):
            return levels_of(quantizer, floats, build.place, "")
    return floats
