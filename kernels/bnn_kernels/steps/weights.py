"""Weights as a file holds them: float32, or planes of bits with scales (BWN, TWN, few-bit quantizers)."""

import functools
from collections.abc import Callable

import numpy as np

from bnn_kernels.bits.planes import level_of_code
from bnn_kernels.bits.storage import check_dense_bits, from_dense_bits
from bnn_kernels.steps.base import Step
from bnn_kernels.steps.planes import read_planes

WEIGHT_ATTRIBUTES = ("terms", "weight_offset")


def has_offset(this: Step) -> bool:
    """Whether a quantized weight has an offset, a term that is 1 everywhere: of it only the scale is stored."""
    return bool(this.attr("weight_offset", bool)) if "weight_offset" in this.attrs else False


def read_terms(this: Step) -> list[tuple[tuple[int, ...], bool]]:
    """Return (multipliers, signed) of each term of a quantized weight."""
    return read_planes(this, "terms")


def float_weight(this: Step, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    """Return what makes the float32 weights: stored as floats, or as scaled bit planes; both are checked here."""
    if "terms" not in this.attrs:
        weight = this.tensor("weight", np.float32, shape)
        return lambda: weight
    terms = []
    for i, (multipliers, signed) in enumerate(read_terms(this)):
        dense = this.tensor(f"bits.{i}", np.uint8, (len(multipliers), None))
        check_dense_bits(dense, shape)
        scale = this.tensor(f"scale.{i}", np.float32, (shape[0],)).reshape(-1, *[1] * (len(shape) - 1))
        terms.append((dense, level_of_code(multipliers, signed).astype(np.float32), scale))
    offset = None
    if has_offset(this):
        offset = this.tensor(f"scale.{len(terms)}", np.float32, (shape[0],)).reshape(-1, *[1] * (len(shape) - 1))

    def make() -> np.ndarray:
        parts = (levels[from_dense_bits(dense, shape)] * scale for dense, levels, scale in terms)
        weight = functools.reduce(np.add, parts)
        return weight if offset is None else weight + offset

    return make


def weight_bits(this: Step) -> int:
    """Return the bits of a weight: its planes, 32 for a float."""
    return sum(len(term["multipliers"]) for term in this.attrs["terms"]) if "terms" in this.attrs else 32
