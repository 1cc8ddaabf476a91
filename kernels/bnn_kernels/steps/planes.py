"""The bit planes of a weight's or an input's terms, as attributes name them."""

from collections.abc import Sequence

from bnn_kernels.bits.planes import check_planes
from bnn_kernels.steps.base import need
from bnn_kernels.steps.fields import Term


def read_planes(terms: Sequence[Term], name: str) -> list[tuple[tuple[int, ...], bool]]:
    """Return (multipliers, signed) of each term of the attribute of this name; PlanError if it is malformed."""
    need(0 < len(terms) <= 8, f"attribute {name!r} has 1 to 8 terms, got {len(terms)}")
    return [(check_planes(term["multipliers"], term["signed"]), term["signed"]) for term in terms]
