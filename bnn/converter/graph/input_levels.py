"""From a quantizer of inputs to the levels that a packed network has in its place."""

from collections.abc import Callable

import torch
from torch import Tensor

from bnn.converter.errors import ConversionError
from bnn.converter.graph.values import Levels, Value
from bnn.converter.levels.planes_check import check_same
from bnn.converter.levels.search import float_thresholds
from bnn.converter.levels.table import LARGEST_FLOAT, LevelTable, as_one_term, check_input, monotone_table, probes
from bnn.planes import PlanesError
from bnn.quantizers.base import Quantizer


def levels_of(quantizer: Quantizer, x: Value, place: str, source: str, channels_last: bool = False) -> Levels:
    """Return the levels of a value; ConversionError if they are no thresholds on it.

    place: for messages. source: what the report calls them. channels_last: whether the quantizer takes (..., C).
    """
    after = 0 if channels_last else len(x.shape) - 1

    def spread(y: Tensor) -> Tensor:
        return y.reshape(*y.shape, *[1] * after)

    try:
        planes = quantizer.planes(spread(torch.zeros(1, x.shape[0])))
    except (RuntimeError, PlanesError) as error:
        raise ConversionError(f"{place}: {quantizer} does not take {x.shape[0]} channels: {error}") from None
    check_input(quantizer, planes, place)

    def levels(y: Tensor) -> Tensor:
        return as_one_term(quantizer.planes(spread(y))).levels().reshape(y.shape)

    uniform = not quantizer.channelwise and _takes(quantizer, spread(torch.zeros(1, x.shape[0] + 1)))
    channels = 1 if uniform else x.shape[0]  # those that are not asked are alike
    table = monotone_table(quantizer, planes, levels, channels, place)
    at = edges(levels, table, channels)
    check_same(quantizer, spread(at), place, " around the thresholds between its levels")
    spacing = None if quantizer.channelwise else quantizer.uniform
    return Levels(
        x.shape, (x,), source, levels=levels, uniform=uniform, planes=planes, table=table, spacing=spacing,
        quantizer=quantizer,
    )  # fmt: skip


def _takes(quantizer: Quantizer, x: Tensor) -> bool:
    """Whether a quantizer quantizes any number of channels: it holds nothing for each of them."""
    try:
        return quantizer.planes(x).terms[0].bits.shape[1:] == x.shape
    except (RuntimeError, ValueError):
        return False


def edges(levels: Callable[[Tensor], Tensor], table: LevelTable, channels: int) -> Tensor:
    """Return float32 (T, channels): where levels begin, the numbers just below, both zeros, and numbers between.

    levels: maps floats (T, channels) to integer levels. What rises and agrees with them here does so everywhere.
    """
    t, _ = float_thresholds(levels, channels, LARGEST_FLOAT, table)
    begins = torch.from_numpy(t).clamp(-LARGEST_FLOAT, LARGEST_FLOAT)
    below = torch.nextafter(begins, torch.tensor(-torch.inf))
    others = torch.cat([probes(), torch.tensor([0.0, -0.0])])
    return torch.cat([begins, below, others[:, None].expand(-1, channels)])
