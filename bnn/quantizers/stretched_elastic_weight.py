"""Two, three or four evenly spaced levels around 0 with a learned range for each filter: ParetoQ's SEQ."""

from typing import Any

import torch
from torch import Tensor

from bnn.planes import Planes, Term, code_bits, powers_of_two, sign_planes, ternary_bits
from bnn.quantizers.data_initialized import DataInitialized, mean_over_processes
from bnn.quantizers.description import FEW_BITS, Description, Example, Panel
from bnn.quantizers.filters import filters, like_filters, parameter_per_channel
from bnn.quantizers.straight_through import sign

# Weights beyond this share of the range lie outside it.
_CLIP = 0.99


def _codes(ratio: Tensor, levels: int) -> Tensor:
    """Return the integer c of the level c / levels that W / alpha is rounded to; of two levels its sign."""
    if levels == 2:
        return sign(ratio)
    half = levels / 2
    shift = 0.5 if levels % 2 == 0 else 0.0
    rounded = (ratio.clamp(-_CLIP, _CLIP) * half - shift).round()
    return 2 * rounded + 1 if shift else rounded + 0.0  # small negative numbers round to -0.0, planes know only 0


def _scale(alpha: Tensor, levels: int) -> Tensor:
    """Return what the integer of a level is multiplied by."""
    return alpha / {2: 1.0, 3: 1.5, 4: 4.0}[levels]


class _Stretched(torch.autograd.Function):
    """codes * scale; alpha is made to go with w."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, alpha: Tensor, levels: int, factor: float) -> Tensor:
        ctx.save_for_backward(w, alpha)
        ctx.levels, ctx.factor = levels, factor
        return _codes(w / alpha, levels) * _scale(alpha, levels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (g,) = gradients
        w, alpha = ctx.saved_tensors
        ratio = w / alpha
        inside = ratio.abs() <= _CLIP
        change = _codes(ratio, ctx.levels) * _scale(torch.ones_like(alpha), ctx.levels)
        if ctx.levels == 4:
            change = change - torch.where(inside, ratio, 0)
        if ctx.levels == 3:
            change = torch.where(inside, change - ratio, sign(ratio))
        return g * inside, (g * change).sum_to_size(alpha.shape) * ctx.factor, None, None


class StretchedElasticWeight(DataInitialized):
    """Weights of 2, 3 or 4 levels. Forward: q(W) = alpha_c l(W / alpha_c), alpha_c learned for each filter (axis 0).

    levels = 2: l(x) = sign(x). 3 and 4: [-1, 1] is cut into as many equal parts, and l(x) is the middle of the one in
    which x lies: {-2/3, 0, 2/3}, {-3/4, -1/4, 1/4, 3/4}; four levels have no 0. Halves are rounded to even, before the
    shift of four levels.
    Gradient to W: 1 if |W / alpha| <= 0.99, else 0. Gradient to alpha: of 2 levels l; of 3 and 4 l - W / alpha inside,
    and outside +-1 and +-3/4 (as in the authors' code, though l is 2/3 there of 3 levels); summed and multiplied by
    1 / sqrt(N), N weights in the layer. alpha begins at mean|W| for 2 levels and at max|W| for others, taken from the
    weights in the first forward of training.
    Liu et al., "ParetoQ", NeurIPS 2025, arXiv:2502.02631, "Stretched Elastic Quant"; for 3 and 4 bits the paper has
    LSQ, `LsqWeight(bits, per_channel=True)`. Below 3 bits weights move far from where they began: train longer.

    levels: 2, 3 or 4. channels: the number of output channels; a layer tells it by itself.

    >>> quantizer = StretchedElasticWeight(levels=4, channels=1).eval()
    >>> w = torch.tensor([[-3.0, -0.25, 0.0, 0.75]], requires_grad=True)
    >>> q = quantizer(w)
    >>> q.tolist()
    [[-0.75, -0.25, 0.25, 0.75]]
    >>> q.sum().backward()
    >>> w.grad.tolist(), quantizer.alpha.grad.tolist()
    ([[0.0, 1.0, 1.0, 1.0]], [-0.25])
    """

    description = Description(
        group=FEW_BITS,
        method="ParetoQ",
        year=2025,
        forward="alpha_c times the middle of one of L equal parts of [-1, 1], L = 3 or 4; L = 2: alpha_c sign(W)",
        gradient="1 if |W| <= 0.99 alpha_c; to alpha_c q/alpha_c - W/alpha_c",
        storage="{0,1}; of 4 levels {-1,+1}; learned scale a filter",
        panel=Panel(options={"levels": 4}, learned={"alpha": 1.5}, note=r"4 levels, $\alpha$ = 1.5"),
        examples=(
            Example(
                (-1.5, -1.5, -0.5, 0.5, 0.5, 0.5, 0.5, 1.5),
                (0, 1, 1, 1, 1, 1, 1, 0),
                options={"levels": 4},
                learned={"alpha": 2.0},
            ),
            Example(
                (-2 / 3, -2 / 3, -2 / 3, 0, 0, 2 / 3, 2 / 3, 2 / 3),
                (0, 0, 1, 1, 1, 1, 0, 0),
                options={"levels": 3},
                learned={"alpha": 1.0},
            ),
            Example(
                (-0.75, -0.75, -0.75, 0.75, 0.75, 0.75, 0.75, 0.75),
                (0, 0, 1, 1, 1, 1, 0, 0),
                options={"levels": 2},
                learned={"alpha": 0.75},
            ),
        ),
    )

    for_weights = True

    def __init__(self, levels: int, channels: int):
        super().__init__()
        if isinstance(levels, bool) or levels not in (2, 3, 4):
            raise ValueError(f"levels must be 2, 3 or 4, got {levels!r}; LsqWeight(bits, per_channel=True) has more")
        self.levels = int(levels)
        self._bits = 1 if levels == 2 else 2
        self.alpha = parameter_per_channel(channels, 1.0)

    def initialize(self, x: Tensor) -> None:
        sizes = filters(x).abs()
        start = sizes.mean(1) if self.levels == 2 else sizes.amax(1)
        # Nothing but zeros says nothing about the range.
        self.alpha.copy_(mean_over_processes(torch.where(start > 0, start, torch.ones_like(start))))

    def _alpha(self, w: Tensor) -> Tensor:
        """Return the range as positive numbers, whatever an optimizer made of the parameter."""
        return self.alpha.to(w.dtype).abs().clamp(min=torch.finfo(w.dtype).tiny)

    def forward(self, w: Tensor) -> Tensor:
        self.initialize_once(w)
        return _Stretched.apply(w, like_filters(self._alpha(w), w), self.levels, w.numel() ** -0.5)

    def planes(self, w: Tensor) -> Planes:
        w = w.detach()
        alpha = self._alpha(w).detach()
        codes, scale = _codes(w / like_filters(alpha, w), self.levels), _scale(alpha, self.levels)
        if self.levels == 2:
            return sign_planes(codes, scale)
        if self.levels == 3:
            return Planes((Term(ternary_bits(codes), False, (1, -1), scale),))
        return Planes((Term(~code_bits((codes + 3) / 2, 2), True, powers_of_two(2), scale),))

    def extra_repr(self) -> str:
        return f"levels={self.levels}, channels={len(self.alpha)}"
