"""What a quantizer is: a module whose forward gives quantized values and whose planes give the same values as bits."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bnn.planes import Planes, PlanesError
from bnn.quantizers.description import Description
from bnn.quantizers.grid import Grid


@dataclass(frozen=True)
class Absmax:
    """How a scale follows the input: q(x) = s q1(x / s), s = max(max|x|, smallest) / levels.

    The maximum is that of a token for a linear layer, that of a sample for others. at_one: q1, elementwise.
    """

    levels: int
    smallest: float
    at_one: "Quantizer"


@dataclass(frozen=True)
class Uniform:
    """Evenly spaced levels of float32: level = round(min(max(x / factor, low), high)), halves to even.

    factor: a positive float32. divides: whether x is divided by it, else multiplied, as the quantizer itself does it.
    low, high: the lowest and highest level. zero: what is added to a level to give the one that the planes hold, where
    they have a zero point.
    """

    factor: float
    divides: bool
    low: int
    high: int
    zero: int = 0


class Quantizer(nn.Module):
    """A map from real tensors to few values, with a gradient of its own.

    forward(x) returns the quantized tensor, same shape and dtype. `planes(x)` returns the same numbers as bit planes,
    bit for bit: in evaluation `quantizer(x)` equals `quantizer.planes(x).value()`, and in training too unless values
    are drawn at random or still on their way to few. A new quantizer that keeps this promise converts and packs
    without an edit anywhere else.

    What changes during training by a schedule (EDE's t, ReCU's tau) is a plain attribute. What a layer knows (channels,
    channel_axis, fan_in) is an argument of that name, which the layer passes.

    Class attributes:
        packable: whether `planes` exists; without it the values are floats.
        elementwise: whether each output depends on its own input alone, so that as an input quantizer it is a set of
            thresholds. Scales that are computed from the whole tensor make it False.
        channelwise: whether these thresholds differ from channel to channel.
        for_weights: whether it learns something for each filter (axis 0), which inputs do not have.
    """

    packable: bool = True
    elementwise: bool = False
    channelwise: bool = False
    for_weights: bool = False

    description: ClassVar[Description | None] = None  # for the documentation, the gallery and the tests

    _bits: int = 0  # where they are known without planes of a tensor

    @property
    def absmax(self) -> Absmax | None:
        """How the scale of an input follows it, where it does so in the one way that bnn.convert knows."""
        return None

    @property
    def uniform(self) -> Uniform | None:
        """How the levels of an input follow from it, where they are evenly spaced; None: as thresholds.

        A packed network computes levels in this way only where it gives the very levels of `planes`, which bnn.convert
        tries on both sides of every threshold.
        """
        return None

    @property
    def grid(self) -> Grid | None:
        """The evenly spaced levels whose step `set_grid` sets, see `bnn.calibrate`; None where there are none."""
        return None

    def set_grid(self, step: Tensor, zero_point: Tensor) -> None:
        """Set the step, and the zero point of a grid that has one: (1,), or a number for each channel, in place."""
        raise TypeError(f"{type(self).__name__} has no evenly spaced levels whose step could be set")

    def planes(self, x: Tensor) -> Planes:
        """Return the bit planes of `x`'s quantized values; TypeError for a quantizer that has none."""
        raise TypeError(
            f"{type(self).__name__} has no bit planes: define planes(x), or set packable = False to stay with floats"
        )

    @property
    def needs_data(self) -> bool:
        """Whether a forward in training mode learns from its tensor, beside by gradients: `bnn.calibrate` runs one."""
        return False

    def before_evaluation(self) -> None:
        """Be told by a layer that it evaluates; a quantizer that is not ready for it warns."""

    def begin_epoch(self, x: Tensor) -> None:
        """Do what the method does once an epoch with the tensor that is quantized, a weight; by default nothing."""

    @property
    def bits(self) -> int:
        """Bits of one quantized element."""
        return self._bits or self.planes(torch.zeros(1, 1)).bits


class FullPrecision(Quantizer):
    """No quantization: the FP32 twin of a network is the same network with this quantizer.

    Forward: x. Gradient: 1.
    """

    packable = False
    elementwise = True

    def forward(self, x: Tensor) -> Tensor:
        return x

    @property
    def bits(self) -> int:
        """32: the element stays a float."""
        return 32


def checked_values(quantizer: Quantizer, x: Tensor) -> Tensor:
    """Return what a quantizer makes of x; TypeError or ValueError, naming it, unless that is a tensor of x's shape."""
    values = quantizer(x)
    if not isinstance(values, Tensor):
        raise TypeError(f"{type(quantizer).__name__}.forward must return a tensor, got {type(values).__name__}")
    if not torch.jit.is_tracing() and values.shape != x.shape:  # a tracer has no shapes to compare
        raise ValueError(
            f"{type(quantizer).__name__}.forward must keep the shape {tuple(x.shape)}, got {tuple(values.shape)}"
        )
    return values


def checked_planes(quantizer: Quantizer, x: Tensor) -> Planes:
    """Return a quantizer's planes of x; PlanesError, naming the quantizer, unless they are Planes of x's shape."""
    name = f"{type(quantizer).__name__}.planes"
    try:
        planes = quantizer.planes(x)
    except PlanesError as error:
        raise PlanesError(f"{name}: {error}") from error
    if not isinstance(planes, Planes):
        raise PlanesError(
            f"{name} must return bnn.planes.Planes((Term(bits, signed, multipliers, scale), ...), offset), got "
            f"{type(planes).__name__}"
        )
    for term in planes.terms:
        if not torch.jit.is_tracing() and term.bits.shape[1:] != x.shape:
            raise PlanesError(
                f"{name}: bits must have shape (P, *x.shape) = (P, {', '.join(map(str, x.shape))}), got "
                f"{tuple(term.bits.shape)}"
            )
    return planes
