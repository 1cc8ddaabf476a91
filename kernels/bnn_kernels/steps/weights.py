"""Weights as a file holds them: float32, or planes of bits with scales (BWN, TWN, few-bit quantizers)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bnn_kernels.bits.planes import level_of_code
from bnn_kernels.bits.storage import check_dense_bits, from_dense_bits
from bnn_kernels.errors import PlanError
from bnn_kernels.steps.base import Step
from bnn_kernels.steps.fields import Float32, StepFields, Term, Uint8, numbered
from bnn_kernels.steps.planes import read_planes


@dataclass(frozen=True, kw_only=True)
class PlaneFields(StepFields):
    """A weight as a sum of scaled bit planes.

    bits: of each term uint8 (planes, bytes). scales: of each term (filters,). weight_offset: whether there is one more
    scale, that of a term which is 1 everywhere.
    """

    terms: list[Term] | None = None
    weight_offset: bool = False
    bits: tuple[Uint8, ...] = numbered("bits")
    scales: tuple[Float32, ...] = numbered("scale")


@dataclass(frozen=True, kw_only=True)
class WeightFields(PlaneFields):
    """A weight as float32, or as a sum of scaled bit planes."""

    weight: Float32 | None = None


def read_terms(fields: PlaneFields) -> list[tuple[tuple[int, ...], bool]]:
    """Return (multipliers, signed) of each term of a quantized weight."""
    if fields.terms is None:
        raise PlanError("attribute 'terms' must be a list of terms, got None")
    return read_planes(fields.terms, "terms")


def weight_bits(fields: PlaneFields) -> int:
    """Return the bits of a weight: its planes, 32 for a float."""
    return 32 if fields.terms is None else sum(len(term["multipliers"]) for term in fields.terms)


def float_weight(this: Step, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    """Return what makes the float32 weights: stored as floats, or as scaled bit planes; both are checked here."""
    fields: WeightFields = this.fields
    if fields.terms is None:
        weight = this.tensor("weight", shape)
        return lambda: weight
    terms = []
    for i, (multipliers, signed) in enumerate(read_terms(fields)):
        dense = this.tensor(f"bits.{i}", (len(multipliers), None))
        check_dense_bits(dense, shape)
        scale = this.tensor(f"scale.{i}", (shape[0],)).reshape(-1, *[1] * (len(shape) - 1))
        terms.append((dense, level_of_code(multipliers, signed).astype(np.float32), scale))
    offset = None
    if fields.weight_offset:
        offset = this.tensor(f"scale.{len(terms)}", (shape[0],)).reshape(-1, *[1] * (len(shape) - 1))

    def make() -> np.ndarray:
        parts = (levels[from_dense_bits(dense, shape)] * scale for dense, levels, scale in terms)
        weight = functools.reduce(np.add, parts)
        return weight if offset is None else weight + offset

    return make
