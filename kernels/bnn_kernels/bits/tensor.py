"""BitTensor: a tensor as bit planes, channels packed 64 to a word; and how floats and levels become one.

Bit b of word v is channel 64 v + b (least significant bit first). Tail bits are 0. Channels are last in memory, so
the words of one pixel are neighbours, and so are the pixels of one row.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnn_kernels import checks
from bnn_kernels.bits.planes import check_planes, code_of_level, encode, level_of_code
from bnn_kernels.bits.quantize import MOST_COMPARED, level_bits
from bnn_kernels.compile.jit import jit
from bnn_kernels.compile.simd import float32x8, uint64x8
from bnn_kernels.runtime.recording import new_flag
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty, zeros

WORD_BITS = 64


def words_for(channels: int) -> int:
    """Return how many 64-bit words hold `channels` bits."""
    return -(-channels // WORD_BITS)


@functools.lru_cache(maxsize=1024, typed=True)
def _check_planes(multipliers: tuple[int, ...], signed: bool) -> tuple[int, ...]:
    return check_planes(multipliers, signed)


def check_shape(shape: tuple[int, ...]) -> None:
    """ValueError unless this is the logical shape of a tensor of levels."""
    if not 2 <= len(shape) <= 4 or any(type(side) is not int or side < 0 for side in shape):
        raise ValueError(f"the shape of bits must be (N, C, H, W), (N, C, L) or (N, K) of integers, got {shape}")


@dataclass(frozen=True, eq=False, slots=True)
class BitTensor:
    """Bit planes of a tensor of integer levels: level = sum_p multipliers[p] * plane[p].

    words: uint64 (P, N, H, W, ceil(C/64)); a (N, C, L) tensor has H = 1, a (N, K) tensor H = W = 1 and C = K.
    shape: the logical shape, (N, C, H, W), (N, C, L) or (N, K).
    signed: planes are {-1,+1} (bit 1 is -1) or {0,1} (bit 1 is 1). TypeError or ValueError if they do not fit together.
    """

    words: np.ndarray
    shape: tuple[int, ...]
    signed: bool = True
    multipliers: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        words, shape, multipliers = self.words, self.shape, self.multipliers
        if type(shape) is not tuple or type(multipliers) is not tuple or type(self.signed) is not bool:
            self._take_sequences()
            shape, multipliers = self.shape, self.multipliers
        _check_planes(multipliers, self.signed)
        check_shape(shape)
        rank = len(shape)
        height, width = shape[2:] if rank == 4 else (1, shape[2]) if rank == 3 else (1, 1)
        fits = (len(multipliers), shape[0], height, width, -(-shape[1] // WORD_BITS))
        if type(words) is not np.ndarray or words.dtype != np.uint64 or words.shape != fits:
            got = f"{words.dtype} {words.shape}" if isinstance(words, np.ndarray) else type(words).__name__
            raise ValueError(f"the words of bits {shape} in {fits[0]} planes must be uint64 {fits}, got {got}")
        if not words.flags.writeable:
            object.__setattr__(self, "words", words.copy())

    def _take_sequences(self) -> None:
        """Make tuples of int, and a bool, of what is like them; TypeError if it is not."""
        if not isinstance(self.signed, (bool, np.bool_)):
            raise TypeError(f"signed must be True or False, got {self.signed!r}")
        for name in ("shape", "multipliers"):
            value = getattr(self, name)
            if not isinstance(value, (tuple, list, np.ndarray)):
                raise TypeError(f"the {name} of bits must be a tuple of integers, got {value!r}")
            sides = tuple(int(v) if isinstance(v, np.integer) else v for v in value)
            object.__setattr__(self, name, sides)
        object.__setattr__(self, "signed", bool(self.signed))

    def __reduce__(self) -> tuple[Any, ...]:
        return BitTensor, (self.words, self.shape, self.signed, self.multipliers)

    @property
    def map_size(self) -> tuple[int, int, int]:
        """(N, H, W)."""
        n, height, width = self.words.shape[1:4]
        return n, height, width

    def with_shape(self, shape: tuple[int, ...]) -> "BitTensor":
        """Return the same bits under another logical shape."""
        return BitTensor(self.words, shape, self.signed, self.multipliers)

    @property
    def nbytes(self) -> int:
        """Bytes of the words."""
        return self.words.nbytes

    def __repr__(self) -> str:
        kind = "{-1,+1}" if self.signed else "{0,1}"
        return f"BitTensor(shape={self.shape}, planes={kind} x {self.multipliers}, {self.nbytes} bytes)"


@jit
def _pack_signs(x, words, nan, first, last):
    """x float (R, C), words uint64 (R, V): bit = x < 0; nan[0] = 1 if a NaN was met."""
    channels = x.shape[1]
    bad = False
    for row in range(first, last):
        for v in range(words.shape[1]):
            word = np.uint64(0)
            start = v * 64
            for b in range(min(64, channels - start)):
                value = x[row, start + b]
                word |= np.uint64(value < 0) << np.uint64(b)
                bad |= value != value
            words[row, v] = word
    if bad:
        nan[0] = 1


@jit
def _pack_by_bounds(x, bounds, flip, words, nan, first, last):
    """x float32 flat (R, C), bounds float32 (C,), flip and words uint64 (V,), (R, V): bit = (x < bound) xor flip."""
    channels = len(bounds)
    full, rest = channels // 64, channels % 64
    bad = np.uint64(0)
    for row in range(first, last):
        for v in range(full):
            at, bound = np.uint64(row * channels + v * 64), np.uint64(v * 64)
            word = flip[v]  # in a register until it is whole
            for i in range(0, 64, 16):
                low, high = np.uint64(i), np.uint64(i + 8)
                word ^= float32x8.less_mask(x, at + low, bounds, bound + low) << low
                word ^= float32x8.less_mask(x, at + high, bounds, bound + high) << high
                bad |= float32x8.either_nan_mask(x, at + low, at + high)
            words[row, v] = word
        if rest:
            start = full * 64
            word = flip[full]
            for i in range(0, rest - rest % 8, 8):
                at = np.uint64(row * channels + start + i)
                word ^= float32x8.less_mask(x, at, bounds, np.uint64(start + i)) << np.uint64(i)
                bad |= float32x8.nan_mask(x, at)
            for i in range(rest - rest % 8, rest):
                value = x[row * channels + start + i]
                word ^= np.uint64(value < bounds[start + i]) << np.uint64(i)
                bad |= np.uint64(value != value)
            words[row, full] = word
    if bad != 0:
        nan[0] = 1


@jit
def _pack_channels_first(x, words, size, nan, first, last):
    """x float32 flat (N, C, pixels), words uint64 flat (N, pixels, V): bit = x < 0; rows are blocks of eight pixels.

    Lanes are pixels: 64 channels of eight pixels become eight words without a transposition.
    """
    channels, pixels, word_count = size
    blocks = (pixels + 7) // 8
    bad = np.uint64(0)
    for row in range(first, last):
        n = row // blocks
        p = (row - n * blocks) * 8
        # The last block begins earlier and packs some pixels again; a small map goes pixel by pixel.
        start = min(p, pixels - 8)
        for v in range(word_count):
            here = min(64, channels - v * 64)
            at = (n * channels + v * 64) * pixels
            if pixels >= 8:
                packed = uint64x8.zero()
                for c in range(here):
                    k = np.uint64(at + c * pixels + start)
                    packed = uint64x8.either(packed, uint64x8.word_if_negative(x, k, np.uint64(1) << np.uint64(c)))
                    bad |= float32x8.nan_mask(x, k)
                for i in range(8):
                    words[(n * pixels + start + i) * word_count + v] = uint64x8.lane(packed, i)
                continue
            for i in range(pixels):
                word = np.uint64(0)
                for c in range(here):
                    value = x[at + c * pixels + i]
                    word |= np.uint64(value < 0) << np.uint64(c)
                    bad |= np.uint64(value != value)
                words[(n * pixels + i) * word_count + v] = word
    if bad != 0:
        nan[0] = 1


def channels_last(x: np.ndarray) -> np.ndarray:
    """Return a contiguous (N, H, W, C) copy or view; (N, C, L) has H = 1, (N, K) has H = W = 1."""
    if x.ndim == 2:
        return np.ascontiguousarray(x).reshape(x.shape[0], 1, 1, x.shape[1])
    if x.ndim == 3:
        return np.ascontiguousarray(x.transpose(0, 2, 1))[:, None]
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


SHAPES = "(N, C, H, W), (N, C, L) or (N, K)"


def _check_float(x: np.ndarray) -> np.ndarray:
    x = checks.floats(x, "the input of pack", SHAPES, (2, 3, 4), False, "; integer levels go through pack_levels")
    # Half floats would be compiled for nothing: every float16 is a float32.
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)


def raise_nan() -> None:
    """Raise the error for a NaN on its way into bits."""
    raise ValueError(
        "NaN in the input of pack: a NaN has no sign. Look for a division by zero or an overflow before it"
    )


def pack(x: np.ndarray) -> BitTensor:
    """Pack the signs of a float array: bit 1 where x < 0, so sign(0) = sign(-0.0) = +1.

    x: float (N, C, H, W), (N, C, L) or (N, K), any strides. Returns one signed plane. TypeError if not float,
    ValueError on another number of dimensions or on NaN.
    """
    x = _check_float(x)
    if x.ndim == 4 and x.dtype == np.float32 and x.flags.c_contiguous and min(x.shape) > 0:
        return _pack_contiguous(x)
    return pack_channels_last(channels_last(x), tuple(x.shape))


def _pack_contiguous(x: np.ndarray) -> BitTensor:
    n, c, h, w = x.shape
    words = empty((1, n, h, w, words_for(c)), np.uint64)
    nan = new_flag(raise_nan)
    size = (c, h * w, words_for(c))
    run_rows(_pack_channels_first, n * -(-h * w // 8), x.size // 4, x.reshape(-1), words.reshape(-1), size, nan)
    if nan[0]:
        raise_nan()
    return BitTensor(words, x.shape)


def flip_words(flip: np.ndarray) -> np.ndarray:
    """Return uint64 (V,) with bit c set where flip bool (C,) is."""
    return pack_codes(flip.astype(np.uint8)[None], 1).reshape(-1)


def pack_channels_last(x: np.ndarray, shape: tuple[int, ...]) -> BitTensor:
    """Pack the signs of a contiguous float (N, H, W, C) array whose logical shape is `shape`."""
    if x.dtype == np.float32:
        return pack_by_bounds(x, shape, np.zeros(x.shape[3], np.float32), np.zeros(words_for(x.shape[3]), np.uint64))
    n, h, w, c = x.shape
    words = empty((1, n, h, w, words_for(c)), np.uint64)
    nan = new_flag(raise_nan)
    run_rows(_pack_signs, n * h * w, x.size, x.reshape(-1, c), words.reshape(-1, words.shape[-1]), nan)
    if nan[0]:
        raise_nan()
    return BitTensor(words, shape)


def pack_by_bounds(x: np.ndarray, shape: tuple[int, ...], bounds: np.ndarray, flip: np.ndarray) -> BitTensor:
    """Pack bit = (x < bound) xor flip of a contiguous float32 (N, H, W, C) array; ValueError on NaN.

    bounds: float32 (C,); flip: uint64 (V,), see `flip_words`.
    """
    n, h, w, c = x.shape
    words = empty((1, n, h, w, words_for(c)), np.uint64)
    nan = new_flag(raise_nan)
    out = words.reshape(-1, words.shape[-1])
    run_rows(_pack_by_bounds, n * h * w, x.size // 8, x.reshape(-1), bounds, flip, out, nan)
    if nan[0]:
        raise_nan()
    return BitTensor(words, shape)


def quantize_channels_last(
    x: np.ndarray,
    shape: tuple[int, ...],
    thresholds: np.ndarray,
    flip: np.ndarray,
    codes: np.ndarray,
    signed: bool,
    multipliers: tuple[int, ...],
) -> BitTensor:
    """Pack levels of a contiguous float (N, H, W, C) array: level index = #{i : (x >= thresholds[i]) xor flip}.

    thresholds: float32 (L-1, C), `in_order`; flip: uint8 (C,); codes: uint8 (L,), the code of each level index.
    ValueError on NaN.
    """
    n, h, w, c = x.shape
    words = zeros((len(multipliers), n, h, w, words_for(c)), np.uint64)
    nan = new_flag(raise_nan)
    flat = words.reshape(len(multipliers), -1, words.shape[-1])
    compares = len(codes) <= MOST_COMPARED
    run_rows(level_bits, n * h * w, 2 * x.size, x.reshape(-1, c), thresholds, flip, codes, compares, flat, nan)
    if nan[0]:
        raise_nan()
    return BitTensor(words, shape, signed, multipliers)


def pack_codes(codes: np.ndarray, planes: int) -> np.ndarray:
    """Pack uint8 codes (..., C) into uint64 words (P, ..., ceil(C/64)), plain NumPy."""
    channels = codes.shape[-1]
    padded = np.zeros((planes, *codes.shape[:-1], words_for(channels) * WORD_BITS), np.uint8)
    for p in range(planes):
        padded[p, ..., :channels] = (codes >> p) & 1
    packed = np.packbits(padded, axis=-1, bitorder="little")
    return packed.view("<u8").astype(np.uint64, copy=False)


def pack_levels(levels: np.ndarray, multipliers: Sequence[int] = (1,), signed: bool = True) -> BitTensor:
    """Pack integer levels of shape (N, C, H, W), (N, C, L) or (N, K); level = sum_p multipliers[p] * plane[p].

    TypeError if not integers; ValueError on another number of dimensions or a level that has no code.
    """
    checked = check_planes(multipliers, signed)
    levels = checks.integers(levels, "the levels", SHAPES, (2, 3, 4))
    codes = encode(channels_last(levels), checked, bool(signed))
    return BitTensor(pack_codes(codes, len(checked)), tuple(levels.shape), bool(signed), checked)


def unpack_codes(bits: BitTensor) -> np.ndarray:
    """Return uint8 (N, H, W, C): the code of every element."""
    channels = bits.shape[1]
    as_bytes = np.ascontiguousarray(bits.words).astype("<u8", copy=False).view(np.uint8)
    planes = np.unpackbits(as_bytes, axis=-1, bitorder="little")[..., :channels]
    codes = planes[0].copy()
    for p in range(1, len(planes)):
        codes |= planes[p] << p
    return codes


def unpack_channels_last(bits: BitTensor) -> np.ndarray:
    """Return float32 (N, H, W, C): the integer levels."""
    return level_of_code(bits.multipliers, bits.signed).astype(np.float32)[unpack_codes(bits)]


def unpack(bits: BitTensor) -> np.ndarray:
    """Return the integer levels as float32 of the logical shape: +1 and -1 for what `pack` returns."""
    checks.instance(bits, BitTensor, "the input of unpack")
    levels = unpack_channels_last(bits)
    return levels.transpose(0, 3, 1, 2).reshape(bits.shape) if len(bits.shape) < 4 else levels.transpose(0, 3, 1, 2)


def code_of(level: int, bits: Any) -> int:
    """Return the code of one level in the planes of `bits`, a BitTensor or the like; ValueError if it has none."""
    lowest, table = code_of_level(bits.multipliers, bits.signed)
    if not 0 <= level - lowest < len(table) or table[level - lowest] < 0:
        kind = "{-1,+1}" if bits.signed else "{0,1}"
        raise ValueError(f"pad_value {level} is not a level of the input ({kind} planes times {bits.multipliers})")
    return int(table[level - lowest])
