"""Bit planes: the one form in which every quantizer hands out what it made, and `convert` takes it.

A quantized tensor is a sum of terms, each a scale times an integer level tensor that is a weighted sum of bits:

    value = sum_t  scale[t] * level[t]  [+ offset],     level[t] = sum_p multipliers[p] * plane[t, p]

with planes in {-1,+1} (signed; bit 1 is -1) or {0,1} (bit 1 is 1), and a scale per tensor, channel or sample.

| method                          | terms | planes of a term, multipliers     | scale                        |
|---------------------------------|-------|-----------------------------------|------------------------------|
| BNN, ReActNet; BWN, XNOR-Net    | 1     | {-1,+1}; (1)                      | 1; mean|W| per channel       |
| AdaBin                          | 1     | {-1,+1}; (1)                      | alpha, and an offset         |
| TWN, BitNet b1.58               | 1     | {0,1}; (1, -1)                    | alpha                        |
| TTQ                             | 2     | {0,1}; (1) and (-1)               | Wp and Wn                    |
| DoReFa weights, k bits          | 1     | {-1,+1}; (1, 2, 4, ...)           | 1 / (2^k - 1)                |
| DoReFa, PACT, LSQ activations   | 1     | {0,1}; (1, 2, 4, ...)             | 1 / (2^k - 1), or the step   |
| LSQ weights, BitNet activations | 1     | {0,1}; (1, 2, ..., -2^(k-1))      | step; max|x| / 127 a sample  |
| ABC-Net, LQ-Net                 | k     | {-1,+1}; (1)                      | one basis each               |
| pixels                          | 1     | {0,1}; (64, 128, ..., 64 * 128)   | the step, and zero points    |

Keeping the multipliers integer and the scale apart makes the sum of products of two such tensors an exact integer
times a scale: that is why a packed network can answer bit for bit like the trained one.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


class PlanesError(ValueError):
    """Planes that break their contract: the message says what is wrong with them and what is right."""


@dataclass(frozen=True)
class Term:
    """scale * (sum_p multipliers[p] * plane[p] - zero_point).

    bits: bool (P, *shape). signed: planes are {-1,+1} (True is -1) or {0,1} (True is 1). multipliers: P integers.
    scale: float, shape () or (C,) for the channels of axis 0 of a weight, or with as many axes as the tensor, of which
        those of the channels are 1: scales of samples or tokens. No gradient passes it.
    zero_points: int64 (C,) for the channels of axis 1 of an input, or (1,), which planes {0,1} alone may have; None is
        0. A level of 0, which pads a map, need not be one that the planes have.
    largest: a bound of the magnitudes of levels, where zero points would otherwise be read from the device to know it.
    PlanesError on anything else.
    """

    bits: Tensor
    signed: bool
    multipliers: tuple[int, ...]
    scale: Tensor
    zero_points: Tensor | None = None
    largest: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.bits, Tensor) or self.bits.dtype != torch.bool or self.bits.ndim < 1:
            raise PlanesError(
                f"bits must be a bool tensor (P, *shape), one plane after the other, got {_described(self.bits)}; for "
                "instance bnn.planes.sign_bits(x), or torch.stack([x > 0, x < 0])"
            )
        if not isinstance(self.signed, bool):
            raise PlanesError(f"signed must be True (planes of -1 and +1) or False (0 and 1), got {self.signed!r}")
        object.__setattr__(self, "multipliers", _integers(self.multipliers))
        if not self.multipliers:
            raise PlanesError("a term needs at least one plane of bits, got none")
        if len(self.bits) != len(self.multipliers):
            raise PlanesError(
                f"bits must hold one plane for each of the {len(self.multipliers)} multipliers, got shape "
                f"{tuple(self.bits.shape)}"
            )
        object.__setattr__(self, "scale", _checked_scale(self.scale, self.bits.shape[1:], "scale"))
        if self.zero_points is not None:
            _check_zero_points(self.zero_points, self.bits.shape[1:], self.signed)

    def levels(self, dtype: torch.dtype = torch.int32) -> Tensor:
        """Return the integer levels, shape of the tensor."""
        total = self._codes.to(dtype, copy=True)
        if self.zero_points is not None:
            total.sub_(self.zero_points.to(dtype).reshape(-1, *[1] * (total.ndim - 2)))
        return total

    @cached_property
    def _codes(self) -> Tensor:
        """The levels without zero points, in few bytes: a large weight is limited by memory."""
        start = sum(self.multipliers) if self.signed else 0  # the level where no plane has a bit
        steps = [-2 * m if self.signed else m for m in self.multipliers]
        positive, negative = (sum(m for m in self.multipliers if (m > 0) is side) for side in (True, False))
        # What a sum of bytes passes on its way comes back: they are counted modulo 256.
        bytes_hold = not self.signed and negative >= -128 and positive <= 127
        words_hold = abs(start) + sum(map(abs, steps)) < 1 << 15
        total = self.bits[0].to(torch.int8 if bytes_hold else torch.int16 if words_hold else torch.int32)
        total.mul_(steps[0]).add_(start)
        for bit, step in zip(self.bits[1:], steps[1:], strict=True):
            total.add_(bit.view(torch.int8), alpha=step)
        return total

    @property
    def max_level(self) -> int:
        """Largest magnitude that a level can have."""
        if self.largest is not None:
            return self.largest
        positive = sum(m for m in self.multipliers if m > 0)
        negative = -sum(m for m in self.multipliers if m < 0)
        if self.zero_points is not None:
            least, most = int(self.zero_points.min()), int(self.zero_points.max())
            return max(positive - least, negative + most)
        return positive + negative if self.signed else max(positive, negative)

    def possible_levels(self) -> list[int]:
        """Return every level that planes of these multipliers can give, ascending; zero points are left out."""
        levels = {0}
        for m in self.multipliers:
            levels = {level + step for level in levels for step in ((-m, m) if self.signed else (0, m))}
        return sorted(levels)

    def channel_scale(self, ndim: int) -> Tensor:
        """Return the scale shaped to multiply a tensor of `ndim` axes."""
        return by_channel(self.scale, ndim)


@dataclass(frozen=True)
class Planes:
    """A quantized tensor as a sum of terms, plus an offset where the values are not symmetric.

    offset: float, shape () or (C,) for the channels of axis 0 of a weight, or None for 0. It takes part in every
    product: `parts` holds it as one more term. PlanesError on anything else.
    """

    terms: tuple[Term, ...]
    offset: Tensor | None = None

    def __post_init__(self) -> None:
        terms = tuple(self.terms) if isinstance(self.terms, tuple | list) else (self.terms,)
        if not terms or not all(isinstance(term, Term) for term in terms):
            found = ", ".join(type(term).__name__ for term in terms) or "none"
            raise PlanesError(
                f"terms must be a tuple of bnn.planes.Term(bits, signed, multipliers, scale), at least one, got {found}"
            )
        shape = terms[0].bits.shape[1:]
        if any(term.bits.shape[1:] != shape for term in terms):
            shapes = ", ".join(str(tuple(term.bits.shape[1:])) for term in terms)
            raise PlanesError(f"the planes of all terms must have the tensor's shape, got {shapes}")
        object.__setattr__(self, "terms", terms)
        if self.offset is not None:
            object.__setattr__(self, "offset", _checked_scale(self.offset, shape, "offset"))

    def value(self) -> Tensor:
        """Return the tensor: the same numbers, bit for bit, as the quantizer's forward."""
        total: Tensor | None = None
        for term in self.parts:
            part = term.levels(term.scale.dtype)
            part = part * term.channel_scale(part.ndim)
            total = part if total is None else total + part
        assert total is not None, "a quantized tensor has at least one term"
        return total

    @property
    def parts(self) -> tuple[Term, ...]:
        """The terms, with the offset as a term whose plane is 1 everywhere."""
        if self.offset is None:
            return self.terms
        ones = torch.ones_like(self.terms[0].bits[:1])
        return (*self.terms, Term(ones, False, (1,), self.offset))

    @property
    def bits(self) -> int:
        """Bits that one element takes: the number of planes. An offset takes none."""
        return sum(len(term.multipliers) for term in self.terms)


