"""Levels through what only moves them: signs before a view, a permutation or max pooling are signs behind it."""

import torch
from bnn_kernels.steps.pool import MaxPool

from bnn.converter.graph.builder import Builder
from bnn.converter.graph.values import Concat, Levels, Moved, Pool, Unpacked, Value
from bnn.quantizers.base import Quantizer


def bits_of(build: Builder, x: Value) -> Value:
    """Return a value as Unpacked levels, if it is those of another with their numbers elsewhere; else as it is."""
    found = _before(x)
    return x if found is None or isinstance(x, Unpacked) else build.quantize(*found)


def _before(x: Value) -> tuple[Value, Quantizer] | None:
    """Return the floats and the quantizer, alike for all channels, of a value; None if there are none."""
    if isinstance(x, Unpacked):
        (levels,) = x.inputs
        if not isinstance(levels, Levels) or not levels.uniform:
            return None
        return levels.inputs[0], levels.quantizer
    parts = [_before(part) for part in x.inputs] if isinstance(x, Moved | Pool | Concat) else []
    if not parts or any(part is None or part[1] is not parts[0][1] for part in parts if parts[0] is not None):
        return None
    floats = tuple(part[0] for part in parts if part is not None)
    if len(floats) != len(parts) or parts[0] is None:
        return None
    quantizer = parts[0][1]
    if isinstance(x, Moved):
        if bool((x.index == 0).any()) and float(quantizer(torch.zeros(1, 1))) != 0:
            return None  # padded with a number that is none of the values
        return Moved(x.shape, floats, index=x.index), quantizer
    if isinstance(x, Pool):
        return (Pool(x.shape, floats, fields=x.fields), quantizer) if isinstance(x.fields, MaxPool.Fields) else None
    return Concat(x.shape, floats), quantizer
