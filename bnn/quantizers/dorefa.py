"""k-bit uniform quantizers of weights and activations: DoReFa-Net.

q_k(r) = round((2^k - 1) r) / (2^k - 1) for r in [0, 1], halves rounded to even (torch.round; the paper does not say).
The value is computed as an integer level times 1 / (2^k - 1), which is how the packed form computes it too.
"""

import torch
from torch import Tensor

from bnn.planes import Planes, Term, check_bits, code_bits, powers_of_two, sign_bits
from bnn.quantizers.base import Quantizer, Uniform
from bnn.quantizers.description import FEW_BITS, Description, Example, Panel
from bnn.quantizers.straight_through import sign, straight_through


def _step(bits: int, like: Tensor) -> Tensor:
    return torch.full((), 1 / (2**bits - 1), dtype=like.dtype, device=like.device)


class DoReFaWeight(Quantizer):
    """k-bit weights, k = 1 .. 8.

    k = 1: q(W) = E * sign(W) with E = mean|W| over the whole layer; gradient 1 (equation 7).
    k > 1: q(W) = 2 q_k(r) - 1 with r = tanh(W) / (2 max|tanh W|) + 1/2; gradient that of 2r - 1 = tanh(W) / max|tanh W|
    (equation 9; the rounding passes the gradient unchanged, equation 5).
    Zhou et al., "DoReFa-Net", 2016, sections 2.2 and 2.3.

    >>> w = torch.tensor([[0.0, 10.0, -10.0]], requires_grad=True)
    >>> [round(v, 4) for v in DoReFaWeight(bits=2)(w).flatten().tolist()]
    [0.3333, 1.0, -1.0]
    >>> DoReFaWeight(bits=2)(w).sum().backward()
    >>> [round(v, 4) for v in w.grad.flatten().tolist()]
    [1.0, 0.0, 0.0]
    """

    description = Description(
        group=FEW_BITS,
        method="DoReFa-Net",
        year=2016,
        forward="tanh W / max|tanh W| on 2^k levels; k = 1: mean|W| sign(W)",
        gradient="that of tanh W / max|tanh W|",
        storage="{-1,+1}, scale 1/(2^k-1)",
        published="IN AlexNet 1/2 53.4, 1/1 48.5 (tensorpack's)",
        panel=Panel(options={"bits": 2}, note="2 bits"),
        examples=(
            Example(
                (-0.875, -0.875, -0.875, 0.875, 0.875, 0.875, 0.875, 0.875),
                (1, 1, 1, 1, 1, 1, 1, 1),
                options={"bits": 1},
            ),
        ),
    )

    def __init__(self, bits: int):
        super().__init__()
        self._bits = check_bits(bits)

    def _levels(self, smooth: Tensor) -> Tensor:
        """Odd integers -n .. n, n = 2^k - 1, of values in [-1, 1]."""
        n = 2**self._bits - 1
        return 2 * torch.round(n * (smooth / 2 + 0.5)) - n

    @staticmethod
    def _smooth(w: Tensor) -> Tensor:
        squashed = torch.tanh(w)
        largest = squashed.abs().max()
        # A layer of zeros has no largest weight; dividing it by 1 keeps it at r = 1/2, with a gradient of its size.
        return squashed / torch.where(largest > 0, largest, 1)

    def forward(self, w: Tensor) -> Tensor:
        if self._bits == 1:
            return straight_through(w, sign(w) * w.detach().abs().mean())
        smooth = self._smooth(w)
        return straight_through(smooth, self._levels(smooth.detach()) * _step(self._bits, w))

    def planes(self, w: Tensor) -> Planes:
        if self._bits == 1:
            return Planes((Term(sign_bits(w), True, (1,), w.abs().mean()),))
        n = 2**self._bits - 1
        codes = (self._levels(self._smooth(w.detach())) + n) / 2
        # Level 2c - n = sum_p 2^p s_p with s_p = +1 where bit p of c is set: a signed plane's bit is its complement.
        bits = ~code_bits(codes, self._bits)
        return Planes((Term(bits, True, powers_of_two(self._bits), _step(self._bits, w)),))

    def extra_repr(self) -> str:
        return f"bits={self._bits}"


class DoReFaActivation(Quantizer):
    """k-bit activations, k = 1 .. 8. Forward: q(x) = q_k(clip(x, 0, 1)). Gradient: 1 if 0 <= x <= 1, else 0.

    Zhou et al., "DoReFa-Net", 2016, section 2.4, equation 11, with the paper's bounded activation h(x) = clip(x, 0, 1).

    >>> x = torch.tensor([-0.5, 0.0, 0.3, 0.5, 1.0, 2.0], requires_grad=True)
    >>> y = DoReFaActivation(bits=1)(x)
    >>> y.tolist()
    [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    """

    description = Description(
        group=FEW_BITS,
        method="DoReFa-Net",
        year=2016,
        forward="clip(x, 0, 1) on 2^k levels",
        gradient="1 if 0 <= x <= 1",
        storage="{0,1}, scale 1/(2^k-1)",
        published="see `DoReFaWeight`",
        panel=Panel(options={"bits": 2}, note="2 bits"),
        examples=(Example((0, 0, 0, 0, 0, 2 / 3, 1, 1), (0, 0, 0, 1, 1, 1, 1, 0), options={"bits": 2}),),
    )

    elementwise = True

    def __init__(self, bits: int):
        super().__init__()
        self._bits = check_bits(bits)

    def _levels(self, x: Tensor) -> Tensor:
        # + 0.0: clamp keeps -0.0, planes know only 0.
        return x.clamp(0, 1).mul_(2**self._bits - 1).round_().add_(0.0)

    def forward(self, x: Tensor) -> Tensor:
        value = self._levels(x.detach()) * _step(self._bits, x)
        return straight_through(x, value, (x >= 0) & (x <= 1))

    @property
    def uniform(self) -> Uniform:
        """A product with the largest level: clipping before it or after it is the same."""
        n = 2**self._bits - 1
        return Uniform(float(n), False, 0, n)

    def planes(self, x: Tensor) -> Planes:
        bits = code_bits(self._levels(x.detach()), self._bits)
        return Planes((Term(bits, False, powers_of_two(self._bits), _step(self._bits, x)),))

    def extra_repr(self) -> str:
        return f"bits={self._bits}"
