"""How a step names what PyTorch computes in another form: levels as values, tensors whose batch is another axis."""

from collections.abc import Callable

import numpy as np

from bnn.converter.levels.table import LevelTable, values_of_codes
from bnn.planes import Planes

_IN_STEPS = " in steps of "
_IN_VALUES = " in values "
_ON_AXIS = " with its batch on axis "

Reader = Callable[[np.ndarray], np.ndarray]


def levels_at(place: str, planes: Planes, table: LevelTable) -> str:
    """Return the source of levels of which a place computes the values; "" if several levels have one value."""
    if planes.terms[0].zero_points is not None:
        return ""
    if len(planes.parts) == 1:
        return f"{place}{_IN_STEPS}{float(planes.terms[0].scale)!r}"
    values = values_of_codes(planes)[table.codes]
    if not (np.diff(values) > 0).all():
        return ""
    pairs = zip(table.levels.tolist(), values.tolist(), strict=True)
    return f"{place}{_IN_VALUES}{' '.join(f'{level}:{value!r}' for level, value in pairs)}"


def batch_first(place: str, axis: int) -> str:
    """Return the source of what a place computes with its batch on another axis."""
    return f"{place}{_ON_AXIS}{axis}"


def place_of(source: str) -> str:
    """Return the place in a source."""
    return source.partition(_IN_STEPS)[0].partition(_IN_VALUES)[0].partition(_ON_AXIS)[0]


def reader(source: str) -> Reader | None:
    """Return the function from what the place computes to what the step does, None if they are the same.

    Of levels it gives int32 of the shape of the values.
    """
    _, _, axis = source.partition(_ON_AXIS)
    if axis:
        return lambda values: np.moveaxis(values, int(axis), 0)
    _, steps, scale = source.partition(_IN_STEPS)
    if steps:
        return lambda values: np.rint(values / np.float32(scale)).astype(np.int32)
    _, _, pairs = source.partition(_IN_VALUES)
    if not pairs:
        return None
    parts = [pair.split(":") for pair in pairs.split(" ")]
    levels = np.array([level for level, _ in parts]).astype(np.int32)
    values = np.array([value for _, value in parts]).astype(np.float64)
    between = (values[1:] + values[:-1]) / 2
    return lambda found: levels[np.searchsorted(between, found)]
