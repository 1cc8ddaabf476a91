"""Weights as the kernel reads them: filters side by side, levels or codes of fewer bits, step by step.

A step is what a lane multiplies at once: four bytes, or two 16-bit numbers, of one run of a filter row. A run is a
whole filter row where its taps are neighbours in memory, else one tap.
"""

import functools
from typing import NamedTuple

import numpy as np

from bnn_kernels.compile.isa import isa
from bnn_kernels.ops.geometry import Geometry
from bnn_kernels.ops.integer_conv.form import Form
from bnn_kernels.ops.weights import Weights
from bnn_kernels.runtime.cache_lines import zeros_at_line


class LaneWeights(NamedTuple):
    """Lanes flat, and int8 (64,): what four bits of packed codes mean, see `tiles.expanders`."""

    lanes: np.ndarray
    tables: np.ndarray


class Runs(NamedTuple):
    """The runs of a filter, the elements of each, and the steps that those take."""

    number: int
    elements: int
    steps: int


def runs_of(geometry: Geometry, channels: int, form: Form) -> Runs:
    """Return the runs of a filter over so many channels of a group."""
    kh, kw = geometry.kernel
    joined = geometry.groups == 1 and geometry.dilation[1] == 1
    number, elements = (kh, kw * channels) if joined else (kh * kw, channels)
    return Runs(number, elements, -(-elements // form.elements))


def packed_bits(weights: Weights, geometry: Geometry, form: Form) -> int:
    """Return how many bits a weight takes in memory.

    What is behind the end of a run, or of the last byte of codes, must be a level of 0: where there is any, 0 counts as
    one more level.
    """
    runs = runs_of(geometry, weights.channels, form)
    if form.elements == 2:
        levels = weights.level_values
        return 8 if levels.min() >= -128 and levels.max() <= 127 else 16
    if not form.portable and isa() not in ("avx512", "avx2", "neon"):
        return form.packed
    for packed in (1, 2, 4):
        behind = [0] if behind_is_read(runs, form._replace(packed=packed)) else []
        if len(np.union1d(weights.level_values, behind)) <= 1 << packed:
            return packed
    return 8


def behind_is_read(runs: Runs, form: Form) -> bool:
    """Whether steps also multiply what is behind the end of a run or of a window."""
    steps = runs.number * runs.steps
    return bool(runs.elements % form.elements or padded_steps(steps, form) != steps)


def padded_steps(steps: int, form: Form) -> int:
    """Return the steps of a window, made whole bytes of codes and whole turns of the loop over one window."""
    multiple = max(4, 8 // form.packed) if form.packed < 8 else 1
    return -(-steps // multiple) * multiple


def lane_weights(weights: Weights, geometry: Geometry, form: Form) -> LaneWeights:
    """Return the weights as (G, blocks, steps, 2, lanes, elements), or with codes of several steps to a byte.

    Of codes the first step's is the lowest. Filters that only fill up a block may have any level.
    """
    runs, width, fields = runs_of(geometry, weights.channels, form), 2 * form.lanes, form.fields
    blocks, steps = -(-weights.filters // width), padded_steps(runs.number * runs.steps, form)
    dtype = np.uint8 if fields > 1 else form.held
    laid = zeros_at_line((weights.groups * blocks, steps // fields, width, form.elements), dtype)
    distinct = np.union1d(weights.level_values, [0] if behind_is_read(runs, form) else [])
    held = weights.level_values.astype(form.held)
    if fields > 1:
        held = np.searchsorted(distinct, weights.level_values).astype(np.uint8)
    nothing = np.searchsorted(distinct, 0) if fields > 1 else 0
    shifts = (np.arange(fields, dtype=np.uint8) * form.packed).reshape(-1, 1)
    for filters, codes in weights.blocks():
        by_run = np.full((len(codes), runs.number, runs.steps * form.elements), nothing, dtype)
        by_run[..., : runs.elements] = held[codes].reshape(len(codes), runs.number, runs.elements)
        padded = np.full((len(codes), steps, form.elements), nothing, dtype)
        padded[:, : runs.number * runs.steps] = by_run.reshape(len(codes), -1, form.elements)
        if fields > 1:
            apart = padded.reshape(len(codes), steps // fields, fields, form.elements)
            padded = np.bitwise_or.reduce(apart << shifts, axis=2)
        block, lane = weights.places(filters, width)
        laid[block, :, lane] = padded
    tables = _tables(distinct, form) if fields > 1 else np.zeros(64, np.int8)
    return LaneWeights(laid.reshape(-1).view(form.held), tables)


def _tables(distinct: np.ndarray, form: Form) -> np.ndarray:
    """Return int8 (64,): the levels of the codes that four bits of a byte hold, a table for each of them."""
    tables = np.zeros(64, np.int8)
    for field in range(max(1, form.fields // 2)):
        code = (np.arange(16) >> (field * form.packed)) & ((1 << form.packed) - 1)
        tables[16 * field : 16 * (field + 1)] = distinct[np.minimum(code, len(distinct) - 1)]
    return tables


@functools.lru_cache(maxsize=256)
def step_offsets(size: tuple[int, int], geometry: Geometry, own: int, form: Form) -> np.ndarray:
    """Return uint64 (steps,): the elements between a window's first one and the first of each step.

    size = (width with its border, C); own: channels of a group.
    """
    width, channels = size
    kh, (dy, dx) = geometry.kernel[0], geometry.dilation
    runs = runs_of(geometry, own, form)
    y, x, step = np.ogrid[:kh, : runs.number // kh, : runs.steps]
    offsets = ((y * dy * width + x * dx) * channels + step * form.elements).reshape(-1)
    behind = padded_steps(len(offsets), form) - len(offsets)
    return np.concatenate([offsets, np.zeros(behind, offsets.dtype)]).astype(np.uint64)
