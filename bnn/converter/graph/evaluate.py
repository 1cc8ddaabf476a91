"""What the values of the graph are in numbers, computed in the plainest way: what a conversion is checked against.

Nothing of the plan takes part: no thresholds, no fused passes, no bits. Layers are convolutions of floats by PyTorch.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from bnn_kernels.steps.base import STEPS
from bnn_kernels.steps.binary import BinaryConv
from bnn_kernels.steps.conv_geometry import ConvFields
from bnn_kernels.steps.elementwise import Activation
from bnn_kernels.steps.fields import StepFields
from bnn_kernels.steps.float import FloatConv
from bnn_kernels.steps.pool import MaxPool
from torch import Tensor

from bnn.converter.graph.values import (
    Add,
    Affine,
    Bend,
    BinaryLayer,
    Channelwise,
    Clamp,
    Combine,
    Concat,
    Curve,
    FloatLayer,
    LevelProduct,
    Levels,
    Moved,
    OwnStep,
    Pool,
    Unpacked,
    Value,
)
from bnn.converter.levels.table import values_by_channel, values_of_codes
from bnn.planes import Term, by_channel

# PyTorch's own, whatever stands in their place when a network is converted.
_CONV: Callable[..., Tensor] = F.conv2d
_LINEAR: Callable[..., Tensor] = F.linear
_MAX_POOL: Callable[..., Tensor] = F.max_pool2d
_AVG_POOL: Callable[..., Tensor] = F.avg_pool2d

_COMBINATIONS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "multiply": torch.mul, "divide": torch.div, "maximum": torch.maximum, "minimum": torch.minimum,
}  # fmt: skip


class Evaluation:
    """Computes values from values that are known.

    known: float tensors (N, *shape). largest: of the known numbers that were read. quantized: whether levels were made
    of computed numbers, of which some may lie within rounding of a threshold.
    """

    def __init__(self, known: dict[Value, Tensor]):
        self.known = known
        self.found: dict[Value, Tensor] = {}
        self.largest = 0.0
        self.quantized = False

    def __call__(self, value: Value) -> Tensor:
        """Return the numbers of a value, float (N, *shape)."""
        if value in self.known:
            x = self.known[value]
            if x.numel():
                self.largest = max(self.largest, float(x.abs().max()))
            return x
        if value not in self.found:
            self.found[value] = self._compute(value).to(torch.float32).reshape(-1, *value.shape)
        return self.found[value]

    def _compute(self, value: Value) -> Tensor:
        if isinstance(value, Moved):
            return self._moved(value)
        if isinstance(value, Unpacked):
            return self._unpacked(value.inputs[0])
        if isinstance(value, BinaryLayer):
            return self._binary_layer(value)
        if isinstance(value, OwnStep):
            return self._step(value, value.fields)
        if isinstance(value, LevelProduct):
            return torch.einsum("nkhr,nkhc->nchr", *map(self._without_offset, value.inputs))
        given = [self(operand) for operand in value.inputs]
        x = given[0]
        if isinstance(value, FloatLayer):
            fields = value.fields
            weight = _sum_of(value.terms) if fields.weight is None else torch.from_numpy(fields.weight)
            bias = None if fields.bias is None else torch.from_numpy(fields.bias)
            return _product(x, weight, bias, fields, fields.pad_value if isinstance(fields, FloatConv.Fields) else 0.0)
        if isinstance(value, Channelwise):
            if isinstance(value.form, Curve):
                return self._step(value, Activation.Fields(kind=value.form.kind))
            return _piecewise(x, value.form)
        if isinstance(value, Pool):
            window = value.fields
            sides = window.kernel, window.stride, window.padding
            if isinstance(window, MaxPool.Fields):
                return _MAX_POOL(_as_map(x), *sides, window.dilation or 1)
            # Sums of large windows in float32, one number after the other, are off by more than rounding.
            return _AVG_POOL(_as_map(x).to(torch.float64), *sides).to(x.dtype)
        if isinstance(value, Add):
            return given[0] + given[1]
        if isinstance(value, Combine):
            return _COMBINATIONS[value.kind](*given)
        if isinstance(value, Concat):
            return torch.cat(given, 1)
        raise AssertionError(f"no numbers for {value}")

    def _moved(self, value: Moved) -> Tensor:
        flat = self(value.inputs[0]).flatten(1)
        places = torch.from_numpy(np.ascontiguousarray(value.index)).reshape(-1)
        if bool((places == 0).any()):
            return F.pad(flat, (1, 0)).index_select(1, places)
        return flat.index_select(1, places - 1)

    def _unpacked(self, levels: Value) -> Tensor:
        assert isinstance(levels, Levels)
        (operand,) = levels.inputs
        self.quantized = self.quantized or operand not in self.known
        x = self(operand)
        places = x.movedim(1, -1)
        made = levels.levels(places.reshape(-1, x.shape[1])).reshape(places.shape).movedim(-1, 1)
        table, parts = levels.table, levels.planes.parts
        if parts[0].zero_points is not None:
            values = torch.from_numpy(values_by_channel(levels.planes)).expand(x.shape[1], -1)
            channels = torch.arange(x.shape[1]).reshape(-1, *[1] * (x.ndim - 2))
            return values[channels, made.long()]
        if len(parts) == 1:
            return (made * parts[0].scale).to(torch.float32)
        return torch.from_numpy(values_of_codes(levels.planes)[table.codes])[table.rank(made)]

    def _without_offset(self, levels: Value) -> Tensor:
        """Return the values of levels less what is added to all of them."""
        assert isinstance(levels, Levels)
        made, offset = self._unpacked(levels), levels.planes.offset
        return made if offset is None else made - offset

    def _binary_layer(self, layer: BinaryLayer) -> Tensor:
        levels = layer.inputs[0]
        part = levels.planes.parts[0] if isinstance(levels, Levels) else None
        assert part is not None
        fields = layer.fields
        pad = fields.pad_level * float(part.scale) if isinstance(fields, BinaryConv.Fields) else 0.0
        y = _product(self._unpacked(levels), _sum_of(layer.terms), None, fields, pad)
        if fields.input_scale:
            y = y * _input_scale(self(layer.inputs[1]), layer)
        return y if layer.bias is None else y + by_channel(layer.bias, y.ndim - 1)

    def _step(self, value: Value, fields: StepFields) -> Tensor:
        """Run the kernels' own step on its operands, maps channels last."""
        given = [self(operand) for operand in value.inputs]
        maps = [_as_map(x) if x.ndim > 2 else x for x in given]
        arrays = [x.movedim(1, -1).to(torch.float32).contiguous().numpy() for x in maps]
        made = torch.from_numpy(STEPS[fields.op](fields.attrs(), fields.tensors()).run(*arrays))
        return made.movedim(-1, 1)


