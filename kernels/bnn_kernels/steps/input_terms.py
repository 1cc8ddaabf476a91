"""Inputs that are sums of several scaled terms, and offsets: sum_t scale[t] * level[t] + offset.

All planes of such an input lie in one register, those of the first term first. A layer multiplies each term by each
term of its weight, exactly, and adds the scaled sums in order. The offset is a term that is 1 on the whole map (and 0
on the padding around it), so its sums are one map for all inputs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bnn_kernels.bits.level_bytes import LevelTensor, as_planes
from bnn_kernels.bits.sum_range import largest_level
from bnn_kernels.bits.tensor import BitTensor, pack_codes
from bnn_kernels.compile.jit import jit
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty
from bnn_kernels.steps.base import Spec, need
from bnn_kernels.steps.fields import StepFields, Term
from bnn_kernels.steps.planes import read_planes


@dataclass(frozen=True, kw_only=True)
class InputFields(StepFields):
    """The parts of an input, if they are several. input_scale: whether XNOR-Net's K of a second input is a factor."""

    input_terms: list[Term] | None = None
    input_offset: bool = False
    input_scale: bool = False


class InputTerms:
    """How a layer takes its register of bits apart: read from the attributes "input_terms" and "input_offset".

    several: whether there is more than one part, so that no single integer stands for the input.
    """

    def __init__(self, given: InputFields):
        self.terms = None if given.input_terms is None else read_planes(given.input_terms, "input_terms")
        self.offset = given.input_offset
        self.count = (1 if self.terms is None else len(self.terms)) + self.offset

    @property
    def several(self) -> bool:
        """Whether the input is more than one scaled integer."""
        return self.count > 1

    def largest_level(self, x: Spec) -> int:
        """Return the largest magnitude of a term's levels; PlanError if the planes of x are not those of the terms."""
        if self.terms is None:
            return largest_level(x.multipliers, x.signed)
        planes = sum(len(multipliers) for multipliers, _ in self.terms)
        need(planes == len(x.multipliers), f"has terms of {planes} planes, got {len(x.multipliers)}")
        return max(largest_level(*term) for term in self.terms)

    def split(self, x: LevelTensor) -> Sequence[LevelTensor]:
        """Return the terms of an input, without the offset."""
        if self.terms is None:
            return [x]
        x = as_planes(x)
        parts, start = [], 0
        for multipliers, signed in self.terms:
            end = start + len(multipliers)
            parts.append(BitTensor(x.words[start:end], x.shape, signed, multipliers))
            start = end
        return parts


def ones(shape: tuple[int, ...]) -> BitTensor:
    """Return one image (C, H, W), or vector (K,), of the offset's term: 1 everywhere."""
    channels, height, width = shape if len(shape) == 3 else (shape[0], 1, 1)
    words = pack_codes(np.ones((1, height, width, channels), np.uint8), 1)
    return BitTensor(words, (1, *shape), False, (1,))


@jit
def _scaled_rows(sums, scale, out, adds, first, last):
    """Rows of sums int32 (R, C): out float32 (R, C) = float32(sums) * scale, added to what is there if `adds`."""
    channels = sums.shape[1]
    for row in range(first, last):
        if adds:
            for c in range(channels):
                out[row, c] += np.float32(sums[row, c]) * scale[c]
        else:
            for c in range(channels):
                out[row, c] = np.float32(sums[row, c]) * scale[c]


@jit
def _spread_rows(sums, scale, out, first, last):
    """Rows of sums int32 (R, G): out float32 (R, C) += float32(sums) * scale, each sum for its C / G channels."""
    groups = sums.shape[1]
    channels = out.shape[1] // groups
    for row in range(first, last):
        for g in range(groups):
            total = np.float32(sums[row, g])
            for c in range(g * channels, (g + 1) * channels):
                out[row, c] += total * scale[c]


def add_scaled(sums: np.ndarray, scale: np.ndarray, total: np.ndarray | None) -> np.ndarray:
    """Return total + float32(sums) * scale, each product rounded; in place unless total is None.

    sums: int32 (N, H, W, C), or (N, H, W, G) of which each is for a group of channels. scale: float32 (C,). total:
    float32 (N, H, W, C).
    """
    flat = sums.reshape(math.prod(sums.shape[:3]), sums.shape[3])
    out = empty((*sums.shape[:3], len(scale)), np.float32) if total is None else total
    rows = out.reshape(len(flat), len(scale))
    if flat.shape != rows.shape:
        run_rows(_spread_rows, len(flat), out.size, flat, scale, rows)
    else:
        run_rows(_scaled_rows, len(flat), out.size, flat, scale, rows, total is not None)
    return out


def offset_map(sums: Callable[[BitTensor], np.ndarray], shape: tuple[int, ...], scale: np.ndarray) -> np.ndarray:
    """Return float32 (1, H, W, O), what the offset of an input (C, H, W) or (K,) adds to a layer's output.

    sums: the layer. scale: float32 (O,), that of weight times offset.
    """
    found = sums(ones(shape)).astype(np.float32)
    return np.repeat(found, len(scale) // found.shape[3], axis=3) * scale
