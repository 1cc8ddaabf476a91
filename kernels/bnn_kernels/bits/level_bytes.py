"""Levels as bytes: a tensor of levels, each one unsigned number, as kernels that multiply whole levels read them.

With the planes b_p and multipliers m_p of a `BitTensor`, u >= 0 stands for a level:
    planes {0,1}:   level = sum m_p b_p            = u - base
    planes {-1,+1}: level = sum m_p (1 - 2 b_p)    = sum m_p + 2 base - 2 u,     u = sum m_p b_p + base
where base is minus the sum of the negative multipliers. Channels are last in memory, as everywhere.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.bits.planes import code_of_level, level_of_code
from bnn_kernels.bits.tensor import BitTensor, check_shape, words_for
from bnn_kernels.compile.jit import jit
from bnn_kernels.runtime.arrays import new_array
from bnn_kernels.runtime.threads import run_rows

# Bytes behind the map that may be read, though what is read there does not count.
SLACK = 128


class LevelCode(NamedTuple):
    """level = factor * u + shift with u in 0 .. largest, u = sum_p multipliers[p] * bit[p] + base."""

    factor: int
    shift: int
    largest: int
    base: int

    def of(self, level: int) -> int | None:
        """Return u of a level, None if it is no whole number in range."""
        u, rest = divmod(level - self.shift, self.factor)
        return u if rest == 0 and 0 <= u <= self.largest else None


def level_code(multipliers: tuple[int, ...], signed: bool) -> LevelCode:
    """Return how the levels of these planes become unsigned numbers."""
    base = -sum(m for m in multipliers if m < 0)
    largest = sum(abs(m) for m in multipliers)
    if signed:
        return LevelCode(-2, sum(multipliers) + 2 * base, largest, base)
    return LevelCode(1, -base, largest, base)


def fit_bytes(multipliers: tuple[int, ...], signed: bool) -> bool:
    """Whether a byte holds every level of these planes."""
    return level_code(multipliers, signed).largest <= 255


@functools.cache
def bytes_of_codes(multipliers: tuple[int, ...], signed: bool) -> np.ndarray:
    """Return uint8 (2**P,): u of every code; ValueError if a byte does not hold them."""
    if not fit_bytes(multipliers, signed):
        raise ValueError(f"levels of planes times {multipliers} do not fit a byte")
    code = level_code(multipliers, signed)
    table = ((level_of_code(multipliers, signed) - code.shift) // code.factor).astype(np.uint8)
    table.flags.writeable = False
    return table


@functools.cache
def _codes_of_bytes(multipliers: tuple[int, ...], signed: bool) -> np.ndarray:
    """Return uint8 (256,): the smallest code of every u, 0 for what is none."""
    code = level_code(multipliers, signed)
    lowest, codes = code_of_level(multipliers, signed)
    table = np.zeros(256, np.uint8)
    levels = code.factor * np.arange(code.largest + 1) + code.shift
    table[: len(levels)] = codes[levels - lowest].clip(0)
    return table


@dataclass(frozen=True, eq=False, slots=True)
class LevelBytes:
    """Levels as bytes, see the module; shape, signed and multipliers are those of the same levels as a `BitTensor`.

    data: uint8 flat (N * H * W * C + SLACK,): u of every level, channels last; what is behind them may be anything. A
    (N, C, L) tensor has H = 1, a (N, K) tensor H = W = 1 and C = K. ValueError if they do not fit together.
    """

    data: np.ndarray
    shape: tuple[int, ...]
    signed: bool
    multipliers: tuple[int, ...]

    def __post_init__(self) -> None:
        check_shape(self.shape)
        if not fit_bytes(self.multipliers, self.signed):
            raise ValueError(f"levels of planes times {self.multipliers} do not fit a byte")
        size = math.prod(self.shape) + SLACK
        if self.data.dtype != np.uint8 or self.data.shape != (size,):
            raise ValueError(
                f"the bytes of levels {self.shape} must be uint8 ({size},), got {self.data.dtype} {self.data.shape}"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return LevelBytes, (self.data, self.shape, self.signed, self.multipliers)

    @property
    def map_size(self) -> tuple[int, int, int]:
        """(N, H, W)."""
        n, _, *extent = self.shape
        height, width = extent if len(extent) == 2 else (1, extent[0] if extent else 1)
        return n, height, width

    @property
    def nbytes(self) -> int:
        """Bytes of the levels."""
        return self.data.nbytes

    @property
    def u(self) -> np.ndarray:
        """A view uint8 (N, H, W, C)."""
        return self.data[: len(self.data) - SLACK].reshape(*self.map_size, self.shape[1])

    def with_shape(self, shape: tuple[int, ...]) -> "LevelBytes":
        """Return the same levels under another logical shape."""
        return LevelBytes(self.data, shape, self.signed, self.multipliers)

    def codes(self) -> np.ndarray:
        """Return uint8 (N, H, W, C): the code of every level, as `tensor.unpack_codes` does."""
        return _codes_of_bytes(self.multipliers, self.signed)[self.u]

    def __repr__(self) -> str:
        kind = "{-1,+1}" if self.signed else "{0,1}"
        return f"LevelBytes(shape={self.shape}, planes={kind} x {self.multipliers}, {self.nbytes} bytes)"


def codes_of_bytes(x: LevelBytes) -> np.ndarray:
    """Return uint8 (256,): the code of the level that each byte stands for, 0 for bytes that are none."""
    return _codes_of_bytes(x.multipliers, x.signed)


# A register of levels, in either form.
LevelTensor = BitTensor | LevelBytes


def new_level_bytes(shape: tuple[int, ...], signed: bool, multipliers: tuple[int, ...]) -> LevelBytes:
    """Return levels that are still to be written, in memory of the running model's workspace if there is one."""
    data = new_array((math.prod(shape) + SLACK,), np.uint8, "an output")
    return LevelBytes(data, shape, signed, multipliers)


@jit
def _planes_of_bytes(u, codes, words, channels, first, last):
    """Rows of words uint64 (P, R, V), tail bits 0, of u uint8 flat (R, C); codes: uint8 (256,)."""
    planes, _, word_count = words.shape
    sums = np.empty(planes, np.uint64)
    for row in range(first, last):
        for v in range(word_count):
            sums[:] = np.uint64(0)
            at = row * channels + v * 64
            for c in range(min(64, channels - v * 64)):
                code = np.uint64(codes[u[at + c]])
                for p in range(planes):
                    sums[p] |= ((code >> np.uint64(p)) & np.uint64(1)) << np.uint64(c)
            for p in range(planes):
                words[p, row, v] = sums[p]


def as_planes(x: LevelTensor) -> BitTensor:
    """Return the same levels as bit planes."""
    if isinstance(x, BitTensor):
        return x
    channels = x.shape[1]
    words = new_array((len(x.multipliers), *x.map_size, words_for(channels)), np.uint64, "the bit planes")
    out = words.reshape(len(words), -1, words.shape[-1])
    codes = _codes_of_bytes(x.multipliers, x.signed)
    run_rows(_planes_of_bytes, out.shape[1], x.data.size * len(words), x.data, codes, out, channels)
    return BitTensor(words, x.shape, x.signed, x.multipliers)
