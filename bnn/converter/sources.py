"""How a step names levels that PyTorch computes as values alone: the place, and what each level stands for there."""

from collections.abc import Callable

import numpy as np

from bnn.converter.levels.table import LevelTable, values_of_codes
from bnn.planes import Planes

_IN_STEPS = " in steps of "
_IN_VALUES = " in values "

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


def place_of(source: str) -> str:
    """Return the place in a source."""
    return source.partition(_IN_STEPS)[0].partition(_IN_VALUES)[0]


def reader(source: str) -> Reader | None:
    """Return the function from values to int32 levels of the same shape, None if the source tells of no values."""
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
