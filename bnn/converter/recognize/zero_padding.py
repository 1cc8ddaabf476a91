"""Zeros around a map, which a convolution takes as its own padding: the map need not be copied.

Networks that came from TensorFlow pad each strided convolution so, with one row and column more behind than before.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from bnn.converter.graph.values import Levels, Moved, Value


class Padded(NamedTuple):
    """A map with zeros (top, left, bottom, right) around it, or a sequence with zeros (left, right)."""

    x: Value
    around: list[int]


# Beyond this a convolution's step refuses its padding, see `bnn_kernels.steps.conv_geometry`.
MOST_AROUND = 16


def zeros_around(x: Value) -> Padded | None:
    """Return the map that a value is with zeros around it; None if it is no such thing."""
    if not isinstance(x, Moved) or len(x.shape) not in (2, 3):
        return None
    (inner,) = x.inputs
    if len(inner.shape) != len(x.shape) or inner.shape[0] != x.shape[0]:
        return None
    there = x.index[0] > 0
    if there.all() or not there.any():
        return None
    before = [int(axis.min()) for axis in np.nonzero(there)]
    behind = [whole - extent - p for whole, extent, p in zip(x.shape[1:], inner.shape[1:], before, strict=True)]
    around = [*before, *behind]
    if not all(0 <= p <= MOST_AROUND for p in around):
        return None
    places = np.arange(1, 1 + int(np.prod(inner.shape))).reshape(inner.shape)
    beside = [(0, 0), *zip(before, behind, strict=True)]
    return Padded(inner, around) if np.array_equal(np.pad(places, beside), x.index) else None


def level_of_zero(levels: Levels) -> int | None:
    """Return the level that a quantizer gives to the zeros around its input, 0 if they add nothing.

    None if they have no level of their own in a step: it is not the same for all channels, or a sum of several terms.
    """
    if not levels.uniform:
        return None
    value = float(levels.quantizer(torch.zeros(1, 1)))
    if value == 0:
        return 0
    (part, *others) = levels.planes.parts
    level = value / float(part.scale) if part.scale.numel() == 1 else math.nan
    return round(level) if not others and part.zero_points is None and level == round(level) else None
