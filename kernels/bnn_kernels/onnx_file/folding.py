"""Integer thresholds as what they came from: a scale, a shift and a rounding, where these give the same levels."""

import math
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.bits.planes import level_of_code
from bnn_kernels.bits.sum_range import largest_level
from bnn_kernels.bits.thresholds import Thresholds
from bnn_kernels.bits.uniform import UniformLevels
from bnn_kernels.model.packed_model import PackedModel
from bnn_kernels.onnx_file.graph import bits_between
from bnn_kernels.steps.weights import read_terms

# Of fewer levels one beside the right one is too far: their layers keep exact sums and comparisons.
FEWEST_BITS = 5


class Folded(NamedTuple):
    """level = round(sum * scale + shift), clipped to the range of `levels`; scale and shift float64 (C,).

    bounds: the lowest and the highest level of each channel, times the step between levels, float32 (2, C), where some
    channel does not get all. turned: bool (C,), of a maximum that may follow before the levels are made: where it is
    the minimum of levels; None if none may.
    """

    scale: np.ndarray
    shift: np.ndarray
    levels: UniformLevels
    bounds: np.ndarray | None = None
    turned: np.ndarray | None = None


def fit(thresholds: Thresholds, largest: int) -> Folded | None:
    """Return the rounding that gives the levels of thresholds for all sums up to a magnitude, None if there is none.

    Some sums beside a threshold may get the level beside their own: the thresholds were those of float32.
    """
    table = level_of_code(thresholds.multipliers, thresholds.signed)[thresholds.codes]
    count = len(table)
    low, high = int(table[0]), int(table[-1])
    bits = bits_between(low, high)
    if bits is None or bits < FEWEST_BITS or not np.array_equal(table, low + np.arange(count)):
        return None
    t = thresholds.t.astype(np.int64)
    # A falling channel counts its sums with the other sign: sum < t is -sum >= 1 - t.
    rising = np.sort(np.where(thresholds.flip, 1 - t, t), axis=0)
    inside = (rising > -largest) & (rising <= largest)
    scale, shift = _lines(rising, inside, low + np.arange(1, count) - 0.5, largest)
    tried = np.concatenate([rising, rising - 1, np.full((2, t.shape[1]), [[-largest], [largest]])])
    tried = np.clip(tried, -largest, largest)
    right = low + sum((tried >= row).astype(np.int64) for row in rising)
    made = Folded(np.where(thresholds.flip, -scale, scale), shift, UniformLevels(1.0, True, low, high, bits))
    found = np.clip(np.rint(tried * scale + shift), low, high)
    if np.abs(found - right).max() <= 1:
        return _with_whole_shifts(made, largest)
    # Levels that no sum of a channel gets, such as those below 0 after a ReLU.
    bounds = np.stack([low + (rising <= -largest).sum(0), high - (rising > largest).sum(0)])
    near = np.abs(np.clip(found, *bounds) - right).max() <= 1
    return _with_whole_shifts(made._replace(bounds=bounds.astype(np.float32)), largest) if near else None


def _with_whole_shifts(folded: Folded, largest: int) -> Folded:
    """Return the same levels from shifts that are whole numbers of sums, in channels where there are such.

    A runtime that adds the shift as an integer then gives these levels, not those beside them. The slope is varied
    by what the thresholds leave free, until a whole number fits between all of them.
    """
    step, levels = folded.levels.factor, folded.levels
    used = folded.scale != 0
    scale, shift = np.where(used, np.abs(folded.scale), 1) / step, folded.shift / step
    middles = np.arange(levels.low + 1, levels.high + 1)[:, None] - 0.5
    t = np.ceil((middles - shift) / scale)
    inside = (t > -largest) & (t <= largest)
    best, slope, whole = np.zeros(len(scale)), 1 / scale, np.zeros(len(scale))
    used &= inside.any(0)
    for move in np.linspace(-1, 1, 81):
        p = 1 / scale + move / np.maximum(inside.sum(0) - 1, 1)
        rest = t - middles * p
        least = np.where(used, np.where(inside, rest, np.inf).min(0), 0)
        most = np.where(used, np.where(inside, rest, -np.inf).max(0), 0)
        c = np.floor(least)
        margin = np.where(used & (p > 0), np.minimum(least - c, c - (most - 1)), 0)
        better = margin > best
        best, slope, whole = np.where(better, margin, best), np.where(better, p, slope), np.where(better, c, whole)
    # Less than this floats may round away.
    found = best > 1e-3
    sign = np.sign(folded.scale)
    return folded._replace(
        scale=np.where(found, sign * step / slope, folded.scale),
        shift=np.where(found, -whole / slope * step, folded.shift),
    )


