"""Levels that are evenly spaced: one float operation, a clamp and a rounding instead of a table of thresholds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnn_kernels import checks
from bnn_kernels.bits.planes import MAX_PLANES


@dataclass(frozen=True)
class UniformLevels:
    """level = round(min(max(v / factor, low), high)), halves to even, in float32; v * factor unless it divides.

    factor: a positive float32. low <= high: integers that `bits` planes (1, 2, 4, ...) hold, in two's complement
    (the last multiplier negative) where low is negative. zero: an integer that is added to each level, so that planes
    hold low + zero to high + zero, for inputs with zero points. ValueError or TypeError on others.
    """

    factor: float
    divides: bool
    low: int
    high: int
    bits: int
    zero: int = 0

    def __post_init__(self) -> None:
        factor = checks.number(self.factor, "factor")
        if not 0 < factor <= np.finfo(np.float32).max or float(np.float32(factor)) != factor:
            raise ValueError(f"factor must be a positive float32, got {self.factor!r}")
        if not isinstance(self.divides, bool):
            raise TypeError(f"divides must be True or False, got {self.divides!r}")
        bits = checks.integer(self.bits, "bits", 1)
        zero = checks.integer(self.zero, "zero")
        low, high = checks.integer(self.low, "low") + zero, checks.integer(self.high, "high") + zero
        if bits > MAX_PLANES:
            raise ValueError(f"levels have up to {MAX_PLANES} bits, got {bits}")
        least, most = (0, 2**bits - 1) if low >= 0 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        if not least <= low <= high <= most:
            raise ValueError(f"levels from {low} to {high} do not fit {bits} bits")

    @property
    def multipliers(self) -> tuple[int, ...]:
        """What the planes, {0,1} each, count."""
        powers = [1 << p for p in range(self.bits)]
        return (*powers[:-1], -powers[-1] if self.low + self.zero < 0 else powers[-1])

    def codes(self, v: np.ndarray) -> np.ndarray:
        """Return the codes of the levels of float32 numbers, uint8, in plain NumPy."""
        factor = np.float32(self.factor)
        with np.errstate(over="ignore"):
            scaled = v / factor if self.divides else v * factor
        levels = np.rint(np.minimum(np.maximum(scaled, np.float32(self.low)), np.float32(self.high)))
        return ((levels.astype(np.int32) + self.zero) & ((1 << self.bits) - 1)).astype(np.uint8)

    def attribute(self) -> dict[str, Any]:
        """Return the levels as an attribute of a step."""
        names = ("factor", "divides", "low", "high", "bits", *(("zero",) if self.zero else ()))
        return {name: getattr(self, name) for name in names}

    @classmethod
    def of(cls, attribute: Mapping[str, Any]) -> "UniformLevels":
        """Return the levels of an attribute of a step; ValueError or TypeError if it is malformed."""
        names = {"factor", "divides", "low", "high", "bits"}
        if set(attribute) - {"zero"} != names:
            raise ValueError(f"levels have {', '.join(sorted(names))}, got {', '.join(sorted(attribute)) or 'nothing'}")
        return cls(**attribute)