def _as_map(x: Tensor) -> Tensor:
    """Return a map; a sequence is one of one row, the slices of a volume lie below one another."""
    if x.ndim == 5:
        return x.flatten(2, 3)
    return x[:, :, None] if x.ndim == 3 else x


def _sum_of(terms: tuple[Term, ...]) -> Tensor:
    """Return the weight that is the sum of terms."""
    parts = [term.levels(torch.float32) * by_channel(term.scale.detach(), term.bits.ndim - 1) for term in terms]
    return sum(parts[1:], parts[0]).to(torch.float32)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, fields: StepFields, pad: float) -> Tensor:
    if not isinstance(fields, ConvFields):
        return _LINEAR(x.flatten(1), weight, bias)
    weight = weight.reshape(fields.shape)
    padding: list[int] | int = fields.padding
    x = _as_map(x)
    if pad or len(fields.padding) == 4:
        (top, left), (bottom, right) = fields.padding[:2], fields.padding[-2:]
        x, padding = F.pad(x, [left, right, top, bottom], value=pad), 0
    return _CONV(x, weight, bias, fields.stride, padding, fields.dilation, fields.groups)


def _input_scale(x: Tensor, layer: BinaryLayer) -> Tensor:
    """Return XNOR-Net's K: the mean of |x| over the numbers that each filter sees, zeros outside among them."""
    sides = layer.fields
    if not isinstance(sides, ConvFields):
        return x.abs().mean(1, keepdim=True)
    filters, channels, *window = sides.shape
    box = torch.full((sides.groups, channels, *window), 1 / (channels * math.prod(window)))
    k = _CONV(_as_map(x).abs(), box, None, sides.stride, sides.padding, sides.dilation, sides.groups)
    return k.repeat_interleave(filters // sides.groups, 1)


def _piecewise(x: Tensor, form: Affine | Bend | Clamp | Curve) -> Tensor:
    def of_channels(values: np.ndarray) -> Tensor:
        return by_channel(torch.from_numpy(values), x.ndim - 1).to(x.dtype)

    if isinstance(form, Clamp):
        return x.clamp(form.low, form.high)
    if isinstance(form, Affine):
        # In one rounding, as batch norm.
        y = x.double() if form.scale is None else x * of_channels(form.scale).double()
        return (y if form.shift is None else y + of_channels(form.shift)).to(x.dtype)
    assert isinstance(form, Bend)
    y = x if form.pre is None else x - of_channels(form.pre)
    y = torch.where(y < 0, y * of_channels(form.slope), y)
    return y if form.post is None else y + of_channels(form.post)
