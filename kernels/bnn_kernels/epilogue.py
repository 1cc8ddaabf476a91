"""The epilogue: what follows a layer, in one pass over its output.

Per channel, float32, every operation rounded once and none contracted, so that the plain NumPy version beside it gives
the same numbers:

    v = y * scale + shift                          batch norm, the scale of the weights, a bias
    v = v + residual                               if the residual comes "before" the activation
    v = v - pre;  v = v * slope if v < 0;  v = v + post     PReLU, RPReLU (ReActNet, section 4.2)
    v = min(max(v, low), high)                     ReLU, hardtanh
    v = v + residual                               if it comes "after"
    bit = (v < bounds) xor flip                    the next layer's signs
"""

from typing import Literal

import numpy as np

from bnn_kernels import _simd
from bnn_kernels._jit import inline, jit
from bnn_kernels.bit_tensor import BitTensor, pack_codes, raise_nan, words_for
from bnn_kernels.threads import run_rows

LANES = _simd.LANES

# Bits of `Epilogue.parts`: which parts there are.
BEFORE, AFTER, ACTIVATION, CLAMP, BITS, KEEP = 1, 2, 4, 8, 16, 32

_NO_MAP = np.empty(0, np.float32)
_NO_BITS = np.empty(0, np.uint8)


@inline
def finish_floats(v, c, residual, rest, parts, channel_tables):
    """Return eight finished floats of channels c .. c+7 from eight scaled ones; `rest` is their residual."""
    pre, slope, post, ends = channel_tables
    if parts & BEFORE:
        v = _simd.add_floats(v, rest)
    if parts & ACTIVATION:
        v = _simd.subtract_floats(v, _simd.load(pre, c))
        v = _simd.scale_negative(v, _simd.load(slope, c))
        v = _simd.add_floats(v, _simd.load(post, c))
    if parts & CLAMP:
        v = _simd.clamp(v, ends)
    if parts & AFTER:
        v = _simd.add_floats(v, rest)
    return v


@inline
def _load_part(array, at, scratch, count):
    """Load `count` floats (8 or fewer) without a read past them."""
    if count >= 8:
        return _simd.load(array, np.uint64(at))
    for k in range(count):
        scratch[k] = array[at + k]
    return _simd.load(scratch, np.uint64(0))


@inline
def write_floats(out, to, v, scratch, count):
    """Write the first `count` lanes."""
    if count >= 8:
        _simd.store(out, np.uint64(to), v)
    else:
        _simd.store(scratch, np.uint64(0), v)
        for k in range(count):
            out[to + k] = scratch[k]


@inline
def finish_block(v, at, c, count, residual, parts, tables, out, bits, byte, scratch, nan):
    """Finish channels c .. c+7 of one position from y as floats: write floats to out[at:] and bits to bits[byte].

    count: how many of the eight are channels (8 or less); tables: see `Epilogue.tables`; scratch float32 (8,).
    """
    scale, shift, pre, slope, post, ends, bounds, flip = tables
    k = np.uint64(c)
    v = _simd.add_floats(_simd.multiply_floats(v, _simd.load(scale, k)), _simd.load(shift, k))
    rest = v
    if parts & (BEFORE | AFTER):
        rest = _load_part(residual, at, scratch, count)
    v = finish_floats(v, k, residual, rest, parts, (pre, slope, post, ends))
    if parts & BITS:
        mask, bad = _simd.below_floats(v, bounds, k)
        live = (np.uint64(1) << np.uint64(min(count, 8))) - np.uint64(1)
        bits[byte] = np.uint8((mask ^ np.uint64(flip[c >> 3])) & live)
        if bad & live:
            nan[0] = 1
    if parts & KEEP:
        write_floats(out, at, v, scratch, count)


