"""Evenly spaced levels by arithmetic instead of thresholds, where they are the very levels of the thresholds.

Both rise, or both fall, with the number that they are made of. So if they agree on both sides of every threshold, they
agree everywhere. What is tried is the arithmetic of the kernels, constants and order of operations included.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from bnn_kernels import Epilogue, UniformLevels
from bnn_kernels.steps.binary import BinaryLayerFields
from bnn_kernels.steps.elementwise import Elementwise
from torch import Tensor

from bnn.converter.graph.values import Affine, Bend, BinaryLayer, Channelwise
from bnn.converter.levels.table import FEWEST_SPACED, LARGEST_FLOAT
from bnn.converter.packing.epilogue import EpilogueForm, fit, single
from bnn.converter.packing.stretch import Stretch, Thresholds


@dataclass(frozen=True, eq=False)
class Rounding:
    """What makes levels of a value: the form of what lies between, the levels, and both as a step's fields."""

    form: EpilogueForm
    levels: UniformLevels
    fields: Elementwise.Fields


def apart(rounding: Rounding) -> dict[str, Any] | None:
    """Return the fields of a step that make these levels beside floats that others read; None if it cannot.

    Between a float and its levels is room for a norm, and for a clamp that leaves every level as it is.
    """
    form, levels = rounding.form, rounding.levels
    others = (form.scale, form.shift, form.residual, form.pre, form.slope, form.post)
    if any(part is not None for part in others):
        return None
    ends = levels.codes(np.array([-np.inf, np.inf], np.float32))
    if not np.array_equal(levels.codes(np.array([form.low, form.high], np.float32)), ends):
        return None
    norm = {"level_scale": single(form.norm_scale), "level_shift": single(form.norm_shift)}
    return {"levels": levels.attribute(), **norm}


def joined_shift(shift: np.ndarray | None, form: EpilogueForm) -> np.ndarray | None:
    """Return a layer's bias, scaled and shifted as a pass behind it does it."""
    if form.scale is not None and shift is not None:
        shift = shift * form.scale
    if form.shift is not None:
        shift = form.shift if shift is None else shift + form.shift
    return shift


def binary_layer_fields(layer: BinaryLayer, form: EpilogueForm) -> BinaryLayerFields:
    """Return a binary layer whose sums become floats: its own scales and bias joined with those of a pass behind it."""
    scales = tuple(
        (exact if form.scale is None else exact * form.scale).astype(np.float32)
        for exact in (scale.detach().numpy() for scale in layer.scales)
    )
    shift = None if layer.bias is None else layer.bias.detach().numpy()
    return replace(layer.fields, scales=scales, shift=single(joined_shift(shift, form)))


def rounding_on_floats(stretch: Stretch) -> Rounding | None:
    """Return the arithmetic that makes a stretch's levels of floats, None if none does."""
    rounding = _candidate(stretch)
    if rounding is None:
        return None
    t = torch.from_numpy(stretch.on_floats.t).clamp(-LARGEST_FLOAT, LARGEST_FLOAT)
    ends = torch.tensor([[-LARGEST_FLOAT], [LARGEST_FLOAT]]).expand(2, stretch.channels)
    x = torch.cat([t, torch.nextafter(t, torch.tensor(-torch.inf)).clamp(min=-LARGEST_FLOAT), ends])
    return rounding if _agrees(rounding, x, stretch, stretch.level(x)) else None


def rounding_on_integers(stretch: Stretch, found: Thresholds, layer: BinaryLayer) -> Rounding | None:
    """Return the arithmetic that makes a stretch's levels of a layer's sums, None if none does.

    found: their thresholds.
    """
    rounding = _candidate(stretch)
    if rounding is None or len(layer.scales) > 1 or layer.constant is not None:
        return None
    own = binary_layer_fields(layer, rounding.form)
    fields = replace(rounding.fields, scale=own.scales[0], shift=own.shift, exact=True)
    rounding = replace(rounding, fields=fields)
    t = torch.from_numpy(found.t).to(torch.int64)
    ends = torch.tensor([[-layer.largest], [layer.largest]]).expand(2, stretch.channels)
    sums = torch.cat([t, t - 1, ends]).clamp(-layer.largest, layer.largest)
    expected = stretch.level(layer.output(sums))
    return rounding if _agrees(rounding, sums.to(torch.int32), stretch, expected) else None


def _candidate(stretch: Stretch) -> Rounding | None:
    table, spacing = stretch.table, stretch.levels.spacing
    if spacing is None or table.signed or len(table.levels) < FEWEST_SPACED:
        return None
    parts = [value for value in stretch.path if isinstance(value, Channelwise)]
    if any(isinstance(part.form, Affine | Bend) and part.shape[0] != stretch.channels for part in parts):
        return None  # behind a flattened map
    form = fit([(part, None) for part in parts]) if parts else EpilogueForm()
    try:
        levels = UniformLevels(
            spacing.factor, spacing.divides, spacing.low, spacing.high, len(table.multipliers), spacing.zero
        )
    except (TypeError, ValueError):
        return None
    if form is None or levels.multipliers != table.multipliers:
        return None
    affine = Elementwise.Fields(channels=stretch.channels, scale=single(form.scale), shift=single(form.shift))
    return Rounding(form, levels, replace(form.of(affine), keep=False, levels=levels.attribute()))


def _agrees(rounding: Rounding, x: Tensor, stretch: Stretch, expected: Tensor) -> bool:
    """Whether a rounding makes these levels of x (T, C)."""
    tensors = rounding.fields.tensors()
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        return False
    form, table = rounding.form, stretch.table
    parts: dict[str, Any] = {**tensors, "low": form.low, "high": form.high}
    epilogue = Epilogue(stretch.channels, **parts)
    with np.errstate(over="ignore", invalid="ignore"):
        v, _ = epilogue.apply_reference(x.numpy()[None, None])
    assert v is not None
    if np.isnan(v).any():
        return False
    return np.array_equal(rounding.levels.codes(v)[0, 0], table.codes[table.rank(expected).numpy()])
