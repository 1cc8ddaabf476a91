"""Learned thresholds with evenly spaced levels, and weights normalized to use all levels: N2UQ."""

from typing import Any

import torch
from torch import Tensor, nn

from bnn.planes import Planes, Term, check_bits, code_bits, powers_of_two
from bnn.quantizers.base import Quantizer
from bnn.quantizers.description import FEW_BITS, Description, Example, Panel
from bnn.quantizers.filters import divided, filters, like_filters
from bnn.quantizers.masks import as_numbers, or_nan
from bnn.quantizers.straight_through import straight_through

# The highest level at first.
_TOP = 2.0
# Up to so many thresholds each x is compared with all of them, which is faster than a search on a CPU.
_COMPARED = 15
# Narrower segments count as this wide.
_NARROWEST = 1e-3


def _ends(start: Tensor, widths: Tensor) -> Tensor:
    """Return where the segments begin and the last one ends, (n + 1,)."""
    return start + torch.cat([torch.zeros_like(widths[:1]), widths.cumsum(0)])


def _levels(x: Tensor, start: Tensor, widths: Tensor) -> Tensor:
    """Return how many thresholds, the middles of the segments, lie below each x; a NaN stays NaN."""
    thresholds = _ends(start, widths)[:-1] + widths / 2
    if len(thresholds) > _COMPARED:
        return or_nan(x, torch.bucketize(x.contiguous(), thresholds).to(x.dtype))
    levels = x.clamp(-1, 1).mul_(0)  # keeps a NaN
    for threshold in thresholds:
        levels.add_(as_numbers(x > threshold, x.dtype))
    return levels


class _Segments(torch.autograd.Function):
    """Levels forward; backward the derivative of the line through (end of i segments, i), which is flat outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: Tensor, widths: Tensor) -> Tensor:
        ctx.save_for_backward(x, start, widths)
        return _levels(x, start, widths)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (g,) = gradients
        x, start, widths = ctx.saved_tensors
        ends = _ends(start, widths)
        # An infinity times 0 would be none, and what lies outside gets no gradient.
        near = x.clamp(ends[0], ends[-1])
        to_x = torch.zeros_like(g)
        slopes, shares = [], []
        # Segment by segment: an indexed sum adds in an order that differs from run to run.
        beyond = as_numbers(x > ends[0], x.dtype)
        for i, width in enumerate(widths):
            after = as_numbers(x > ends[i + 1], x.dtype)
            slope = (g * beyond.sub_(after)).div_(width)
            to_x.add_(slope)
            slopes.append(slope.sum())
            shares.append(slope.mul_((near - ends[i]).div_(width)).sum())
            beyond = after
        by_slope, by_share = torch.stack(slopes), torch.stack(shares)
        # A segment's width moves all those that come after it.
        later = by_slope.flip(0).cumsum(0).flip(0) - by_slope
        return to_x, -by_slope.sum(), -by_share - later


class N2uqActivation(Quantizer):
    """k-bit activations whose thresholds are learned. Forward: q(x) = s_2 (2 / n) #{i: s_1 x > T_i}, n = 2^k - 1.

    T_i is the middle of the i-th of n segments with learned widths a_1 .. a_n that follow each other from a learned
    start on. s_1 and s_2 are learned; at first start = 0, a_i = 2 / n and s_1 = s_2 = 1, which is uniform on [0, 2].
    Gradient ("generalized straight-through estimator"): that of the line that rises by 2 / n in each segment and is
    flat outside, to x (s_2 s_1 (2 / n) / a_i in segment i), start, all a_i and both scales. Levels stay evenly spaced,
    and thresholds cost nothing in a packed network, so a layer costs what others of k bits do.
    Liu et al., "Nonuniform-to-Uniform Quantization", CVPR 2022, section 3; the form is that of the authors' code, in
    which a width below 0.001 counts as 0.001. s_1 counts by its magnitude.

    bits: k, 1 .. 8; the backward pass takes 2 (2^k - 1) sums over the input.

    >>> quantizer = N2uqActivation(bits=1)
    >>> x = torch.tensor([-0.5, 0.75, 1.5, 3.0], requires_grad=True)
    >>> y = quantizer(x)
    >>> y.tolist()
    [0.0, 0.0, 2.0, 2.0]
    >>> y.sum().backward()
    >>> x.grad.tolist(), quantizer.start.grad.item(), quantizer.widths.grad.tolist()
    ([0.0, 1.0, 1.0, 0.0], -2.0, [-1.125])
    """

    description = Description(
        group=FEW_BITS,
        method="N2UQ",
        year=2022,
        forward="(2 s_2/n) #{i: s_1 x > T_i}, n = 2^k-1, thresholds T and scales learned",
        gradient="2 s_1 s_2/(n a_i) in segment i of width a_i; to all that is learned by the same line",
        storage="{0,1}, scale 2 s_2/n",
        published="see `N2uqWeight`",
        panel=Panel(options={"bits": 2}, learned={"start": -0.5, "widths": 0.6}, note="2 bits, start -0.5, widths 0.6"),
        examples=(
            Example(
                (0, 0, 0, 0, 0, 2 / 3, 4 / 3, 2),
                (0, 0, 0, 4 / 3, 4 / 3, 4 / 3, 4 / 3, 0),
                options={"bits": 2},
                learned={"start": -0.25, "widths": 0.5},
            ),
        ),
    )

    elementwise = True

    def __init__(self, bits: int):
        super().__init__()
        self._bits = check_bits(bits)
        n = 2**bits - 1
        self.start = nn.Parameter(torch.tensor(0.0))
        self.widths = nn.Parameter(torch.full((n,), _TOP / n))
        self.input_scale = nn.Parameter(torch.tensor(1.0))
        self.output_scale = nn.Parameter(torch.tensor(1.0))

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the scaled input, start and widths of the segments, and the scale of the levels."""
        scaled = x * self.input_scale.to(x.dtype).abs()
        widths = self.widths.clamp(min=_NARROWEST).to(x.dtype)
        return scaled, self.start.to(x.dtype), widths, self.output_scale.to(x.dtype) * (_TOP / (2**self._bits - 1))

    def forward(self, x: Tensor) -> Tensor:
        scaled, start, widths, scale = self._parts(x)
        return _Segments.apply(scaled, start, widths) * scale

    def planes(self, x: Tensor) -> Planes:
        with torch.no_grad():
            scaled, start, widths, scale = self._parts(x)
        levels = _levels(scaled, start, widths)
        return Planes((Term(code_bits(levels, self._bits), False, powers_of_two(self._bits), scale),))

    def extra_repr(self) -> str:
        return f"bits={self._bits}"


