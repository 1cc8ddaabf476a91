"""Weights as a file holds them: float32, or planes of bits with scales (BWN, TWN, few-bit quantizers)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bnn_kernels.bits.planes import level_of_code
from bnn_kernels.bits.storage import check_dense_bits, codes_of_rows, from_dense_bits
from bnn_kernels.errors import PlanError
from bnn_kernels.ops.coded_weight import CodedWeight
from bnn_kernels.ops.depthwise.windows import suits
from bnn_kernels.ops.few_bit_weight import FewBitWeight, ScaledTerm
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
    if this.fields.terms is None:
        weight = this.stored("weight", shape)
        return lambda: weight
    terms, offset = _scaled_terms(this, shape)
    by_filter = (-1, *[1] * (len(shape) - 1))

    def make() -> np.ndarray:
        levels = (level_of_code(term.multipliers, term.signed).astype(np.float32) for term in terms)
        parts = (
            level[from_dense_bits(term.dense, shape)] * term.scale.reshape(by_filter)
            for level, term in zip(levels, terms, strict=True)
        )
        weight = functools.reduce(np.add, parts)
        return weight if offset is None else weight + offset.reshape(by_filter)

    return make


def float_rows(this: Step, shape: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
    """Return what makes float32 (..., K) of rows, int64 (...,), of a weight (rows, K): those alone, each as a whole."""
    if this.fields.terms is None:
        weight = this.stored("weight", shape)
        return lambda rows: weight[rows]
    terms, offset = _scaled_terms(this, shape)

    def make(rows: np.ndarray) -> np.ndarray:
        parts = (
            level_of_code(term.multipliers, term.signed).astype(np.float32)[codes_of_rows(term.dense, rows, shape[1])]
            * term.scale[rows][..., None]
            for term in terms
        )
        found = functools.reduce(np.add, parts)
        return found if offset is None else found + offset[rows][..., None]

    return make


def _scaled_terms(this: Step, shape: tuple[int, ...]) -> tuple[list[ScaledTerm], np.ndarray | None]:
    """Return the terms of a quantized weight, checked, and its offset, float32 (filters,), if it has one."""
    fields: WeightFields = this.fields
    terms = []
    for i, (multipliers, signed) in enumerate(read_terms(fields)):
        dense = this.stored(f"bits.{i}", (len(multipliers), None))
        check_dense_bits(dense, shape)
        terms.append(ScaledTerm(dense, multipliers, signed, this.tensor(f"scale.{i}", (shape[0],))))
    return terms, this.tensor(f"scale.{len(terms)}", (shape[0],)) if fields.weight_offset else None


def filters_of(
    this: Step, shape: tuple[int, ...], groups: int = 1
) -> Callable[[], np.ndarray | FewBitWeight | CodedWeight]:
    """Return what makes the filters (O, C/groups, kh, kw) of a layer with float inputs; a vector's have one tap.

    Weights of few bits stay bits in memory, but for the few of a depthwise convolution.
    """
    four = shape if len(shape) == 4 else (*shape, 1, 1)
    if this.fields.terms is None or suits(groups, four[1], four[0] // groups):
        weight = float_weight(this, shape)
        return lambda: weight().reshape(four)
    terms, offset = _scaled_terms(this, shape)
    if CodedWeight.fits(terms, offset):
        return lambda: CodedWeight(four, groups, terms[0])
    return lambda: FewBitWeight(four, groups, terms, offset)