def _lines(t: np.ndarray, inside: np.ndarray, middles: np.ndarray, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (scale, shift), float64 (C,), so that t * scale + shift is just above the middles between levels.

    t: rising thresholds (L - 1, C), of which those inside count. A line middle * p + c must lie within t - 1 .. t; of
    lines with a slope p the best c leaves a gap that is convex in p, so the best p is found by thirds.
    """
    middles = middles[:, None]
    count = inside.sum(0)

    def ends(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rest = t - middles * p
        return np.where(inside, rest, np.inf).min(0), np.where(inside, rest, -np.inf).max(0)

    first = np.where(count > 0, inside.argmax(0), 0)
    last = len(t) - 1 - np.where(count > 0, inside[::-1].argmax(0), 0)
    channels = np.arange(t.shape[1])
    span = np.maximum(last - first, 1)
    rise = t[last, channels] - t[first, channels]
    low, high = np.maximum((rise - 1) / span, 1e-9), (rise + 1) / span
    for _ in range(100):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        gap_left, gap_right = (most - least for least, most in (ends(left), ends(right)))
        # Without thresholds there is no gap; the line is then made below.
        lower = np.nan_to_num(gap_left) < np.nan_to_num(gap_right)
        low, high = np.where(lower, low, left), np.where(lower, right, high)
    p = (low + high) / 2
    # Of one threshold, or none, the step is so long that no sum reaches another.
    p = np.where(count < 2, 2.5 * (largest + 1), p)
    least, most = ends(p)
    with np.errstate(invalid="ignore"):
        shift = -(least + most - 1) / 2 / p
    always = middles[0] - 0.5 + (t <= -largest).sum(0)
    return 1 / p, np.where(count == 0, always, shift)


def largest_sum_of(step: Any, given: Any) -> int:
    """Return a bound of the magnitude of a layer's integer sums."""
    weight = max(largest_level(*term) for term in read_terms(step.fields))
    level = step.given.largest_level(given) if step.zero is None else step.zero.largest(given.multipliers, given.signed)
    return math.prod(step.shape[1:]) * weight * max(level, abs(step.pad_level))


def rounding_after(model: PackedModel, index: int) -> Folded | None:
    """Return the rounding that stands for what follows a layer's integer sums.

    These are thresholds or an epilogue, its own or those of a later step; pooling may lie between.
    """
    placed = model.placed[index]
    step: Any = placed.step
    if len(step.layers) > 1 or step.given.several:
        return None
    largest = largest_sum_of(step, placed.given[0])
    if step.output == "float":
        if not step.fused:
            return None
        if step.finish.levels is not None:
            return of_epilogue(step, step.scales[0], largest)
        return _of_two(model, index, largest)
    if step.output == "bits":
        return fit(step.thresholds, largest)
    reader = _reader(model, placed.outputs[0], "pool_int")
    if reader is None:
        return None
    if reader.op == "threshold":
        return fit(reader.thresholds, largest)
    return of_epilogue(reader, reader.tensors.get("scale"), largest) if reader.op == "elementwise" else None


def _reader(model: PackedModel, register: str, pool: str) -> Any:
    """Return the one step that reads a register, or what steps of pooling make of it; None if there are more."""
    while True:
        readers = [one for one in model.placed if register in one.inputs]
        if len(readers) != 1 or register in [name for name, _ in model.outputs]:
            return None
        if readers[0].step.op != pool:
            return readers[0].step
        register = readers[0].outputs[0]


def _affine(step: Any, given: np.ndarray | None) -> tuple[Any, Any]:
    """Return (scale, shift) of a step's epilogue, float64; given: the scale of what it reads, None for 1."""
    gain, offset = (step.tensors.get(name, np.float32(one)) for name, one in (("norm_scale", 1), ("norm_shift", 0)))
    scale = np.float64(1 if given is None else given) * np.float64(gain)
    return scale, np.float64(step.tensors.get("shift", np.float32(0))) * np.float64(gain) + np.float64(offset)


def _is_affine(step: Any) -> bool:
    """Whether an epilogue has a scale, a shift and a clamp at most."""
    f = step.fields
    others = (f.residual, f.pre, f.slope, f.post, f.bounds, f.level_scale, f.level_shift)
    return all(part is None for part in others)


def _of_two(model: PackedModel, index: int, largest: int) -> Folded | None:
    """Return the rounding of a layer's epilogue, which clamps, and of a later one, which makes levels.

    Between them a maximum of windows may lie, of numbers that the second one may multiply by a negative number.
    """
    first: Any = model.placed[index].step
    later = _reader(model, model.placed[index].outputs[0], "max_pool")
    if later is None or later.op != "elementwise" or not _makes_levels(later):
        return None
    if not (_is_affine(first) and _is_affine(later)):
        return None
    ones, levels = np.ones(first.finish.channels), later.finish.levels
    scale, shift = (part * ones for part in _affine(first, first.scales[0]))
    gain, offset = (part * ones for part in _affine(later, later.tensors.get("scale")))
    with np.errstate(invalid="ignore"):
        ends = np.stack([np.where(gain == 0, 0, end * gain) + offset for end in (first.fields.low, first.fields.high)])
    ends = np.sort(np.clip(ends, later.fields.low, later.fields.high), 0)
    ends = np.clip(ends.astype(np.float32) / np.float32(levels.factor), levels.low, levels.high)
    bounds = (np.rint(ends) * np.float32(levels.factor)).astype(np.float32)
    folded = Folded(scale * gain, shift * gain + offset, levels, bounds, gain < 0)
    return _with_whole_shifts(folded, largest)


def _makes_levels(step: Any) -> bool:
    """Whether an epilogue makes levels alone, by a division, and so many that one beside the right one is near."""
    levels = step.finish.levels
    return not step.fields.keep and levels is not None and levels.bits >= FEWEST_BITS and levels.divides


def of_epilogue(step: Any, given: np.ndarray | None, largest: int) -> Folded | None:
    """Return the rounding of an epilogue that makes nothing but levels; given: the scale of sums up to the largest."""
    fields, levels = step.fields, step.finish.levels
    if not _is_affine(step) or not _makes_levels(step):
        return None
    scale, shift = _affine(step, given)
    ones = np.ones(step.finish.channels)
    bounds = None
    if fields.low > levels.low * levels.factor or fields.high < levels.high * levels.factor:
        ends = np.array([fields.low, fields.high], np.float32) / np.float32(levels.factor)
        reached = np.rint(np.clip(ends, levels.low, levels.high)) * np.float32(levels.factor)
        bounds = reached[:, None] * ones.astype(np.float32)
    return _with_whole_shifts(Folded(ones * scale, ones * shift, levels, bounds), largest)
