"""What a name of an ONNX graph stands for while it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bnn.onnx_file.quantizers import CountedLevels, EvenLevels


@dataclass(frozen=True)
class Const:
    """A constant. range: of its integer type. levels, scale: what it is a product of, each of its shape, if known."""

    tensor: Tensor
    range: tuple[int, int] | None = None
    levels: Tensor | None = None
    scale: Tensor | None = None

    def moved(self, function: Callable[[Tensor], Tensor]) -> Const:
        """Return what a view or permutation makes of it."""
        levels = None if self.levels is None else function(self.levels)
        scale = None if self.scale is None else function(self.scale)
        return Const(function(self.tensor), self.range, levels, scale)


@dataclass(frozen=True)
class Real:
    """A tensor that depends on an input. name: of the operation that makes it. example: what it was in the trial.

    before, low, high: of a clamp, what it clamps and between what.
    """

    name: str
    example: Tensor
    before: Real | None = None
    low: float = -torch.inf
    high: float = torch.inf


@dataclass
class Quantized:
    """Levels of a tensor, which whoever reads them makes: a layer as its input, or an operation of their own.

    place: the name of that operation. codes: (scale, zero point) if they stand for integers not yet dequantized.
    """

    before: Real
    quantizer: EvenLevels | CountedLevels
    place: str
    codes: tuple[Tensor, Tensor] | None = None
    made: list[Real] = field(default_factory=list)

    @property
    def by_channel(self) -> bool:
        """Whether levels differ from channel to channel, so that no channel may be moved."""
        return self.quantizer.channelwise


@dataclass(frozen=True)
class Counted:
    """table[#{i : (x >= bounds[i]) xor flip}]: comparisons with constants, and what is made of them.

    bounds: float32 (L - 1, C). flip: bool (C,). axis: of the channels. table: (L,) of any dtype. stacked: whether the
    comparisons still lie along a last axis of their own, L - 1 of them; the table then has two entries.
    """

    before: Real
    bounds: Tensor
    flip: Tensor
    axis: int
    table: Tensor
    place: str
    stacked: bool = False
    made: list[Quantized | Real] = field(default_factory=list)


@dataclass(frozen=True)
class Padded:
    """A tensor with a constant around it. pads: before and after each axis but batch and channels, last axis first."""

    inside: Real | Quantized
    pads: tuple[int, ...]
    value: float
    place: str


Value = Const | Real | Quantized | Counted | Padded
