"""What a quantized input is in a packed plan: one integer a number, whose planes are those of all its terms."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from bnn_kernels.bits.planes import MAX_PLANES, level_of_code
from torch import Tensor

from bnn.converter.errors import ConversionError
from bnn.planes import Planes, Term, powers_of_two
from bnn.quantizers.base import Quantizer

# Far beyond what a network computes, and far enough from the end of float32 that a batch norm does not overflow.
LARGEST_FLOAT = 2.0**60
# Floats of both signs between which a quantizer is held to be monotone, evenly spaced in their order.
PROBES = 1 << 10
# So many evenly spaced levels are computed if they can be: a table is larger, and slower, as it is a pass of its own.
# Two are signs, of one threshold.
FEWEST_SPACED = 3


def as_one_term(planes: Planes) -> Term:
    """Return the term whose planes are those of all terms: the term itself, of several their code as an integer.

    Of a term with zero points, which differ by channel, it is the code too.
    """
    if len(planes.terms) == 1 and planes.terms[0].zero_points is None:
        return planes.terms[0]
    bits = torch.cat([term.bits for term in planes.terms])
    return Term(bits, False, powers_of_two(len(bits)), torch.tensor(1.0))


def values_of_codes(planes: Planes) -> np.ndarray:
    """Return float32 (2^P,): the value of every code of the planes of all terms, as the quantizer computes it.

    Zero points are left out: of (C,) channels use `values_by_channel`.
    """
    count = planes.bits
    code = torch.arange(1 << count)
    bits = torch.stack([(code >> p) & 1 for p in range(count)]).bool()
    terms, start = [], 0
    for term in planes.terms:
        end = start + len(term.multipliers)
        terms.append(replace(term, bits=bits[start:end], zero_points=None))
        start = end
    return Planes(tuple(terms), planes.offset).value().to(torch.float32).numpy()


def values_by_channel(planes: Planes) -> np.ndarray:
    """Return float32 (C, 2^P), or (1, 2^P): the value of every code in every channel of planes with zero points."""
    (term,) = planes.terms
    assert term.zero_points is not None
    count = len(term.multipliers)
    bits = (torch.arange(1 << count) >> torch.arange(count)[:, None]) & 1
    spread = bits.bool()[:, :, None].expand(-1, -1, len(term.zero_points))
    return Planes((replace(term, bits=spread),)).value().to(torch.float32).T.contiguous().numpy()


@dataclass(frozen=True)
class LevelTable:
    """The levels of a quantized input in ascending order of their values: codes[i] is the code of the i-th."""

    levels: np.ndarray
    codes: np.ndarray
    signed: bool
    multipliers: tuple[int, ...]

    @classmethod
    def of(cls, planes: Planes, met: np.ndarray | None = None) -> "LevelTable":
        """Return the table of planes. met: levels in the order in which rising inputs meet them; it decides on ties."""
        term = as_one_term(planes)
        levels, codes = np.unique(level_of_code(term.multipliers, term.signed), return_index=True)
        values = values_of_codes(planes)[codes]
        order = np.full(len(levels), len(levels))
        if met is not None:
            found, first = np.unique(met, return_index=True)
            order[np.searchsorted(levels, found)] = first
        rank = np.lexsort((order, values))
        return cls(levels[rank], codes[rank].astype(np.uint8), term.signed, term.multipliers)

    @property
    def is_sign(self) -> bool:
        """Whether this is one {-1,+1} plane, of which +1 is the larger value."""
        return self.signed and self.multipliers == (1,) and bool(self.codes[0])

    @cached_property
    def _place(self) -> Tensor:
        """The index of each level, counted from the smallest."""
        place = np.zeros(int(self.levels.max() - self.levels.min()) + 1, np.int64)
        place[self.levels - self.levels.min()] = np.arange(len(self.levels))
        return torch.from_numpy(place)

    def rank(self, levels: Tensor) -> Tensor:
        """Return the index of each level in ascending order of values."""
        return self._place[levels.to(torch.int64) - int(self.levels.min())]


def check_input(quantizer: Quantizer, planes: Planes, path: str) -> None:
    """ConversionError unless the quantizer makes planes of fixed scales, one for the whole tensor, of its inputs."""
    name = type(quantizer).__name__
    if not quantizer.elementwise:
        raise ConversionError(
            f"{path}: {name} computes its scale from the whole input, so it is no set of fixed "
            "thresholds; use an elementwise input quantizer such as SteSign or DoReFaActivation"
        )
    scales = [part.scale for part in planes.parts]
    if any(scale.ndim != 0 for scale in scales):
        raise ConversionError(
            f"{path}: {quantizer} has other scales than one for the whole input, which no sum can use"
        )
    if not all(bool(scale.isfinite()) for scale in scales):
        raise ConversionError(f"{path}: {quantizer} has a scale of NaN or infinity; its training diverged")
    if any(part.zero_points is not None for part in planes.parts) and not _has_plain_codes(planes):
        raise ConversionError(
            f"{path}: {quantizer} has zero points beside several terms, an offset, or other multipliers than "
            "(f, 2 f, 4 f, ...): with zero points a packed network takes one term of those"
        )
    if planes.bits > MAX_PLANES:
        raise ConversionError(f"{path}: {quantizer} has {planes.bits} bit planes; up to {MAX_PLANES} can be packed")


def _has_plain_codes(planes: Planes) -> bool:
    """Whether planes are one term whose levels are their codes times a factor, so that zero points may follow."""
    multipliers = planes.terms[0].multipliers
    return len(planes.parts) == 1 and multipliers == tuple(multipliers[0] << p for p in range(len(multipliers)))


def probes() -> Tensor:
    """Return float32 (PROBES - 1,), from -LARGEST_FLOAT to LARGEST_FLOAT."""
    end = int(torch.tensor(LARGEST_FLOAT, dtype=torch.float32).view(torch.int32))
    magnitudes = torch.linspace(0, end, PROBES // 2, dtype=torch.float32).to(torch.int32).view(torch.float32)
    return torch.cat([-magnitudes.flip(0), magnitudes[1:]])


def monotone_table(
    quantizer: Quantizer, planes: Planes, levels: Callable[[Tensor], Tensor], channels: int, path: str
) -> LevelTable:
    """Return the table of a quantizer of inputs; ConversionError if its values fall somewhere.

    levels: maps floats (T, channels) to levels.
    """
    found = levels(probes()[:, None].expand(-1, channels))
    table = LevelTable.of(planes, found.T.reshape(-1).numpy())
    if bool((table.rank(found).diff(dim=0) < 0).any()):
        raise ConversionError(
            f"{path}: the values of {quantizer} do not rise with its input, so they are no set of thresholds; use an "
            "input quantizer that never falls"
        )
    return table
