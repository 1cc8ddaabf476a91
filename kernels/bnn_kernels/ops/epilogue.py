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

Where others read v, levels may have a batch norm of their own in front, v * level_scale + level_shift, rounded once.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from bnn_kernels import checks
from bnn_kernels.bits.level_bytes import LevelTensor, level_code, new_level_bytes
from bnn_kernels.bits.quotient import Quotient, product_of, quotient_of
from bnn_kernels.bits.tensor import BitTensor, pack_codes, raise_nan, words_for
from bnn_kernels.bits.uniform import UniformLevels
from bnn_kernels.compile.isa import has
from bnn_kernels.compile.jit import jit
from bnn_kernels.compile.simd import float32x8, float32x16
from bnn_kernels.ops.finishing import (
    ACTIVATION,
    AFFINE,
    AFTER,
    BEFORE,
    BITS,
    CLAMP,
    CORRECTS,
    DIVIDES,
    KEEP,
    LANES,
    NORM,
    OWN,
    SAME,
    SHIFT,
    BytesOutput,
    EpilogueOutput,
    PlanesOutput,
    StraightOutput,
    addresses,
    finisher,
    held_finisher,
    lanes_of,
)
from bnn_kernels.runtime.arrays import aligned, new_array
from bnn_kernels.runtime.cache_lines import zeros_at_line
from bnn_kernels.runtime.recording import new_flag
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import contiguous

# Positions with fewer channels than this, where they fill no vectors, are finished several at a time.
MOST_SIDE_BY_SIDE = 64
# Rows whose same channels are finished one after the other: what these need stays in registers.
AT_A_TIME = 4
LARGEST_FLOAT = float(np.finfo(np.float32).max)
_NO_MAP = np.empty(0, np.float32)
_NO_BITS = np.empty(0, np.uint8)


@functools.cache
def _rows_kernel(kind: type) -> Any:
    """Return the kernel for rows of y float32 or int32 flat (R, C), with a kind of output of `finishing`."""
    finish, (hold, finish_held) = finisher(kind), held_finisher(kind, 16)

    def epilogue_rows(y, output, first, last):
        ready = addresses(output)
        channels = ready.channels
        scratch = np.zeros(8, np.float32)
        wide = channels - channels % 16
        for start in range(first, last, AT_A_TIME):
            end = min(start + AT_A_TIME, last)
            for c in range(0, wide, 16):
                held = hold(c, ready)
                for row in range(start, end):
                    v = float32x16.load_as_floats(y, np.uint64(row * channels + c))
                    finish_held(v, row, c, channels - c, held, ready)
            for row in range(start, end):
                for c in range(wide, channels, 8):
                    at = row * channels + c
                    left = channels - c
                    if left >= 8:
                        v = float32x8.load_as_floats(y, np.uint64(at))
                    else:
                        for k in range(left):
                            scratch[k] = np.float32(y[at + k])
                        v = float32x8.load(scratch, np.uint64(0))
                    finish(v, row, c, left, ready)

    epilogue_rows.__name__ = epilogue_rows.__qualname__ = f"epilogue_rows_{finish.py_func.__name__}"
    return jit(epilogue_rows)


def _side_by_side(output: EpilogueOutput, table: np.ndarray, times: int) -> EpilogueOutput:
    """Return an output whose positions are so many of those of another, with the table of so many."""
    return output._replace(channels=output.channels * times, table=table, row_bytes=output.row_bytes * times)


def _behind(output: EpilogueOutput, first: int) -> EpilogueOutput:
    """Return an output of floats and bytes from a position on."""
    at = first * output.channels
    return output._replace(residual=output.residual[at:], out=output.out[at:], bits=output.bits[at:])


