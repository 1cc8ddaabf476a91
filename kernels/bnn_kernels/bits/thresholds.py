"""Integer thresholds: what conv + scale + batch norm + activation + quantizer become.

Every step between an integer dot product and the next quantizer is monotone in each channel, so the level index is
a count of thresholds: level = #{i : (dot >= t[i]) xor flip}. A falling channel (batch norm with gamma < 0) flips; a
constant one (gamma = 0) has thresholds at the ends of int32.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bnn_kernels import checks
from bnn_kernels.bits.level_bytes import LevelTensor
from bnn_kernels.bits.level_quantize import quantize_to_bytes
from bnn_kernels.bits.planes import check_planes
from bnn_kernels.bits.quantize import MOST_COMPARED, in_order, level_bits
from bnn_kernels.bits.tensor import BitTensor, words_for
from bnn_kernels.compile.jit import jit
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty, zeros


@jit
def _sign_bits(dot, t, flip, words, first, last):
    """dot int32 (R, O), t int32 (O,), flip uint8 (O,) -> words uint64 (R, V): (dot < t) xor flip."""
    channels = dot.shape[1]
    for row in range(first, last):
        for v in range(words.shape[1]):
            word = np.uint64(0)
            start = v * 64
            for b in range(min(64, channels - start)):
                below = np.uint64(dot[row, start + b] < t[start + b])
                word |= (below ^ np.uint64(flip[start + b])) << np.uint64(b)
            words[row, v] = word


class Thresholds:
    """Thresholds of one layer: t int32 (L-1, O), flip bool (O,), codes uint8 (L,) of planes (signed, multipliers).

    as_bytes: set it to get levels as `LevelBytes` rather than as planes.
    """

    as_bytes = False

    def __init__(self, t: np.ndarray, flip: np.ndarray, codes: np.ndarray, signed: bool, multipliers: Sequence[int]):
        self.multipliers = check_planes(multipliers, signed)
        self.signed = bool(signed)
        t = checks.exactly(t, "thresholds (levels - 1, channels)", np.int32, (None, None))
        flip = checks.exactly(flip, "flip", np.bool_, t.shape[1:])
        codes = checks.exactly(codes, "codes", np.uint8, (len(t) + 1,))
        if codes.max() >> len(self.multipliers):
            raise ValueError(f"code {codes.max()} does not fit {len(self.multipliers)} planes")
        self.t, self.flip, self.codes = t, flip, codes
        self.channels = t.shape[1]
        self._ordered: np.ndarray | None = None
        # Two levels, lower one stored as 1: the plain sign, one comparison a bit.
        self.is_sign = len(codes) == 2 and tuple(codes) == (1, 0)
        self._flip = flip.astype(np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ordered": None}

    def _in_order(self) -> np.ndarray:
        """Return the thresholds as the kernels take them, made at the first use."""
        if self._ordered is None:
            self._ordered = in_order(self.t, self.flip)
        return self._ordered

    @classmethod
    def sign(cls, t: np.ndarray, flip: np.ndarray) -> "Thresholds":
        """Thresholds of a sign: bit = (dot < t) xor flip, t int32 (O,), flip bool (O,)."""
        t = checks.exactly(t, "thresholds of a sign", np.int32, (None,))
        return cls(t[None], flip, np.array([1, 0], np.uint8), True, (1,))

    @property
    def nbytes(self) -> int:
        """Bytes of thresholds, directions and codes."""
        return self.t.nbytes + self.flip.nbytes + self.codes.nbytes

    def __call__(self, dot: np.ndarray) -> LevelTensor:
        """Return the levels of int32 dots (N, H, W, O), logical shape (N, O, H, W)."""
        dot = checks.exactly(dot, "the dot products", np.int32, (None, None, None, self.channels))
        n, h, w, o = dot.shape
        planes = len(self.multipliers)
        shape = (n, o, h, w)
        if self.as_bytes:
            made = (self.codes, self.signed, self.multipliers)
            return quantize_to_bytes(dot, shape, self._in_order(), self._flip, *made)
        flat = dot.reshape(-1, o)
        if self.is_sign:
            words = empty((1, n, h, w, words_for(o)), np.uint64)
            run_rows(
                _sign_bits,
                n * h * w,
                dot.size,
                flat,
                self._in_order()[0],
                self._flip,
                words.reshape(-1, words.shape[-1]),
            )
        else:
            words = zeros((planes, n, h, w, words_for(o)), np.uint64)
            out = words.reshape(planes, -1, words.shape[-1])
            compares = len(self.codes) <= MOST_COMPARED
            tables = (self._in_order(), self._flip, self.codes, compares, out, np.zeros(1, np.uint8))
            run_rows(level_bits, n * h * w, 2 * dot.size, flat, *tables)
        return BitTensor(words, shape, self.signed, self.multipliers)


def check_thresholds(thresholds: Thresholds, filters: int) -> None:
    """TypeError if these are no thresholds, ValueError if they are not those of so many output channels."""
    checks.instance(thresholds, Thresholds, "the thresholds")
    if thresholds.channels != filters:
        raise ValueError(f"{thresholds.channels} thresholds for {filters} output channels")
