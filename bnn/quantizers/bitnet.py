"""Ternary weights and 8-bit activations of language models: BitNet b1.58."""

import torch
from torch import Tensor

from bnn.planes import Planes, Term, check_bits, signed_code_bits, ternary_bits, twos_complement
from bnn.quantizers.base import Absmax, Quantizer, Uniform
from bnn.quantizers.description import FEW_BITS, TERNARY, Description, Example, Panel
from bnn.quantizers.straight_through import straight_through

_SMALLEST = 1e-5


class AbsmeanTernary(Quantizer):
    """Forward: q(W) = g clip(round(W / g), -1, 1), g = max(mean|W|, 1e-5) over the layer. Gradient: 1.

    |W| = g / 2 gives 0 (halves are rounded to even).
    Ma et al., "The Era of 1-bit LLMs", 2024, section 2, equations 1 to 3; the paper adds the smallest g instead of
    taking the maximum, which is the authors' code.

    >>> import torch
    >>> w = torch.tensor([[1.5, -0.5, 0.25, -1.75]], requires_grad=True)
    >>> q = AbsmeanTernary()(w)
    >>> q.tolist()
    [[1.0, 0.0, 0.0, -1.0]]
    >>> q.sum().backward()
    >>> w.grad.tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """

    description = Description(
        group=TERNARY,
        method="BitNet b1.58",
        year=2024,
        forward="g clip(round(W/g), -1, 1)",
        gradient="1",
        storage="g = mean|W| a layer",
        examples=(Example((-0.875, -0.875, -0.875, 0, 0, 0.875, 0.875, 0.875), (1, 1, 1, 1, 1, 1, 1, 1)),),
    )

    @staticmethod
    def _levels_and_scale(w: Tensor) -> tuple[Tensor, Tensor]:
        scale = w.abs().mean().clamp(min=_SMALLEST)
        # + 0.0: small negative weights round to -0.0, planes know only 0.
        return (w / scale).round().clamp(-1, 1) + 0.0, scale

    def forward(self, w: Tensor) -> Tensor:
        levels, scale = self._levels_and_scale(w.detach())
        return straight_through(w, levels * scale)

    def planes(self, w: Tensor) -> Planes:
        levels, scale = self._levels_and_scale(w.detach())
        return Planes((Term(ternary_bits(levels), False, (1, -1), scale),))


class Rounded(Quantizer):
    """Forward: q(x) = clip(round(x), -n - 1, n), n = 2^(k-1) - 1, halves to even. Gradient: 1. bits: k, 2 .. 8."""

    elementwise = True

    def __init__(self, bits: int):
        super().__init__()
        self._bits = check_bits(bits, range(2, 9))

    def forward(self, x: Tensor) -> Tensor:
        n = 2 ** (self._bits - 1) - 1
        return straight_through(x, x.detach().round().clamp(-n - 1, n) + 0.0)

    @property
    def uniform(self) -> Uniform:
        """Rounding alone."""
        n = 2 ** (self._bits - 1) - 1
        return Uniform(1.0, False, -n - 1, n)

    def planes(self, x: Tensor) -> Planes:
        bits = signed_code_bits(self(x.detach()), self._bits)
        return Planes((Term(bits, False, twos_complement(self._bits), torch.tensor(1.0)),))


class AbsmaxActivation(Quantizer):
    """Forward: q(x) = s clip(round(x / s), -n - 1, n), n = 2^(k-1) - 1, s = max(max|x|, 1e-5) / n. Gradient: 1.

    The maximum is that of each token, all that a dot product sums over: of the last axis in a linear layer, of a whole
    sample in a convolution. Halves are rounded to even.
    Ma et al., "The Era of 1-bit LLMs", 2024, section 2, with k = 8. As the scale follows the input, a packed layer
    divides its input by it first and multiplies its output.

    bits: k, 2 .. 8. channel_axis: -1 for a scale for each token, another for one for each sample; a layer tells it.

    >>> import torch
    >>> x = torch.tensor([[127.0, -0.5, 0.75], [1.0, -1.0, 0.0]], requires_grad=True)
    >>> y = AbsmaxActivation()(x)
    >>> y.tolist()
    [[127.0, 0.0, 1.0], [1.0, -1.0, 0.0]]
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    description = Description(
        group=FEW_BITS,
        method="BitNet b1.58",
        year=2024,
        forward="s round(x/s), s = max|x|/(2^(k-1)-1) a token",
        gradient="1",
        storage="{0,1}, two's complement",
        panel=Panel(options={"bits": 3}, note="3 bits here, 8 in the paper"),
        examples=(Example((-2, -128 / 127, -64 / 127, 0, 0, 64 / 127, 128 / 127, 2), (1, 1, 1, 1, 1, 1, 1, 1)),),
    )

    def __init__(self, bits: int = 8, channel_axis: int = -1):
        super().__init__()
        self._bits = check_bits(bits, range(2, 9))
        self.channel_axis = channel_axis

    def _levels_and_scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n = 2 ** (self._bits - 1) - 1
        axes = (-1,) if self.channel_axis == -1 else tuple(range(1, x.ndim))
        scale = x.abs().amax(axes, keepdim=True).clamp(min=_SMALLEST) / n
        return (x / scale).round().clamp(-n - 1, n) + 0.0, scale

    def forward(self, x: Tensor) -> Tensor:
        levels, scale = self._levels_and_scale(x.detach())
        return straight_through(x, levels * scale)

    def planes(self, x: Tensor) -> Planes:
        levels, scale = self._levels_and_scale(x.detach())
        bits = signed_code_bits(levels, self._bits)
        return Planes((Term(bits, False, twos_complement(self._bits), scale),))

    @property
    def absmax(self) -> Absmax:
        """The scale s, and rounding."""
        return Absmax(2 ** (self._bits - 1) - 1, _SMALLEST, Rounded(self._bits))

    def extra_repr(self) -> str:
        return f"bits={self._bits}"
