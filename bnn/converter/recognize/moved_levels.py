"""Levels through what only moves them: signs before a view, a permutation or max pooling are signs behind it."""

from dataclasses import replace

import torch
from bnn_kernels.steps.pool import MaxPool

from bnn.converter.graph.builder import Builder
from bnn.converter.graph.values import Concat, Levels, Moved, Pool, Unpacked, Value


def bits_of(build: Builder, x: Value) -> Value:
    """Return a value as Unpacked levels, if it is those of another with their numbers elsewhere; else as it is."""
    if isinstance(x, Unpacked):
        return x
    found = _before(x)
    if found is None:
        return x
    floats, levels = found
    return Unpacked(x.shape, (replace(levels, shape=x.shape, inputs=(floats,), source="", owner=build.place),))


def _before(x: Value) -> tuple[Value, Levels] | None:
    """Return the floats and levels like those, alike for all channels, of a value; None if there are none."""
    if isinstance(x, Unpacked):
        (levels,) = x.inputs
        return (levels.inputs[0], levels) if isinstance(levels, Levels) and levels.uniform else None
    parts = [_before(part) for part in x.inputs] if isinstance(x, Moved | Pool | Concat) else []
    known = [part for part in parts if part is not None]
    if not parts or len(known) < len(parts):
        return None
    floats, found = tuple(part for part, _ in known), known[0][1]
    if any(levels.quantizer is not found.quantizer for _, levels in known):
        return None
    if isinstance(x, Moved):
        if bool((x.index == 0).any()) and float(found.quantizer(torch.zeros(1, 1))) != 0:
            return None  # padded with a number that is none of the values
        return Moved(x.shape, floats, index=x.index), found
    if isinstance(x, Pool):
        return (Pool(x.shape, floats, fields=x.fields), found) if isinstance(x.fields, MaxPool.Fields) else None
    return Concat(x.shape, floats), found