class N2uqWeight(Quantizer):
    """k-bit weights. Forward: q(W) = s c / n, c = 2 round((clip(W / s, -1, 1) + 1) n / 2) - n, n = 2^k - 1.

    s = n / 2^(k-1) mean|W| of each filter (axis 0), so that normal weights use all levels about equally ("entropy
    preserving"). c is odd: there is no level 0. Halves are rounded to even. Gradient: 1 / s everywhere, s constant.
    Liu et al., "Nonuniform-to-Uniform Quantization", CVPR 2022, section 3; the gradient is that of the authors' code.

    bits: k, 2 .. 8.

    >>> w = torch.tensor([[-3.0, -0.25, 0.0, 0.75]], requires_grad=True)
    >>> q = N2uqWeight(bits=2)(w)  # s = 1.5 mean|W| = 1.5
    >>> q.tolist()
    [[-1.5, -0.5, 0.5, 0.5]]
    >>> q.sum().backward()
    >>> [round(g, 4) for g in w.grad[0].tolist()]
    [0.6667, 0.6667, 0.6667, 0.6667]
    """

    description = Description(
        group=FEW_BITS,
        method="N2UQ",
        year=2022,
        forward="s times clip(W/s, -1, 1) on 2^k levels, s = (2^k-1)/2^(k-1) mean|W| a filter",
        gradient="1/s, s constant",
        storage="{-1,+1}, scale s/(2^k-1)",
        published="IN R18 2/2 69.4, 3/3 71.9, 4/4 72.9",
        panel=Panel(options={"bits": 2}, note="2 bits"),
        examples=(
            Example(
                (-1.3125, -1.3125, -0.4375, 0.4375, 0.4375, 0.4375, 1.3125, 1.3125),
                (0.76190476,) * 8,
                options={"bits": 2},
            ),
        ),
    )

    def __init__(self, bits: int):
        super().__init__()
        self._bits = check_bits(bits, range(2, 9))

    def _parts(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalized weight, its codes 0 .. n, and s."""
        n = 2**self._bits - 1
        s = filters(w.detach()).abs().mean(1) * (n / 2 ** (self._bits - 1))
        normalized = divided(w, s)
        return normalized, ((normalized.detach().clamp(-1, 1) + 1) * (n / 2)).round(), s

    def forward(self, w: Tensor) -> Tensor:
        normalized, codes, s = self._parts(w)
        n = 2**self._bits - 1
        return straight_through(normalized, (2 * codes - n) * like_filters(s / n, w))

    def planes(self, w: Tensor) -> Planes:
        _, codes, s = self._parts(w.detach())
        bits = ~code_bits(codes, self._bits)
        return Planes((Term(bits, True, powers_of_two(self._bits), s / (2**self._bits - 1)),))

    def extra_repr(self) -> str:
        return f"bits={self._bits}"