def _described(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _integers(multipliers: object) -> tuple[int, ...]:
    """Return multipliers as a tuple of integers; PlanesError for floats, whose sums would not be exact."""
    try:
        return tuple(operator.index(m) for m in multipliers)  # type: ignore[attr-defined]
    except TypeError:
        raise PlanesError(
            f"multipliers must be a tuple of integers, one for each plane, got {multipliers!r}: put what is no integer "
            "into scale, which multiplies them all, or give each plane a Term of its own"
        ) from None


def _checked_scale(scale: object, shape: torch.Size, name: str) -> Tensor:
    """Return a scale or an offset without its gradient; PlanesError if it does not go with a tensor of the shape."""
    if not isinstance(scale, Tensor) or not scale.is_floating_point():
        raise PlanesError(f"{name} must be a float tensor, for instance torch.tensor(1.0), got {_described(scale)}")
    channels = scale.ndim == 1 and len(shape) > 0 and len(scale) in (1, shape[0])
    spread = scale.ndim == len(shape) and all(n in (1, m) for n, m in zip(scale.shape, shape, strict=True))
    if scale.ndim > 0 and not channels and not spread:
        raise PlanesError(
            f"{name} must have shape (), (channels,) of axis 0, or as many axes as the tensor {tuple(shape)}, got "
            f"{tuple(scale.shape)}"
        )
    return scale.detach()


def _check_zero_points(zero_points: object, shape: torch.Size, signed: bool) -> None:
    """PlanesError unless these are zero points of a tensor of the shape."""
    if not isinstance(zero_points, Tensor) or zero_points.dtype != torch.int64 or zero_points.ndim != 1:
        raise PlanesError(f"zero_points must be an int64 tensor (channels,), got {_described(zero_points)}")
    if len(shape) < 2 or len(zero_points) not in (1, shape[1]):
        raise PlanesError(f"zero_points of {len(zero_points)} channels do not fit axis 1 of a tensor {tuple(shape)}")
    if signed:
        raise PlanesError("zero_points go with planes of 0 and 1 (signed=False)")


def by_channel(values: Tensor, ndim: int) -> Tensor:
    """Return values of shape (C,) shaped to multiply a weight of `ndim` axes, channels first; others as they are."""
    return values.reshape(-1, *[1] * (ndim - 1)) if values.ndim == 1 else values


def sign_planes(levels: Tensor, scale: Tensor, offset: Tensor | None = None) -> Planes:
    """Return the planes of scale * sign(levels) + offset, with sign(0) = +1."""
    return Planes((Term(sign_bits(levels), True, (1,), scale),), offset)


def sign_bits(levels: Tensor) -> Tensor:
    """Return bool (1, *shape) of levels in {-1, +1}, or of numbers whose signs they are: True is -1."""
    return (levels < 0)[None]


def ternary_bits(levels: Tensor) -> Tensor:
    """Return bool (2, *shape) of levels in {-1, 0, +1}, for multipliers (1, -1): the positive, the negative plane."""
    return torch.stack([levels > 0, levels < 0])


def code_bits(codes: Tensor, bits: int) -> Tensor:
    """Return bool (bits, *shape) of integer codes 0 .. 2^bits - 1, for multipliers (1, 2, 4, ...)."""
    # Bytes, where they hold the codes: a large weight is limited by memory.
    integers = codes.to(torch.int32).to(torch.uint8 if bits <= 8 else torch.int32)
    if bits > 8:
        return torch.stack([(integers & (1 << p)) != 0 for p in range(bits)])
    # A comparison, whose result is bools, takes longer on a CPU than these two.
    return torch.stack([(integers >> p) & 1 for p in range(bits)]).view(torch.bool)


def signed_code_bits(levels: Tensor, bits: int) -> Tensor:
    """Return bool (bits, *shape) of integer levels -2^(bits-1) .. 2^(bits-1) - 1, for `twos_complement` multipliers."""
    return code_bits(levels.to(torch.int32) & (2**bits - 1), bits)


def twos_complement(bits: int) -> tuple[int, ...]:
    """Return (1, 2, 4, ..., -2^(bits-1)), `bits` of them."""
    return (*powers_of_two(bits - 1), -(1 << (bits - 1)))


def powers_of_two(bits: int) -> tuple[int, ...]:
    """Return (1, 2, 4, ...), `bits` of them."""
    return tuple(1 << p for p in range(bits))


def check_bits(bits: int, allowed: Sequence[int] = range(1, 9)) -> int:
    """Return `bits` if it is an allowed width, else raise ValueError."""
    if isinstance(bits, bool) or bits not in allowed:
        raise ValueError(f"bits must be one of {', '.join(map(str, allowed))}, got {bits!r}")
    return int(bits)
