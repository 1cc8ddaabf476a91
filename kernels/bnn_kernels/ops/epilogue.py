"""The epilogue: what follows a layer, in one pass over its output.

Per channel, float32, every operation rounded once and none contracted but that of the batch norm, so that the plain
NumPy version beside it gives the same numbers:

    v = y * scale + shift                          the scale of the weights, a bias
    v = v * norm_scale + norm_shift                batch norm, rounded once where the CPU can, as PyTorch does it
    v = v + residual                               if the residual comes "before" the activation
    v = v - pre;  v = v * slope if v < 0;  v = v + post     PReLU, RPReLU (ReActNet, section 4.2)
    v = min(max(v, low), high)                     ReLU, hardtanh
    v = v + residual                               if it comes "after"
    bit = (v < bounds) xor flip                    the next layer's signs,
    level = round(min(max(v / step, least), most)) or its levels, in {0,1} planes; see `UniformLevels`
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from bnn_kernels import checks
from bnn_kernels.bits.tensor import BitTensor, pack_codes, raise_nan, words_for
from bnn_kernels.bits.uniform import UniformLevels
from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.compile.simd import byte, float32x8, int32x8
from bnn_kernels.runtime.arrays import new_array
from bnn_kernels.runtime.recording import new_flag
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import contiguous

LANES = float32x8.LANES

# Bits of `Epilogue.parts`: which parts there are.
BEFORE, AFTER, ACTIVATION, CLAMP, BITS, KEEP, NORM, AFFINE, LEVELS, DIVIDES = (1 << i for i in range(10))

_NO_MAP = np.empty(0, np.float32)
_NO_BITS = np.empty(0, np.uint8)


# Rows of `Epilogue.table`, each one number a lane.
ROWS = 13
SCALE, SHIFT, NORM_SCALE, NORM_SHIFT, PRE, SLOPE, POST, LOW, HIGH, BOUNDS, FACTOR, LEAST, MOST = range(ROWS)


class EpilogueOutput(NamedTuple):
    """Where a kernel's sums go through an epilogue, and what it needs for that.

    parts: which parts there are, `BEFORE` to `AFFINE`. table: float32 flat (ROWS, lanes), see `Epilogue.table`. flip:
    uint8 (lanes / 8,). residual, out: float32 flat (positions, channels). bits: uint8 flat
    (planes, positions, row_bytes); plane_bytes: of one of them. nan: uint8 (1,), set where a NaN should become a bit.
    """

    parts: int
    channels: int
    table: np.ndarray
    flip: np.ndarray
    residual: np.ndarray
    out: np.ndarray
    bits: np.ndarray
    planes: int
    plane_bytes: int
    row_bytes: int
    nan: np.ndarray


class EpilogueAddresses(NamedTuple):
    """An `EpilogueOutput` with the addresses of its arrays, for `finish_block`; lanes: of a row of the table."""

    parts: int
    channels: int
    lanes: int
    planes: int
    plane_bytes: int
    row_bytes: int
    table: int
    flip: int
    residual: int
    out: int
    bits: int
    nan: int


@inline
def addresses(output):
    """Return the `EpilogueAddresses` of an `EpilogueOutput` as a tuple, whose arrays the caller keeps alive."""
    output = EpilogueOutput(*output)
    return EpilogueAddresses(
        output.parts,
        output.channels,
        len(output.table) // ROWS,
        output.planes,
        output.plane_bytes,
        output.row_bytes,
        output.table.ctypes.data,
        output.flip.ctypes.data,
        output.residual.ctypes.data,
        output.out.ctypes.data,
        output.bits.ctypes.data,
        output.nan.ctypes.data,
    )


@inline
def finish_block(y, position, c, left, output):
    """Finish channels c .. c+7 of one position from y as floats.

    left: channels from c on; output: `EpilogueAddresses`.
    """
    parts, lanes, table = output.parts, output.lanes, output.table
    count = min(left, 8)
    at = position * output.channels + c
    v = y
    if parts & AFFINE:
        v = float32x8.multiply(v, float32x8.load_from(table, SCALE * lanes + c))
        v = float32x8.add(v, float32x8.load_from(table, SHIFT * lanes + c))
    if parts & NORM:
        gain, offset = (
            float32x8.load_from(table, NORM_SCALE * lanes + c),
            float32x8.load_from(table, NORM_SHIFT * lanes + c),
        )
        v = float32x8.multiply_add(v, gain, offset)
    rest = v
    if parts & (BEFORE | AFTER):
        rest = (
            float32x8.load_from(output.residual, at) if count == 8 else float32x8.load_some(output.residual, at, count)
        )
    if parts & BEFORE:
        v = float32x8.add(v, rest)
    if parts & ACTIVATION:
        v = float32x8.subtract(v, float32x8.load_from(table, PRE * lanes + c))
        v = float32x8.scale_negative(v, float32x8.load_from(table, SLOPE * lanes + c))
        v = float32x8.add(v, float32x8.load_from(table, POST * lanes + c))
    if parts & CLAMP:
        v = float32x8.clamp(
            v, float32x8.load_from(table, LOW * lanes + c), float32x8.load_from(table, HIGH * lanes + c)
        )
    if parts & AFTER:
        v = float32x8.add(v, rest)
    if parts & (BITS | LEVELS):  # one branch for what makes neither
        live = (np.uint64(1) << np.uint64(count)) - np.uint64(1)
        to = position * output.row_bytes + (c >> 3)
        if parts & BITS:
            mask, bad = float32x8.below(v, float32x8.load_from(table, BOUNDS * lanes + c))
            byte.store(output.bits, to, (mask ^ byte.load(output.flip, c >> 3)) & live)
        else:
            factor = float32x8.load_from(table, FACTOR * lanes + c)
            scaled = float32x8.divide(v, factor) if parts & DIVIDES else float32x8.multiply(v, factor)
            least, most = float32x8.load_from(table, LEAST * lanes + c), float32x8.load_from(table, MOST * lanes + c)
            level = float32x8.rounded(float32x8.clamp(scaled, least, most))
            for p in range(output.planes):
                byte.store(output.bits, p * output.plane_bytes + to, int32x8.bit_mask(level, p) & live)
            bad = float32x8.unordered(scaled)
        if bad & live:
            byte.store(output.nan, 0, np.uint64(1))
    if parts & KEEP:
        if count == 8:
            float32x8.store_to(output.out, at, v)
        else:
            float32x8.store_some(output.out, at, v, count)


@jit
def _epilogue_rows(y, output, first, last):
    """Rows of y float32 or int32 flat (R, C); output: `EpilogueOutput`."""
    ready = addresses(output)
    channels = ready.channels
    scratch = np.zeros(8, np.float32)
    for row in range(first, last):
        for c in range(0, channels, 8):
            at = row * channels + c
            left = channels - c
            if left >= 8:
                v = float32x8.load_as_floats(y, np.uint64(at))
            else:
                for k in range(left):
                    scratch[k] = np.float32(y[at + k])
                v = float32x8.load(scratch, np.uint64(0))
            finish_block(v, row, c, left, ready)


class Epilogue:
    """Affine, residual, activation and next levels of a layer's output, in one pass; see the module for the order.

    channels: C. scale, shift, norm_scale, norm_shift, pre, slope, post: float32 (C,) or None. residual: whether a
    second map is added, "before" or "after" the activation. low, high: the ends of a clamp. bounds float32 (C,) with
    flip bool (C,) or None: also return the signs, bit = (v < bounds) xor flip. levels: also return these levels, if
    there are no bounds. ValueError on shapes that do not fit and on NaN.
    """

    def __init__(
        self,
        channels: int,
        *,
        scale: np.ndarray | None = None,
        shift: np.ndarray | None = None,
        norm_scale: np.ndarray | None = None,
        norm_shift: np.ndarray | None = None,
        residual: Literal["before", "after"] | None = None,
        pre: np.ndarray | None = None,
        slope: np.ndarray | None = None,
        post: np.ndarray | None = None,
        low: float = -np.inf,
        high: float = np.inf,
        bounds: np.ndarray | None = None,
        flip: np.ndarray | None = None,
        levels: UniformLevels | None = None,
    ):
        if residual not in (None, "before", "after"):
            raise ValueError(f"residual must be 'before', 'after' or None, got {residual!r}")
        low, high = checks.number(low, "low"), checks.number(high, "high")
        if not low <= high:
            raise ValueError(f"low must not be above high, got {low} and {high}")
        self.channels = checks.integer(channels, "channels", 1)
        self.residual = residual
        self.low, self.high = np.float32(low), np.float32(high)
        self.scale = self._vector("scale", scale, 1)
        self.shift = self._vector("shift", shift, 0)
        self.norm_scale = self._vector("norm_scale", norm_scale, 1)
        self.norm_shift = self._vector("norm_shift", norm_shift, 0)
        self.pre = self._vector("pre", pre, 0)
        self.slope = self._vector("slope", slope, 1)
        self.post = self._vector("post", post, 0)
        self.bounds = None if bounds is None else self._vector("bounds", bounds, 0)
        self.flip = np.zeros(self.channels, bool)
        if flip is not None:
            self.flip = checks.exactly(flip, "flip", np.bool_, (self.channels,))
        if flip is not None and bounds is None:
            raise ValueError("flip needs bounds")
        if levels is not None:
            checks.instance(levels, UniformLevels, "levels")
            if bounds is not None:
                raise ValueError("an epilogue makes signs or levels, not both: give bounds or levels")
        self.levels = levels
        activation = any(part is not None for part in (pre, slope, post))
        clamps = bool(self.low > -np.inf or self.high < np.inf)
        self.parts = (
            (BEFORE if residual == "before" else AFTER if residual == "after" else 0)
            | (AFFINE if scale is not None or shift is not None else 0)
            | (NORM if norm_scale is not None or norm_shift is not None else 0)
            | (ACTIVATION if activation else 0)
            | (CLAMP if clamps else 0)
            | (BITS if bounds is not None else 0)
            | (0 if levels is None else LEVELS | (DIVIDES if levels.divides else 0))
        )
        # Eight lanes more than there are: a block of filters need not begin at a multiple of eight.
        lanes = -(-self.channels // LANES) * LANES + LANES
        self.table = np.zeros((ROWS, lanes), np.float32)
        norm = (self.norm_scale, self.norm_shift)
        rounding = (None, None, None) if levels is None else (levels.factor, levels.low, levels.high)
        bend = (self.pre, self.slope, self.post)
        rows = (self.scale, self.shift, *norm, *bend, self.low, self.high, self.bounds, *rounding)
        for row, value in zip(self.table, rows, strict=True):
            row[: self.channels] = 0 if value is None else value
        self.packed_flip = np.packbits(self.flip, bitorder="little")

    def _vector(self, name: str, value: np.ndarray | None, default: float) -> np.ndarray:
        if value is None:
            return np.full(self.channels, default, np.float32)
        array = checks.exactly(value, name, np.float32, (self.channels,))
        if np.isnan(array).any():
            raise ValueError(f"{name} holds a NaN")
        return array

    @property
    def multipliers(self) -> tuple[int, ...]:
        """Those of the planes that it makes: of signs, of levels, or none."""
        return (1,) if self.bounds is not None else () if self.levels is None else self.levels.multipliers

    def check(self, shape: tuple[int, ...], residual: np.ndarray | None) -> np.ndarray:
        """Return the residual, flat, of an output of shape (N, H, W, C); ValueError if it does not fit."""
        if len(shape) != 4 or shape[3] != self.channels:
            raise ValueError(f"the epilogue takes (N, H, W, {self.channels}), got {shape}")
        if (residual is None) != (self.residual is None):
            raise ValueError("no residual was given" if residual is None else "this epilogue adds no residual")
        if residual is None:
            return _NO_MAP
        rest = checks.array(residual, "the residual", False)
        if rest.shape != shape or rest.dtype != np.float32:
            raise ValueError(f"the residual must be float32 {shape}, got {rest.dtype} {rest.shape}")
        return contiguous(rest).reshape(-1)

    def output(
        self, shape: tuple[int, ...], residual: np.ndarray | None, keep: bool
    ) -> tuple[EpilogueOutput, Callable[[], tuple[np.ndarray | None, BitTensor | None]]]:
        """Return where a kernel writes an output of shape (N, H, W, C), and what hands it out afterwards."""
        if not keep and not self.multipliers:
            raise ValueError("nothing to compute: neither floats are kept nor bounds or levels given")
        rest = self.check(shape, residual)
        floats = new_array(shape, np.float32, "an output") if keep else None
        words = None
        planes, row_bytes = len(self.multipliers), words_for(self.channels) * 8
        if planes:
            size = (planes, *shape[:3], words_for(self.channels))
            words = new_array(size, np.uint64, "an output", zeros=self.channels % 64 != 0)
        nan = new_flag(raise_nan)

        def results() -> tuple[np.ndarray | None, BitTensor | None]:
            if nan[0]:
                raise_nan()
            n, h, w, c = shape
            return floats, None if words is None else self._bits(words, (n, c, h, w))

        out = _NO_MAP if floats is None else floats.reshape(-1)
        bits = _NO_BITS if words is None else words.view(np.uint8).reshape(-1)
        parts = self.parts | (KEEP if keep else 0)
        table, flip = self.table.reshape(-1), self.packed_flip
        size = (planes, math.prod(shape[:3]) * row_bytes, row_bytes)
        return EpilogueOutput(parts, self.channels, table, flip, rest, out, bits, *size, nan), results

    def _bits(self, words: np.ndarray, shape: tuple[int, ...]) -> BitTensor:
        return BitTensor(words, shape, self.levels is None, self.multipliers)

    def __call__(
        self, y: np.ndarray, residual: np.ndarray | None = None, keep: bool = True
    ) -> tuple[np.ndarray | None, BitTensor | None]:
        """Return (float32 (N, H, W, C) or None, signs or levels or None) of y float32 or int32 (N, H, W, C).

        keep: whether the floats are wanted. ValueError on shapes that do not fit and on a NaN on its way into bits.
        """
        y = checks.array(y, "the input of the epilogue", False)
        if y.dtype not in (np.float32, np.int32):
            raise TypeError(f"the epilogue takes float32 or int32, got {y.dtype}")
        output, results = self.output(y.shape, residual, keep)
        rows = math.prod(y.shape[:3])
        run_rows(_epilogue_rows, rows, y.size // 2, contiguous(y).reshape(-1), tuple(output))
        return results()

    def apply_reference(
        self, y: np.ndarray, residual: np.ndarray | None = None, keep: bool = True
    ) -> tuple[np.ndarray | None, BitTensor | None]:
        """Return what `__call__` returns, in plain NumPy."""
        v = y.astype(np.float32) * self.scale + self.shift
        if self.parts & NORM:  # the product of two float32 is exact in float64
            v = (v.astype(np.float64) * self.norm_scale + self.norm_shift).astype(np.float32)
        if self.residual == "before":
            v = v + residual
        if self.parts & ACTIVATION:
            v = v - self.pre
            v = np.where(v < 0, v * self.slope, v) + self.post
        if self.parts & CLAMP:
            v = np.minimum(np.maximum(v, self.low), self.high)
        if self.residual == "after":
            v = v + residual
        if not self.multipliers:
            return v, None
        if np.isnan(v).any():
            raise_nan()
        codes = (v < self.bounds) ^ self.flip if self.levels is None else self.levels.codes(v)
        words = pack_codes(codes.astype(np.uint8), len(self.multipliers))
        n, h, w, c = y.shape
        return v if keep else None, self._bits(words, (n, c, h, w))
