"""Rules of transposed convolutions: each phase of the output is a convolution of its own, and the phases interleave.

With stride s, an output row o = s q + r sums input rows i = (o + padding - dilation k) / s over those k that make it an
integer. For one remainder r these k do not depend on q, and they lie evenly: an ordinary convolution of stride 1 with a
part of the filter, turned round. No zero is multiplied, and padding adds none to the sums, so bits stay exact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnn.converter.graph.builder import Builder
from bnn.converter.graph.values import Levels, Value
from bnn.converter.registry import register_rule
from bnn.converter.rules.quantized import Weight, binary_layer, float_layer, operands, rescaled
from bnn.layers import QuantConvTranspose1d, QuantConvTranspose2d
from bnn.planes import Term


@dataclass(frozen=True)
class _Phase:
    """One remainder of output rows (or columns): the taps, in the convolution's order, and where it reads.

    start: the first position of the padded convolution's output that counts. count: how many do.
    """

    taps: list[int]
    dilation: int
    padding: int
    start: int
    count: int


def _phase(r: int, extent: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> _Phase:
    # Input row of tap k at q = 0; falls with k, so the taps are turned round.
    rows = {
        k: (r + padding - dilation * k) // stride for k in range(kernel) if (r + padding - dilation * k) % stride == 0
    }
    taps = sorted(rows, reverse=True)
    count = -(-(out - r) // stride)
    if not taps or count < 1:
        return _Phase([], 1, 0, 0, max(count, 0))
    first, last = rows[taps[0]], rows[taps[-1]]
    spread = (last - first) // (len(taps) - 1) if len(taps) > 1 else 1
    around = max(0, -first, count - 1 + last - (extent - 1))
    return _Phase(taps, spread, around, first + around, count)


def _transposed(
    build: Builder, x: Value, weight: Weight, bias: Tensor | None, groups: int, stride: Any, padding: Any,
    dilation: Any, output_padding: Any,
) -> Value:  # fmt: skip
    """Return the interleaved phases. x: floats, or Levels. weight: filters first, (O, C/groups, ...)."""
    filters = weight if isinstance(weight, Tensor) else weight[0].bits[0]
    if filters.ndim != len(x.shape) + 1:
        build.fail(f"a transposed convolution of {filters.ndim - 2} axes does not take {('N', *x.shape)}")
    channels = len(filters)
    extents = x.shape[1:] if len(x.shape) == 3 else (1, x.shape[-1])
    kernel = tuple(filters.shape[2:])
    geometry = [build.sides(x, *pair) for pair in ((kernel, 1), (stride, 1), (padding, 0), (dilation, 1))]
    extra = build.sides(x, output_padding, 0)
    axes = []
    outs = []
    for axis, extent in enumerate(extents):
        k, s, p, d = (side[axis] for side in geometry)
        out = (extent - 1) * s - 2 * p + d * (k - 1) + extra[axis] + 1
        phases = [_phase(r, extent, out, k, s, p, d) for r in range(s)]
        if any(not phase.taps for phase in phases):
            build.fail(f"a transposed convolution whose stride {s} leaves rows without a tap of its filter of {k}")
        axes.append(phases)
        outs.append(out)
    tall, wide = (max(phase.count for phase in phases) for phases in axes)
    parts = []
    for vertical in axes[0]:
        for across in axes[1]:
            both = vertical, across
            made = _convolve(build, x, weight, bias, groups, both)
            parts.append(build.move(made, _cut(vertical, across, tall, wide, len(x.shape) == 2)))
    if len(parts) == 1:
        return parts[0]
    sy, sx = len(axes[0]), len(axes[1])
    size = (channels, tall * sy, wide * sx) if len(x.shape) == 3 else (channels, wide * sx)

    def interleave(p: Tensor) -> Tensor:
        return p.reshape(2, sy, sx, channels, tall, wide).permute(0, 3, 4, 1, 5, 2).reshape(2, *size)

    y: Value = build.move(build.concat(parts), interleave)
    if [tall * sy, wide * sx] == outs:
        return y
    # Not composed with what came before: a step of its own.
    cropped: Value = build.move(y, lambda p: p[..., : outs[0], : outs[1]] if p.ndim == 4 else p[..., : outs[1]], False)
    return cropped


def _cut(vertical: _Phase, across: _Phase, tall: int, wide: int, is_sequence: bool) -> Callable[[Tensor], Tensor]:
    """Return what takes the positions that count, padded with zeros to the size of the largest phase."""
    missing = tall - vertical.count, wide - across.count

    def cut(p: Tensor) -> Tensor:
        p = p[..., across.start : across.start + across.count]
        if is_sequence:
            return F.pad(p, (0, missing[1]))
        p = p[:, :, vertical.start : vertical.start + vertical.count]
        return F.pad(p, (0, missing[1], 0, missing[0]))

    return cut


def _convolve(
    build: Builder, x: Value, weight: Weight, bias: Tensor | None, groups: int, phases: tuple[_Phase, _Phase]
) -> Value:
    """Return the convolution of one phase of rows and one of columns."""
    used = phases if len(x.shape) == 3 else phases[1:]
    padding, dilation = ([getattr(phase, name) for phase in used] for name in ("padding", "dilation"))

    def part(filters: Tensor) -> Tensor:
        for axis, phase in enumerate(reversed(used)):
            filters = filters.index_select(-1 - axis, torch.tensor(phase.taps))
        return filters

    if isinstance(weight, Tensor):
        floats = part(weight)
        taps: Weight = floats
        sides = tuple(floats.shape)
    else:
        taps = tuple(Term(part(term.bits), term.signed, term.multipliers, term.scale) for term in weight)
        sides = tuple(taps[0].bits.shape[1:])
    conv, shape = build.conv_sides(x, sides, [1] * len(used), padding, dilation, groups)
    if isinstance(x, Levels) and isinstance(taps, tuple):
        return binary_layer(build, x, taps, bias, conv, shape)
    return float_layer(x, taps, bias, conv, shape)


def _filters(weight: Tensor, groups: int) -> Tensor:
    """Return filters (O, C/groups, ...) of a transposed convolution's weight (C, O/groups, ...)."""
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    return grouped.transpose(1, 2).reshape(-1, grouped.shape[1], *weight.shape[2:])


@register_rule(torch.ops.aten.conv_transpose1d, torch.ops.aten.conv_transpose2d)
def conv_transpose(
    build: Builder, x: Value, weight: Any, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Value:  # fmt: skip
    """Transposed convolution with a weight that the network computes from its parameters alone."""
    if not isinstance(weight, Tensor):
        build.fail("a convolution whose weight depends on the input cannot be converted")
    weight = _filters(weight.detach(), groups)
    return _transposed(build, x, weight, bias, groups, stride, padding, dilation, output_padding)


@register_rule(QuantConvTranspose1d, QuantConvTranspose2d)
def quantized_conv_transpose(build: Builder, layer: Any, x: Value, output_size: Any = None) -> Value:
    """Transposed convolution of bits where both sides have them, of floats elsewhere."""
    if output_size is not None:
        build.fail("a transposed convolution that is told its output's size cannot be converted; use output_padding")
    given, weight, scale = operands(build, layer, x)
    bias, m = (layer.bias if scale is None else None), layer
    y = _transposed(build, given, weight, bias, m.groups, m.stride, m.padding, m.dilation, m.output_padding)
    return y if scale is None else rescaled(build, y, scale, layer.bias)
