"""Weights that an optimizer brings to few values: floats in training, evenly spaced levels in evaluation."""

import torch
from torch import Tensor

from bnn.planes import Planes, Term, code_bits, powers_of_two, sign_planes, ternary_bits
from bnn.quantizers.base import Quantizer
from bnn.quantizers.description import FEW_BITS, Description, Example, Panel
from bnn.quantizers.straight_through import sign, straight_through


def check_levels(levels: int) -> int:
    """Return a number of levels, 3 or a power of two up to 256; ValueError for others."""
    if isinstance(levels, bool) or levels not in (2, 3, 4, 8, 16, 32, 64, 128, 256):
        raise ValueError(f"levels must be 2, 3, 4, 8, 16, 32, 64, 128 or 256, got {levels!r}")
    return int(levels)


def nearest_codes(w: Tensor, bound: Tensor, levels: int) -> Tensor:
    """Return the codes c of the levels c bound / (levels - 1) nearest to w: 1 - levels, 3 - levels, .. levels - 1.

    Halfway the one of even rank is taken, of three levels 0; of two levels w = 0 has the upper one.
    """
    if levels == 2:
        return sign(w)
    top = levels - 1
    ratio = (w / torch.where(bound > 0, bound, 1)).clamp(-1, 1)
    if levels == 3:
        return 2 * ratio.round()
    return 2 * ((ratio + 1) * (top / 2)).round() - top


class RelaxedWeight(Quantizer):
    """Weights of 2, 3 or 2^k levels. Forward in training: W. In evaluation: the nearest of the levels. Gradient: 1.

    The levels are evenly spaced from -max|W| to max|W| of the layer. This goes with an optimizer that brings weights to
    such levels during training (`bnn.optimizers.Proximal`: PARQ, ProxQuant, BinaryRelax): once it has, evaluation
    changes nothing. Before, and with any other optimizer, evaluation rounds weights that were trained as floats.
    Jin et al., "PARQ", 2025, arXiv:2503.15748, where the network's weights themselves become few-valued.

    levels: 2, 3, 4, 8, ... 256.

    >>> w = torch.tensor([[0.25, -0.75, 0.375]], requires_grad=True)
    >>> quantizer = RelaxedWeight(levels=4)
    >>> quantizer(w).tolist()
    [[0.25, -0.75, 0.375]]
    >>> q = quantizer.eval()(w)
    >>> q.tolist()
    [[0.25, -0.75, 0.25]]
    >>> q.sum().backward()
    >>> w.grad.tolist()
    [[1.0, 1.0, 1.0]]
    """

    description = Description(
        group=FEW_BITS,
        method="PARQ, ProxQuant, BinaryRelax",
        year=2025,
        forward="W in training; the nearest of L even levels in +-max|W| in evaluation",
        gradient="1; an optimizer makes the values few",
        storage="{-1,+1}, scale max|W|/(L-1); L = 3: {0,1}",
        published="-",
        panel=Panel(options={"levels": 4}, note="4 levels, in evaluation"),
        examples=(
            Example((-2, -2 / 3, -2 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 2), (1, 1, 1, 1, 1, 1, 1, 1), {"levels": 4}),
            Example((-2, 0, 0, 0, 0, 0, 0, 2), (1, 1, 1, 1, 1, 1, 1, 1), {"levels": 3}),
            Example((-2, -2, -2, 2, 2, 2, 2, 2), (1, 1, 1, 1, 1, 1, 1, 1), {"levels": 2}),
        ),
    )

    def __init__(self, levels: int):
        super().__init__()
        self.levels = check_levels(levels)
        self._bits = 2 if levels == 3 else (levels - 1).bit_length()

    def _codes_and_scale(self, w: Tensor) -> tuple[Tensor, Tensor]:
        bound = w.abs().max()
        codes = nearest_codes(w, bound, self.levels)
        # Three levels: codes -2, 0, 2. + 0.0: planes know no -0.0.
        return (codes / 2 + 0.0, bound) if self.levels == 3 else (codes, bound / (self.levels - 1))

    def forward(self, w: Tensor) -> Tensor:
        if self.training:
            return w
        codes, scale = self._codes_and_scale(w.detach())
        return straight_through(w, codes * scale)

    def planes(self, w: Tensor) -> Planes:
        codes, scale = self._codes_and_scale(w.detach())
        if self.levels == 2:
            return sign_planes(codes, scale)
        if self.levels == 3:
            return Planes((Term(ternary_bits(codes), False, (1, -1), scale),))
        bits = ~code_bits((codes + (self.levels - 1)) / 2, self._bits)
        return Planes((Term(bits, True, powers_of_two(self._bits), scale),))

    def extra_repr(self) -> str:
        return f"levels={self.levels}"
