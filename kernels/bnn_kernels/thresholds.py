"""Integer thresholds: what conv + scale + batch norm + activation + quantizer become.

Every step between an integer dot product and the next quantizer is monotone in each channel, so the level index is
a count of thresholds: level = #{i : (dot >= t[i]) xor flip}. A falling channel (batch norm with gamma < 0) flips; a
constant one (gamma = 0) has thresholds at the ends of int32.
"""

from collections.abc import Sequence

import numpy as np

from bnn_kernels._jit import jit
from bnn_kernels.bit_planes import check_planes
from bnn_kernels.bit_tensor import BitTensor, words_for
from bnn_kernels.threads import run_rows


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


@jit
def _level_bits(dot, t, flip, codes, words, first, last):
    """dot int32 (R, O), t int32 (O, L-1), flip uint8 (O,), codes uint8 (L,) -> words uint64 (P, R, V), zeroed.

    t ascends where flip is 0 and descends where it is 1, so the thresholds that count come first.
    """
    for row in range(first, last):
        for c in range(dot.shape[1]):
            value = dot[row, c]
            falls = flip[c] != 0
            level = 0
            end = t.shape[1]
            while level < end:
                middle = (level + end) >> 1
                if (value >= t[c, middle]) ^ falls:
                    level = middle + 1
                else:
                    end = middle
            code = np.uint64(codes[level])
            for p in range(words.shape[0]):
                words[p, row, c >> 6] |= ((code >> np.uint64(p)) & np.uint64(1)) << np.uint64(c & 63)


class Thresholds:
    """Thresholds of one layer: t int32 (L-1, O), flip bool (O,), codes uint8 (L,) of planes (signed, multipliers)."""

    def __init__(self, t: np.ndarray, flip: np.ndarray, codes: np.ndarray, signed: bool, multipliers: Sequence[int]):
        t, flip, codes = np.asarray(t), np.asarray(flip), np.asarray(codes)
        self.multipliers = check_planes(multipliers, signed)
        self.signed = bool(signed)
        if t.ndim != 2 or t.dtype != np.int32:
            raise ValueError(f"thresholds must be int32 (levels - 1, channels), got {t.dtype} {t.shape}")
        if flip.shape != t.shape[1:] or flip.dtype != np.bool_:
            raise ValueError(f"flip must be bool {t.shape[1:]}, got {flip.dtype} {flip.shape}")
        if codes.shape != (len(t) + 1,) or codes.dtype != np.uint8:
            raise ValueError(f"codes must be uint8 ({len(t) + 1},), got {codes.dtype} {codes.shape}")
        if codes.max() >> len(self.multipliers):
            raise ValueError(f"code {codes.max()} does not fit {len(self.multipliers)} planes")
        self.t, self.flip, self.codes = t, flip, codes
        self.channels = t.shape[1]
        ascending = np.sort(t, axis=0)
        self._rows = np.ascontiguousarray(np.where(flip, ascending[::-1], ascending).T)
        # Two levels, lower one stored as 1: the plain sign, one comparison a bit.
        self.is_sign = len(codes) == 2 and tuple(codes) == (1, 0)
        self._flip = flip.astype(np.uint8)
        self._lanes: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def sign(cls, t: np.ndarray, flip: np.ndarray) -> "Thresholds":
        """Thresholds of a sign: bit = (dot < t) xor flip, t int32 (O,), flip bool (O,)."""
        t = np.asarray(t)
        if t.ndim != 1:
            raise ValueError(f"thresholds of a sign must be int32 (channels,), got {t.dtype} {t.shape}")
        return cls(t[None], flip, np.array([1, 0], np.uint8), True, (1,))

    def lanes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (int32 bounds, uint8 flips) of a sign, filled up to whole bytes of channels with what gives bit 0."""
        if self._lanes is None:
            bounds = np.full(-(-self.channels // 8) * 8, np.iinfo(np.int32).min, np.int32)
            bounds[: self.channels] = self.t[0]
            self._lanes = bounds, np.packbits(self.flip, bitorder="little")
        return self._lanes

    @property
    def nbytes(self) -> int:
        """Bytes of thresholds, directions and codes."""
        return self.t.nbytes + self.flip.nbytes + self.codes.nbytes

    def __call__(self, dot: np.ndarray) -> BitTensor:
        """Return the packed levels of contiguous int32 dots (N, H, W, O), logical shape (N, O, H, W)."""
        n, h, w, o = dot.shape
        planes = len(self.multipliers)
        shape = (n, o, h, w)
        flat = dot.reshape(-1, o)
        if self.is_sign:
            words = np.empty((1, n, h, w, words_for(o)), np.uint64)
            run_rows(_sign_bits, n * h * w, dot.size, flat, self.t[0], self._flip, words.reshape(-1, words.shape[-1]))
        else:
            words = np.zeros((planes, n, h, w, words_for(o)), np.uint64)
            work = dot.size * len(self.t)
            out = words.reshape(planes, -1, words.shape[-1])
            run_rows(_level_bits, n * h * w, work, flat, self._rows, self._flip, self.codes, out)
        return BitTensor(words, shape, self.signed, self.multipliers)