@jit
def _epilogue_rows(y, residual, parts, tables, out, bits, row_bytes, channels, nan, first, last):
    """Rows of y float32 or int32 flat (R, C); out float32 flat (R, C), bits uint8 flat (R, row_bytes)."""
    scratch = np.zeros(8, np.float32)
    for row in range(first, last):
        for c in range(0, channels, 8):
            at = row * channels + c
            count = channels - c
            if count >= 8:
                v = _simd.load_as_floats(y, np.uint64(at))
            else:
                for k in range(count):
                    scratch[k] = np.float32(y[at + k])
                v = _simd.load(scratch, np.uint64(0))
            byte = row * row_bytes + (c >> 3)
            finish_block(v, at, c, count, residual, parts, tables, out, bits, byte, scratch, nan)


class Epilogue:
    """Affine, residual, activation and next sign of a layer's output, in one pass; see the module for the order.

    channels: C. scale, shift, pre, slope, post: float32 (C,) or None. residual: whether a second map is added, "before"
    or "after" the activation. low, high: the ends of a clamp. bounds float32 (C,) with flip bool (C,) or None: also
    return the signs, bit = (v < bounds) xor flip. ValueError on shapes that do not fit and on NaN.
    """

    def __init__(
        self,
        channels: int,
        *,
        scale: np.ndarray | None = None,
        shift: np.ndarray | None = None,
        residual: Literal["before", "after"] | None = None,
        pre: np.ndarray | None = None,
        slope: np.ndarray | None = None,
        post: np.ndarray | None = None,
        low: float = -np.inf,
        high: float = np.inf,
        bounds: np.ndarray | None = None,
        flip: np.ndarray | None = None,
    ):
        if residual not in (None, "before", "after"):
            raise ValueError(f"residual must be 'before', 'after' or None, got {residual!r}")
        if not low <= high:
            raise ValueError(f"low must not be above high, got {low} and {high}")
        self.channels = int(channels)
        self.residual = residual
        self.low, self.high = np.float32(low), np.float32(high)
        self.scale = self._vector("scale", scale, 1)
        self.shift = self._vector("shift", shift, 0)
        self.pre = self._vector("pre", pre, 0)
        self.slope = self._vector("slope", slope, 1)
        self.post = self._vector("post", post, 0)
        self.bounds = None if bounds is None else self._vector("bounds", bounds, 0)
        self.flip = np.zeros(self.channels, bool) if flip is None else np.asarray(flip)
        if self.flip.shape != (self.channels,) or self.flip.dtype != np.bool_:
            raise ValueError(f"flip must be bool ({self.channels},), got {self.flip.dtype} {self.flip.shape}")
        if flip is not None and bounds is None:
            raise ValueError("flip needs bounds")
        activation = any(part is not None for part in (pre, slope, post))
        clamps = bool(self.low > -np.inf or self.high < np.inf)
        self.parts = (
            (BEFORE if residual == "before" else AFTER if residual == "after" else 0)
            | (ACTIVATION if activation else 0)
            | (CLAMP if clamps else 0)
            | (BITS if bounds is not None else 0)
        )
        self.tables = (
            *(self._lanes(v) for v in (self.scale, self.shift, self.pre, self.slope, self.post)),
            np.array([self.low, self.high], np.float32),
            self._lanes(np.zeros(self.channels, np.float32) if self.bounds is None else self.bounds),
            np.packbits(self.flip, bitorder="little"),
        )

    def _vector(self, name: str, value: np.ndarray | None, default: float) -> np.ndarray:
        if value is None:
            return np.full(self.channels, default, np.float32)
        array = np.asarray(value)
        if array.shape != (self.channels,) or array.dtype != np.float32:
            raise ValueError(f"{name} must be float32 ({self.channels},), got {array.dtype} {array.shape}")
        if np.isnan(array).any():
            raise ValueError(f"{name} holds a NaN")
        return array

    def _lanes(self, value: np.ndarray) -> np.ndarray:
        """Return the vector filled up to whole vectors of eight."""
        padded = np.zeros(-(-self.channels // LANES) * LANES, np.float32)
        padded[: self.channels] = value
        return padded

    def parts_for(self, keep: bool) -> int:
        """Return the parts of a call that keeps its floats or not."""
        return self.parts | (KEEP if keep else 0)

    def check(self, shape: tuple[int, ...], residual: np.ndarray | None) -> np.ndarray:
        """Return the residual, flat, of an output of shape (N, H, W, C); ValueError if it does not fit."""
        if len(shape) != 4 or shape[3] != self.channels:
            raise ValueError(f"the epilogue takes (N, H, W, {self.channels}), got {shape}")
        if (residual is None) != (self.residual is None):
            raise ValueError("no residual was given" if residual is None else "this epilogue adds no residual")
        if residual is None:
            return _NO_MAP
        if residual.shape != shape or residual.dtype != np.float32:
            raise ValueError(f"the residual must be float32 {shape}, got {residual.dtype} {residual.shape}")
        return np.ascontiguousarray(residual).reshape(-1)

    def outputs(self, shape: tuple[int, ...], keep: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return (floats, bits as bytes, words) to write to, for an output of shape (N, H, W, C)."""
        if not keep and self.bounds is None:
            raise ValueError("nothing to compute: neither floats are kept nor bounds given")
        floats = np.empty(shape, np.float32) if keep else _NO_MAP
        if self.bounds is None:
            return floats, _NO_BITS, None
        make = np.empty if self.channels % 64 == 0 else np.zeros
        words = make((1, *shape[:3], words_for(self.channels)), np.uint64)
        return floats, words.view(np.uint8).reshape(-1), words

    def results(
        self, floats: np.ndarray, words: np.ndarray | None, shape: tuple[int, ...], keep: bool, nan: np.ndarray
    ) -> tuple[np.ndarray | None, BitTensor | None]:
        """Return what `__call__` returns; ValueError if a NaN was met on its way into bits."""
        if nan[0]:
            raise_nan()
        n, h, w, c = shape
        return floats if keep else None, None if words is None else BitTensor(words, (n, c, h, w))

    def __call__(
        self, y: np.ndarray, residual: np.ndarray | None = None, keep: bool = True
    ) -> tuple[np.ndarray | None, BitTensor | None]:
        """Return (float32 (N, H, W, C) or None, signs or None) of y float32 or int32 (N, H, W, C).

        keep: whether the floats are wanted. ValueError on shapes that do not fit and on a NaN on its way into bits.
        """
        if y.dtype not in (np.float32, np.int32):
            raise TypeError(f"the epilogue takes float32 or int32, got {y.dtype}")
        rest = self.check(y.shape, residual)
        floats, as_bytes, words = self.outputs(y.shape, keep)
        nan = np.zeros(1, np.uint8)
        rows = int(np.prod(y.shape[:3]))
        row_bytes = words_for(self.channels) * 8
        flat = (
            np.ascontiguousarray(y).reshape(-1),
            rest,
            self.parts_for(keep),
            self.tables,
            floats.reshape(-1),
            as_bytes,
        )
        run_rows(_epilogue_rows, rows, y.size // 2, *flat, row_bytes, self.channels, nan)
        return self.results(floats, words, y.shape, keep, nan)

    def apply_reference(
        self, y: np.ndarray, residual: np.ndarray | None = None, keep: bool = True
    ) -> tuple[np.ndarray | None, BitTensor | None]:
        """Return what `__call__` returns, in plain NumPy."""
        v = y.astype(np.float32) * self.scale + self.shift
        if self.residual == "before":
            v = v + residual
        if self.parts & ACTIVATION:
            v = v - self.pre
            v = np.where(v < 0, v * self.slope, v) + self.post
        if self.parts & CLAMP:
            v = np.minimum(np.maximum(v, self.low), self.high)
        if self.residual == "after":
            v = v + residual
        if self.bounds is None:
            return v, None
        if np.isnan(v).any():
            raise_nan()
        words = pack_codes(((v < self.bounds) ^ self.flip).astype(np.uint8), 1)
        n, h, w, c = y.shape
        return v if keep else None, BitTensor(words, (n, c, h, w))
