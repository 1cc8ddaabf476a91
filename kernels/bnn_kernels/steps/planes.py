"""The planes of bits that a step's attributes name."""

from bnn_kernels.bits.planes import check_planes
from bnn_kernels.steps.base import Step, need


def output_planes(this: Step) -> tuple[bool, tuple[int, ...]]:
    """Return (signed, multipliers) of the bits that a step makes."""
    signed = this.attr("signed", bool)
    return signed, check_planes(this.attr("multipliers", list), signed)


def read_planes(this: Step, name: str) -> list[tuple[tuple[int, ...], bool]]:
    """Return (multipliers, signed) of each term of a list attribute; PlanError if it is malformed."""
    terms = this.attr(name, list)
    need(0 < len(terms) <= 8, f"attribute {name!r} has 1 to 8 terms, got {len(terms)}")
    result = []
    for term in terms:
        need(isinstance(term, dict) and set(term) == {"multipliers", "signed"}, f"malformed term {term!r}")
        need(isinstance(term["multipliers"], list), f"malformed term {term!r}")
        result.append((check_planes(term["multipliers"], term["signed"]), term["signed"]))
    return result