class Epilogue:
    """Affine, residual, activation and next levels of a layer's output, in one pass; see the module for the order.

    channels: C. scale, shift, norm_scale, norm_shift, pre, slope, post: float32 (C,) or None. residual: whether a
    second map is added, "before" or "after" the activation. low, high: the ends of a clamp. bounds float32 (C,) with
    flip bool (C,) or None: also return the signs, bit = (v < bounds) xor flip. levels: also return these levels, if
    there are no bounds; as_bytes: as `LevelBytes` rather than as planes; level_scale, level_shift: float32 (C,) or
    None. ValueError on shapes that do not fit, on NaN.
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
        as_bytes: bool = False,
        level_scale: np.ndarray | None = None,
        level_shift: np.ndarray | None = None,
    ):
        if residual not in (None, "before", "after"):
            raise ValueError(f"residual must be 'before', 'after' or None, got {residual!r}")
        low, high = checks.number(low, "low"), checks.number(high, "high")
        if not low <= high:
            raise ValueError(f"low must not be above high, got {low} and {high}")
        self.channels = checks.integer(channels, "channels", 1)
        self.residual = residual
        self.low, self.high = np.float32(low), np.float32(high)
        directions = np.zeros(self.channels, bool)
        if flip is not None:
            directions = checks.exactly(flip, "flip", np.bool_, (self.channels,))
        if flip is not None and bounds is None:
            raise ValueError("flip needs bounds")
        if levels is not None:
            checks.instance(levels, UniformLevels, "levels")
            if bounds is not None:
                raise ValueError("an epilogue makes signs or levels, not both: give bounds or levels")
        if as_bytes and levels is None:
            raise ValueError("levels as bytes need levels")
        has_own = level_scale is not None or level_shift is not None
        if has_own and levels is None:
            raise ValueError("level_scale and level_shift need levels")
        self.levels, self.as_bytes = levels, as_bytes
        activation = any(part is not None for part in (pre, slope, post))
        clamps = bool(self.low > -np.inf or self.high < np.inf)
        self.parts = (
            (BEFORE if residual == "before" else AFTER if residual == "after" else 0)
            | (AFFINE if scale is not None or shift is not None else 0)
            | (SHIFT if shift is not None else 0)
            | (NORM if norm_scale is not None or norm_shift is not None else 0)
            | (ACTIVATION if activation else 0)
            | (CLAMP if clamps else 0)
            | (BITS if bounds is not None else 0)
            | (OWN if has_own else 0)
        )
        rounding = self._rounding()
        # The vectors that there are, in the order of the kernels: nothing is held twice.
        self._rows: dict[str, int] = {}
        given = {
            AFFINE: {"scale": (scale, 1), "shift": (shift, 0)},
            NORM: {"norm_scale": (norm_scale, 1), "norm_shift": (norm_shift, 0)},
            ACTIVATION: {"pre": (pre, 0), "slope": (slope, 1), "post": (post, 0)},
            BITS: {"bounds": (bounds, 0)},
            OWN: {"level_scale": (level_scale, 1), "level_shift": (level_shift, 0)},
        }
        rows = {name: row for part, named in given.items() if self.parts & part for name, row in named.items()}
        self._lanes = lanes_of.py_func(self.channels)
        self.table = zeros_at_line((SAME + len(rows) * self._lanes,), np.float32)
        self.table[:SAME] = np.repeat(np.array((self.low, self.high, *rounding), np.float32), LANES)
        for i, (name, (value, default)) in enumerate(rows.items()):
            self._rows[name] = SAME + i * self._lanes
            self._row(name)[:] = default if value is None else self._vector(name, value)
        self.packed_flip = np.packbits(directions, bitorder="little")
        self._straight_table = self.table
        self._repeated: np.ndarray | None = None
        self._straight = self._is_straight()

    def _rounding(self) -> tuple[float | np.float32, ...]:
        """Return how levels are rounded, as in the table: a factor, the clamp, and minus the step that divides."""
        levels = self.levels
        if levels is None:
            return 0, 0, 0, 0
        by = quotient_of(levels) if has("fma") or has("neon") else None
        if by is None:
            self.parts |= DIVIDES if levels.divides else 0
            return levels.factor, levels.low, levels.high, 0
        self.parts |= CORRECTS
        if self.parts & OWN:  # the epilogue's own clamp comes before another norm
            return (*by, -levels.factor)
        return (*self._inside(by), -levels.factor)

    def _inside(self, by: Quotient) -> Quotient:
        """Return the same with the ends of the epilogue's own clamp, where they come first."""
        ends = (np.clip(end, by.least, by.most) for end in (self.low, self.high))
        return Quotient(by.factor, *ends)

    def _is_straight(self) -> bool:
        """Whether levels of integers take no more than a `StraightOutput`; makes its table."""
        levels, others = self.levels, BEFORE | AFTER | ACTIVATION | DIVIDES | OWN
        if levels is None or not self.as_bytes or self.parts & others:
            return False
        largest = 2.0**31
        for scale, shift in (("scale", "shift"), ("norm_scale", "norm_shift")):
            if scale in self._rows:
                gain, offset = (np.abs(self._row(name)).max(initial=0) for name in (scale, shift))
                largest = largest * float(gain) + float(offset)
                if not largest < LARGEST_FLOAT / 2:
                    return False
        if not self.parts & CORRECTS:
            by = product_of(levels)
            if by is None:
                return False
            self._straight_table = aligned(self.table)
            self._straight_table[:SAME] = np.repeat(np.array((0, 0, *self._inside(by), 0), np.float32), LANES)
        return True

    def _row(self, name: str) -> np.ndarray:
        return self.table[self._rows[name] :][: self.channels]

    @property
    def bounds(self) -> np.ndarray | None:
        """Of signs, float32 (C,)."""
        return self._row("bounds") if "bounds" in self._rows else None

    @property
    def level_norm(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Scale and shift in front of the levels alone, float32 (C,) each."""
        return (self._row("level_scale"), self._row("level_shift")) if self.parts & OWN else None

    def quantizer(self) -> "Epilogue":
        """Return what makes the same signs or levels of finished floats, and nothing else."""
        flip = None if self.bounds is None else self.flip
        gain, offset = self.level_norm or (None, None)
        return Epilogue(
            self.channels, bounds=self.bounds, flip=flip, levels=self.levels, level_scale=gain, level_shift=offset
        )

    @property
    def flip(self) -> np.ndarray:
        """Of signs, bool (C,)."""
        return np.unpackbits(self.packed_flip, count=self.channels, bitorder="little").astype(bool)

    def _vector(self, name: str, value: np.ndarray) -> np.ndarray:
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

    @property
    def kind(self) -> Any:
        """The type of its outputs (`Any`, since mypy takes no type of a NamedTuple for hashable)."""
        return EpilogueOutput if self.levels is None else BytesOutput if self.as_bytes else PlanesOutput

    def output(
        self, shape: tuple[int, ...], residual: np.ndarray | None, keep: bool, straight: bool = False
    ) -> tuple[EpilogueOutput, Callable[[], tuple[np.ndarray | None, LevelTensor | None]]]:
        """Return where a kernel writes an output of shape (N, H, W, C), and what hands it out afterwards.

        straight: whether the kernel's sums are integers with a factor of 1, see `StraightOutput`.
        """
        if not keep and not self.multipliers:
            raise ValueError("nothing to compute: neither floats are kept nor bounds or levels given")
        rest = self.check(shape, residual)
        floats = new_array(shape, np.float32, "an output") if keep else None
        n, h, w, channels = shape
        planes, row_bytes = len(self.multipliers), words_for(channels) * 8
        base = 0 if self.levels is None else self.levels.zero
        made: LevelTensor | None = None
        bits = _NO_BITS
        if self.as_bytes:
            made = new_level_bytes((n, channels, h, w), False, self.multipliers)
            bits, row_bytes = made.data, channels
            base += level_code(self.multipliers, False).base
        elif planes:
            size = (planes, n, h, w, words_for(channels))
            words = new_array(size, np.uint64, "an output", zeros=channels % 64 != 0)
            made = self._bits(words, (n, channels, h, w))
            bits = words.view(np.uint8).reshape(-1)
        nan = new_flag(raise_nan)

        def results() -> tuple[np.ndarray | None, LevelTensor | None]:
            if nan[0]:
                raise_nan()
            return floats, made

        out = _NO_MAP if floats is None else floats.reshape(-1)
        parts = self.parts | (KEEP if keep else 0)
        table, flip = self.table, self.packed_flip
        sizes = (planes, math.prod(shape[:3]) * row_bytes, row_bytes, base)
        if straight and self._straight and not keep:
            table = self._straight_table
            return StraightOutput(parts, channels, table, flip, rest, out, bits, *sizes, nan), results
        return self.kind(parts, channels, table, flip, rest, out, bits, *sizes, nan), results

    def _bits(self, words: np.ndarray, shape: tuple[int, ...]) -> BitTensor:
        return BitTensor(words, shape, self.levels is None, self.multipliers)

    def __call__(
        self, y: np.ndarray, residual: np.ndarray | None = None, keep: bool = True
    ) -> tuple[np.ndarray | None, LevelTensor | None]:
        """Return (float32 (N, H, W, C) or None, signs or levels or None) of y float32 or int32 (N, H, W, C).

        keep: whether the floats are wanted. ValueError on shapes that do not fit and on a NaN on its way into bits.
        """
        y = checks.array(y, "the input of the epilogue", False)
        if y.dtype not in (np.float32, np.int32):
            raise TypeError(f"the epilogue takes float32 or int32, got {y.dtype}")
        output, results = self.output(y.shape, residual, keep)
        flat, rows, times = contiguous(y).reshape(-1), math.prod(y.shape[:3]), self._times
        kernel, whole = _rows_kernel(self.kind), rows // times * times if times > 1 else 0
        if whole:
            together = _side_by_side(output, self._repeated_table(), times)
            run_rows(kernel, whole // times, whole * self.channels // LANES * 4, flat, tuple(together))
        if rows > whole:
            left = _behind(output, whole) if whole else output
            work = (rows - whole) * self.channels // 2
            run_rows(kernel, rows - whole, work, flat[whole * self.channels :], tuple(left))
        return results()

    @property
    def _times(self) -> int:
        """How many positions are finished side by side: few channels leave most of a vector's lanes empty.

        Floats and bytes of neighbouring positions lie next to each other, so they are one position of more channels;
        words of bits do not.
        """
        times = LANES // math.gcd(self.channels, LANES)
        has_words = bool(self.multipliers) and not self.as_bytes
        return 1 if has_words or self.channels >= MOST_SIDE_BY_SIDE else times

    def _repeated_table(self) -> np.ndarray:
        """Return the table of so many positions side by side; made once."""
        if self._repeated is None:
            times = self._times
            lanes = lanes_of.py_func(self.channels * times)
            rows = self.table[SAME:].reshape(-1, self._lanes)[:, : self.channels]
            table = np.zeros((len(rows), lanes), np.float32)
            table[:, : self.channels * times] = np.tile(rows, times)
            self._repeated = aligned(np.concatenate([self.table[:SAME], table.reshape(-1)]))
        return self._repeated

    def apply_reference(
        self, y: np.ndarray, residual: np.ndarray | None = None, keep: bool = True
    ) -> tuple[np.ndarray | None, BitTensor | None]:
        """Return what `__call__` returns, levels as planes, in plain NumPy."""
        row = self._row
        v: Any = y.astype(np.float32)
        if self.parts & AFFINE:
            v = v * row("scale") + row("shift")
        if self.parts & NORM:  # the product of two float32 is exact in float64
            v = (v.astype(np.float64) * row("norm_scale") + row("norm_shift")).astype(np.float32)
        if self.residual == "before":
            v = v + residual
        if self.parts & ACTIVATION:
            v = v - row("pre")
            v = np.where(v < 0, v * row("slope"), v) + row("post")
        if self.parts & CLAMP:
            v = np.minimum(np.maximum(v, self.low), self.high)
        if self.residual == "after":
            v = v + residual
        if not self.multipliers:
            return v, None
        of_levels = v
        if self.parts & OWN:
            of_levels = (v.astype(np.float64) * row("level_scale") + row("level_shift")).astype(np.float32)
        if np.isnan(of_levels).any():
            raise_nan()
        codes = (v < row("bounds")) ^ self.flip if self.levels is None else self.levels.codes(of_levels)
        words = pack_codes(codes.astype(np.uint8), len(self.multipliers))
        n, h, w, c = y.shape
        return v if keep else None, self._bits(words, (n, c, h, w))
