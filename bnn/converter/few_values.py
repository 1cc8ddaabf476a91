"""Weights that a network binarizes by itself, in its own code: planes for what are floats to PyTorch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bnn.planes import Term, sign_bits, ternary_bits

# Straight-through estimators are often written as sign(w) - clip(w) + clip(w), which is sign(w) but for rounding.
ROUNDING = 1e-5


@dataclass(frozen=True)
class FewValues:
    """term: the planes of a weight, with a scale (O,). same: its values are the weight's numbers to the bit."""

    term: Term
    same: bool


def few_values(weight: Tensor) -> FewValues | None:
    """Return the planes of a float weight (O, ...) whose values are -a, +a and perhaps 0 in each filter; else None."""
    weight = weight.detach().to(torch.float32)
    sizes = weight.flatten(1).abs()
    largest = sizes.amax(1, keepdim=True)
    zero = sizes == 0
    if not bool(((sizes - largest).abs() <= ROUNDING * largest).logical_or(zero).all()) or not bool(largest.any()):
        return None
    mean = sizes.sum(1, dtype=torch.float64) / (~zero).sum(1).clamp(min=1)
    alike = ((sizes == largest) | zero).all(1)
    scale = torch.where(alike, largest[:, 0], mean.to(torch.float32))
    if bool(zero.any()):
        term = Term(ternary_bits(weight), False, (1, -1), scale)
    else:
        term = Term(sign_bits(weight), True, (1,), scale)
    return FewValues(term, bool(alike.all()))


def multiplies_exactly(scales: tuple[Tensor, ...]) -> bool:
    """Whether floats that are integers times these scales add up without rounding: each is a power of two."""
    return all(bool((torch.frexp(scale.abs()).mantissa == 0.5).logical_or(scale == 0).all()) for scale in scales)
