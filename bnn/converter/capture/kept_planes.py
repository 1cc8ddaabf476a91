"""Planes of weights that are made once in a conversion, in which a network runs several times.

To quantize a large weight into eight planes takes longer than to multiply by it.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bnn.layers.base import QuantLayer
from bnn.planes import Planes, Term


class KeptPlanes:
    """Within `with`, the quantized layers of a network make the planes of their weights once.

    network: one's own copy. Planes that differ when they are made anew are kept no longer, so that a network that
    changes by itself is seen to change.
    """

    def __init__(self, network: nn.Module):
        self.layers = [module for module in network.modules() if isinstance(module, QuantLayer)]
        self._kept: dict[QuantLayer, Planes] = {}
        self._changing: set[QuantLayer] = set()
        self._anew = False

    def __enter__(self) -> "KeptPlanes":
        for layer in self.layers:
            layer.kept_planes = functools.partial(self._planes, layer)
        return self

    def __exit__(self, *error: object) -> None:
        for layer in self.layers:
            layer.kept_planes = None

    @contextmanager
    def anew(self) -> Iterator[None]:
        """Within it planes are made anew, and those that are kept held against them."""
        self._anew = True
        try:
            yield
        finally:
            self._anew = False

    def _planes(self, layer: QuantLayer, make: Callable[[QuantLayer], Planes]) -> Planes:
        kept = self._kept.get(layer)
        if kept is not None and not self._anew:
            return kept
        found = make(layer)
        if kept is not None and not _are_same(kept, found):
            self._changing.add(layer)
            del self._kept[layer]
        elif layer not in self._changing:
            self._kept[layer] = kept or found
        return found


def _are_same(a: Planes, b: Planes) -> bool:
    return len(a.terms) == len(b.terms) and all(map(_is_same_term, a.terms, b.terms))


def _is_same_term(a: Term, b: Term) -> bool:
    described = (a.signed, a.multipliers, a.scale.shape) == (b.signed, b.multipliers, b.scale.shape)
    return described and torch.equal(a.bits, b.bits) and torch.equal(a.scale, b.scale)
