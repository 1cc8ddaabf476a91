"""Weights that keep the bits they have, whatever their quantizer would make of fewer of them."""

from typing import Any

from torch import Tensor

from bnn.planes import Planes, Term
from bnn.quantizers.base import Quantizer


class FixedPlanes(Quantizer):
    """Gives given planes of one weight, with no gradient to it.

    A scale that is computed from all weights of a filter or layer changes when some are taken out; these planes do not.
    planes: of the weight as filters. `planes(x)` and the forward take a tensor of that shape.
    """

    for_weights = True

    def __init__(self, planes: Planes):
        super().__init__()
        self._forms = [(term.signed, term.multipliers) for term in planes.terms]
        self._bits = planes.bits
        for i, term in enumerate(planes.terms):
            self.register_buffer(f"bits{i}", term.bits)
            self.register_buffer(f"scale{i}", term.scale)

    def planes(self, x: Tensor) -> Planes:
        terms = []
        for i, (signed, multipliers) in enumerate(self._forms):
            bits: Any = getattr(self, f"bits{i}")
            terms.append(Term(bits, signed, multipliers, getattr(self, f"scale{i}")))
        return Planes(tuple(terms))

    def forward(self, x: Tensor) -> Tensor:
        return self.planes(x).value().to(x.dtype)
