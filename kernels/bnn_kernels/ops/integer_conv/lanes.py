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
from bnn_kernels.runtime.arrays import aligned


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
    looks_up = form.portable or isa() in ("avx512", "avx2", "neon")
    if form.elements != 4 or form.product == "pairs" or not looks_up:
        return form.packed
    distinct = np.unique(weights.level_values)
    for packed in (1, 2, 4):
        behind = runs.elements % 4 or (runs.number * runs.steps) % max(4, 8 // packed)
        levels = len(np.union1d(distinct, [0])) if behind else len(distinct)
        if levels <= 1 << packed:
            return packed
    return 8


def padded_steps(steps: int, form: Form) -> int:
    """Return the steps of a window, made whole bytes of codes and whole turns of the loop over one window."""
    multiple = max(4, 8 // form.packed) if form.packed < 8 else 1
    return -(-steps // multiple) * multiple


def lane_weights(weights: Weights, geometry: Geometry, form: Form) -> LaneWeights:
    """Return the weights as (G, blocks, steps, 2, lanes, elements), or with codes of several steps to a byte."""
    groups, filters = weights.groups, weights.filters
    runs = runs_of(geometry, weights.channels, form)
    blocks, steps = -(-filters // (2 * form.lanes)), padded_steps(runs.number * runs.steps, form)
    levels = weights.levels().transpose(0, 2, 3, 1).reshape(groups, filters, runs.number, runs.elements)
    by_run = np.zeros((groups, filters, runs.number, runs.steps * form.elements), form.dtype)
    by_run[..., : runs.elements] = levels
    flat = np.zeros((groups, blocks * 2 * form.lanes, steps * form.elements), form.dtype)
    flat[:, :filters, : by_run.shape[2] * by_run.shape[3]] = by_run.reshape(groups, filters, -1)
    lanes = flat.reshape(groups, blocks, 2, form.lanes, steps, form.elements).transpose(0, 1, 4, 2, 3, 5)
    tables = np.zeros(64, np.int8)
    if form.packed < 8:
        lanes, tables = _codes(lanes, np.unique(flat[:, :filters]), form.packed)
    return LaneWeights(aligned(np.ascontiguousarray(lanes)).reshape(-1).view(form.dtype), tables)


def _codes(lanes: np.ndarray, distinct: np.ndarray, packed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (codes uint8 (G, blocks, steps / fields, 2, lanes, 4), tables): fields steps to a byte, the first lowest.

    Filters that only fill up a block may have any level.
    """
    groups, blocks, steps, *rest = lanes.shape
    fields = 8 // packed
    codes = np.searchsorted(distinct, lanes).clip(0, len(distinct) - 1).astype(np.uint8)
    shifts = (np.arange(fields, dtype=np.uint8) * packed).reshape(-1, 1, 1, 1)
    joined = np.bitwise_or.reduce(codes.reshape(groups, blocks, steps // fields, fields, *rest) << shifts, axis=3)
    tables = np.zeros(64, np.int8)
    for field in range(max(1, fields // 2)):
        code = (np.arange(16) >> (field * packed)) & ((1 << packed) - 1)
        tables[16 * field : 16 * (field + 1)] = distinct[np.minimum(code, len(distinct) - 1)]
    return joined, tables


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
