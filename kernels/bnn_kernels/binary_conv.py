"""Binary and bit-serial convolution: exact integers from bit planes, and thresholds that give bits again.

Everything is one operation. With bits a of the input and w of the weight, a product of two plane values is
    {-1,+1} x {-1,+1}:  (1 - 2a)(1 - 2w) = 1 - 2a - 2w + 4 a&w
    {0,1}   x {0,1}  :                                   a&w
    a {0,1}, w {-1,+1}:      a (1 - 2w)  =       a      - 2 a&w
    a {-1,+1}, w {0,1}:      (1 - 2a) w  =           w  - 2 a&w
so a dot product is  c0 * taps + c1 * popcount(a) + c2 * popcount(w) + c3 * popcount(a & w), summed over the taps
that lie inside the map: zero padding is exact because an outside tap counts for nothing. popcount(a) is needed once a
position and popcount(w) once a filter and tap; only popcount(a & w) costs inner-loop work. Multi-bit operands are sums
of such convolutions over pairs of planes, times the planes' multipliers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bnn_kernels._jit import inline, jit
from bnn_kernels._popcount import popcount
from bnn_kernels.bit_planes import check_planes, encode, level_of_code
from bnn_kernels.bit_tensor import BitTensor, code_of, pack, pack_codes
from bnn_kernels.threads import run_rows
from bnn_kernels.thresholds import Thresholds

# Filters that one pass over the input words serves: four accumulators, the input word stays in a register.
TILE = 4


@inline
def _and_2x4(window, words, w, j, filter_words):
    """popcount(window & w[j:]) of two windows (2 * words, flat) against four filters `filter_words` apart."""
    s0 = s1 = s2 = s3 = np.uint64(0)
    t0 = t1 = t2 = t3 = np.uint64(0)
    second = np.uint64(words)
    for v in range(words):
        k = np.uint64(v)
        x = window[k]
        y = window[k + second]
        w0 = w[j + k]
        w1 = w[j + k + filter_words]
        w2 = w[j + k + np.uint64(2) * filter_words]
        w3 = w[j + k + np.uint64(3) * filter_words]
        s0 += popcount(x & w0)
        s1 += popcount(x & w1)
        s2 += popcount(x & w2)
        s3 += popcount(x & w3)
        t0 += popcount(y & w0)
        t1 += popcount(y & w1)
        t2 += popcount(y & w2)
        t3 += popcount(y & w3)
    return s0, s1, s2, s3, t0, t1, t2, t3


@inline
def _and_1x4(window, words, w, j, filter_words):
    """The same for the first window only."""
    s0 = s1 = s2 = s3 = np.uint64(0)
    for v in range(words):
        k = np.uint64(v)
        x = window[k]
        s0 += popcount(x & w[j + k])
        s1 += popcount(x & w[j + k + filter_words])
        s2 += popcount(x & w[j + k + np.uint64(2) * filter_words])
        s3 += popcount(x & w[j + k + np.uint64(3) * filter_words])
    return s0, s1, s2, s3


@inline
def _inside(start, dilation, taps, size):
    """Range of taps t with 0 <= start + t * dilation < size."""
    low = 0 if start >= 0 else (-start + dilation - 1) // dilation
    high = 0 if start >= size else (size - 1 - start) // dilation + 1
    high = min(taps, high)
    return min(low, high), high


@inline
def _gather(a, at, bit, channels, window, to, position):
    """OR `channels` bits, from bit `bit` of a[at:], into window[to:] at bit `position`."""
    moved = 0
    while moved < channels:
        source = bit + moved
        target = position + moved
        count = min(64 - (source & 63), 64 - (target & 63), channels - moved)
        word = a[at + (source >> 6)] >> np.uint64(source & 63)
        if count < 64:
            word &= (np.uint64(1) << np.uint64(count)) - np.uint64(1)
        window[to + (target >> 6)] |= word << np.uint64(target & 63)
        moved += count


@inline
def _fill_window(a, position, out_size, size, geometry, g, window, to):
    """Write the bits under the filter at one output position as one dense run; outside taps are 0.

    Returns the range of taps inside the map and the popcount of the window.
    """
    h, width, words, channels, _filters, _padded, window_words = size
    kh, kw, sy, sx, py, px, dy, dx = geometry
    ho, wo = out_size
    n = position // (ho * wo)
    oy = (position - n * ho * wo) // wo
    ox = position - (n * ho + oy) * wo
    y0 = oy * sy - py
    x0 = ox * sx - px
    ky0, ky1 = _inside(y0, dy, kh, h)
    kx0, kx1 = _inside(x0, dx, kw, width)
    for v in range(window_words):
        window[to + v] = np.uint64(0)
    for ky in range(ky0, ky1):
        line = (n * h + y0 + ky * dy) * width + x0
        for kx in range(kx0, kx1):
            at = (line + kx * dx) * words
            _gather(a, at, g * channels, channels, window, to, (ky * kw + kx) * channels)
    total = np.uint64(0)
    for v in range(window_words):
        total += popcount(window[to + v])
    return ky0, ky1, kx0, kx1, np.int64(total)


@inline
def _filter_bits(w_count, at, kh, kw, ky0, ky1, kx0, kx1):
    """Set bits of one filter under the taps inside the map; w_count[at + kh*kw] is the sum over all of them."""
    if ky1 - ky0 == kh and kx1 - kx0 == kw:
        return np.int64(w_count[at + kh * kw])
    total = np.int64(0)
    for ky in range(ky0, ky1):
        for kx in range(kx0, kx1):
            total += w_count[at + ky * kw + kx]
    return total


@jit
def _conv(a, w, w_count, c, multiplier, out, size, geometry, first, last):
    """Add one pair of planes to out int32 (N, Ho, Wo, O), for the positions (n, oy, ox) first..last.

    a uint64 flat (N, H, W, V), channels of all groups side by side; w uint64 flat (G, padded filters, window words);
    w_count int32 flat (G, padded filters, kh*kw + 1), bits of every tap and their sum; c = (c0, c1, c2, c3) of the
    module's docstring; size = (H, W, V, channels of a group, filters of a group, padded filters, window words);
    geometry = (kh, kw, sy, sx, py, px, dy, dx).

    The bits under the filter are gathered once a position into a dense run: 20 channels and 25 taps are 8 words,
    not 25, and the inner loop neither knows of borders nor of dilation. Two positions share each weight word.
    """
    channels, filters, padded, words = size[3:]
    kh, kw = geometry[:2]
    c0, c1, c2, c3 = c
    out_size = (out.shape[1], out.shape[2])
    flat = out.reshape(-1)
    out_channels = out.shape[3]
    groups = out_channels // filters
    filter_words = np.uint64(words)
    taps = kh * kw + 1
    window = np.empty(2 * words, np.uint64)
    for position in range(first, last, 2):
        both = position + 1 < last
        for g in range(groups):
            ya0, ya1, xa0, xa1, bits = _fill_window(a, position, out_size, size, geometry, g, window, 0)
            base0 = c0 * (ya1 - ya0) * (xa1 - xa0) * channels + c1 * bits
            yb0, yb1, xb0, xb1, base1 = ya0, ya1, xa0, xa1, base0
            if both:
                yb0, yb1, xb0, xb1, bits = _fill_window(a, position + 1, out_size, size, geometry, g, window, words)
                base1 = c0 * (yb1 - yb0) * (xb1 - xb0) * channels + c1 * bits
            for o in range(0, filters, 4):
                j = np.uint64((g * padded + o) * words)
                if both:
                    s0, s1, s2, s3, t0, t1, t2, t3 = _and_2x4(window, words, w, j, filter_words)
                else:
                    s0, s1, s2, s3 = _and_1x4(window, words, w, j, filter_words)
                    t0 = t1 = t2 = t3 = np.uint64(0)
                s = (s0, s1, s2, s3)
                t = (t0, t1, t2, t3)
                for k in range(min(4, filters - o)):
                    at = (g * padded + o + k) * taps
                    to = position * out_channels + g * filters + o + k
                    ones = _filter_bits(w_count, at, kh, kw, ya0, ya1, xa0, xa1) if c2 != 0 else np.int64(0)
                    flat[to] += multiplier * (base0 + c2 * ones + c3 * np.int64(s[k]))
                    if both:
                        ones = _filter_bits(w_count, at, kh, kw, yb0, yb1, xb0, xb1) if c2 != 0 else np.int64(0)
                        flat[to + out_channels] += multiplier * (base1 + c2 * ones + c3 * np.int64(t[k]))


def pair(value: int | Sequence[int], name: str, smallest: int) -> tuple[int, int]:
    """Return (y, x) of an int or a pair of ints; ValueError names the argument."""
    try:
        y, x = (value, value) if isinstance(value, (int, np.integer)) else value
        result = int(y), int(x)
        if result != (y, x) or min(result) < smallest or isinstance(value, bool):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be an integer >= {smallest} or a pair (y, x) of them, got {value!r}") from None
    return result


def _coefficients(a_signed: bool, w_signed: bool) -> tuple[int, int, int, int]:
    if a_signed and w_signed:
        return 1, -2, -2, 4
    if a_signed:
        return 0, 0, 1, -2
    return (0, 1, 0, -2) if w_signed else (0, 0, 0, 1)


class PackedConv2d:
    """Convolution of bit planes, exact in int32, without im2col.

    weight: float (O, C/groups, kh, kw), of which the signs are used; integer levels go through `from_levels`.
    stride, padding, dilation: an int or a pair (y, x). pad_value: 0 (outside positions contribute nothing) or
    another integer level of the input, such as +1 or -1. ValueError on shapes that do not fit.
    """

    def __init__(
        self,
        weight: np.ndarray,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        pad_value: int = 0,
    ):
        if not np.issubdtype(np.asarray(weight).dtype, np.floating):
            raise TypeError(f"weight must be floats (their signs are used), got dtype {np.asarray(weight).dtype}")
        if np.isnan(weight).any():
            raise ValueError("NaN in the weight: a NaN has no sign")
        signs = np.where(np.asarray(weight) < 0, -1, 1)
        self._build(signs, (1,), True, stride, padding, dilation, groups, pad_value)

    @classmethod
    def from_levels(
        cls,
        levels: np.ndarray,
        multipliers: Sequence[int] = (1,),
        signed: bool = True,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        pad_value: int = 0,
    ) -> "PackedConv2d":
        """Build from integer weight levels (O, C/groups, kh, kw), level = sum_p multipliers[p] * plane[p]."""
        self = cls.__new__(cls)
        self._build(levels, multipliers, signed, stride, padding, dilation, groups, pad_value)
        return self

    def _build(
        self,
        levels: np.ndarray,
        multipliers: Sequence[int],
        signed: bool,
        stride: int | Sequence[int],
        padding: int | Sequence[int],
        dilation: int | Sequence[int],
        groups: int,
        pad_value: int,
    ) -> None:
        if levels.ndim != 4 or 0 in levels.shape:
            raise ValueError(f"weight must have shape (O, C/groups, kh, kw) with no empty side, got {levels.shape}")
        if isinstance(groups, bool) or groups < 1 or levels.shape[0] % groups:
            raise ValueError(f"groups must divide the {levels.shape[0]} output channels, got {groups}")
        if int(pad_value) != pad_value:
            raise ValueError(f"pad_value must be an integer level of the input such as 0, +1 or -1, got {pad_value}")
        self.shape = tuple(levels.shape)
        self.stride = pair(stride, "stride", 1)
        self.padding = pair(padding, "padding", 0)
        self.dilation = pair(dilation, "dilation", 1)
        self.groups = int(groups)
        self.pad_value = int(pad_value)
        self.multipliers = check_planes(multipliers, signed)
        self.signed = bool(signed)
        self._max_level = int(np.abs(level_of_code(self.multipliers, self.signed)).max())
        o, channels, kh, kw = self.shape
        self.in_channels = channels * self.groups
        self.filters = o // self.groups
        padded = -(-self.filters // TILE) * TILE
        codes = encode(levels.transpose(0, 2, 3, 1), self.multipliers, self.signed)
        planes = ((codes[None] >> np.arange(len(self.multipliers)).reshape(-1, 1, 1, 1, 1)) & 1).astype(np.int32)
        per_tap = planes.sum(-1).reshape(len(planes), self.groups, self.filters, kh * kw)
        counts = np.zeros((len(planes), self.groups, padded, kh * kw + 1), np.int32)
        counts[:, :, : self.filters, :-1] = per_tap
        counts[:, :, : self.filters, -1] = per_tap.sum(-1)
        words = pack_codes(codes.reshape(o, -1), len(planes))
        layout = np.zeros((len(planes), self.groups, padded, words.shape[-1]), np.uint64)
        layout[:, :, : self.filters] = words.reshape(len(planes), self.groups, self.filters, -1)
        self._size = (channels, self.filters, padded, words.shape[-1])
        self._weights = [(plane.reshape(-1), count.reshape(-1)) for plane, count in zip(layout, counts, strict=True)]

    @property
    def nbytes(self) -> int:
        """Bytes of the weights at 1 bit a weight and plane, each plane rounded up to whole bytes."""
        return len(self.multipliers) * -(-int(np.prod(self.shape)) // 8)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (Ho, Wo) for an (H, W) map; ValueError if the filter does not fit."""
        size = []
        for extent, k, s, p, d in zip(
            (height, width), self.shape[2:], self.stride, self.padding, self.dilation, strict=True
        ):
            out = (extent + 2 * p - d * (k - 1) - 1) // s + 1
            if extent + 2 * p < d * (k - 1) + 1:
                raise ValueError(
                    f"the {self.shape[2]}x{self.shape[3]} filter with dilation {self.dilation} does not fit "
                    f"the {height}x{width} map with padding {self.padding}"
                )
            size.append(out)
        return size[0], size[1]

    def __call__(self, x: BitTensor | np.ndarray) -> np.ndarray:
        """Return int32 (N, O, Ho, Wo) (a view with channels last in memory), exact. A float input is packed first."""
        return self.channels_last(x if isinstance(x, BitTensor) else pack(x)).transpose(0, 3, 1, 2)

    def channels_last(self, bits: BitTensor) -> np.ndarray:
        """Return int32 (N, Ho, Wo, O) of a packed input (N, C, H, W)."""
        if len(bits.shape) != 4:
            raise ValueError(f"a convolution takes an input of shape (N, C, H, W), got {bits.shape}")
        if bits.shape[1] != self.in_channels:
            raise ValueError(f"the input has {bits.shape[1]} channels, the weight takes {self.in_channels}")
        return self._dots(bits)

    def _dots(self, bits: BitTensor) -> np.ndarray:
        """Return int32 (N, Ho, Wo, O) of words whose channel count has been checked."""
        self._check_sum(bits)
        n, h, w = bits.words.shape[1:4]
        ho, wo = self.output_size(h, w)
        out = np.zeros((n, ho, wo, self.shape[0]), np.int32)
        if out.size == 0:
            return out
        words, padding = self._padded(bits)
        size = (*words.shape[2:], *self._size)
        geometry = (*self.shape[2:], *self.stride, *padding, *self.dilation)
        c = _coefficients(bits.signed, self.signed)
        positions = n * ho * wo
        work = positions * self._weights[0][0].size
        for p, a_multiplier in enumerate(bits.multipliers):
            plane = words[p].reshape(-1)
            for (weight, counts), w_multiplier in zip(self._weights, self.multipliers, strict=True):
                multiplier = a_multiplier * w_multiplier
                run_rows(_conv, positions, work, plane, weight, counts, c, multiplier, out, size, geometry)
        return out

    def _padded(self, bits: BitTensor) -> tuple[np.ndarray, tuple[int, int]]:
        """Return words with a border of pad_value's bits and the padding that is left to skip."""
        py, px = self.padding
        if self.pad_value == 0 or (py == 0 and px == 0):
            return bits.words, self.padding
        code = code_of(self.pad_value, bits)
        planes, n, h, w, v = bits.words.shape
        border = pack_codes(np.full((1, bits.shape[1]), code, np.uint8), planes)
        padded = np.empty((planes, n, h + 2 * py, w + 2 * px, v), np.uint64)
        padded[:] = border.reshape(planes, 1, 1, 1, v)
        padded[:, :, py : py + h, px : px + w] = bits.words
        return padded, (0, 0)

    def _check_sum(self, bits: BitTensor) -> None:
        largest = int(np.abs(level_of_code(bits.multipliers, bits.signed)).max())
        terms = int(np.prod(self.shape[1:]))
        if terms * largest * self._max_level > np.iinfo(np.int32).max:
            raise ValueError(f"{terms} products of up to {largest} x {self._max_level} can overflow int32")

    def with_threshold(self, t: np.ndarray, flip: np.ndarray) -> "ThresholdConv2d":
        """Return a convolution to bits: bit = (dot < t) xor flip, with t int32 (O,) and flip bool (O,)."""
        return ThresholdConv2d(self, Thresholds.sign(t, flip))

    def with_thresholds(
        self, t: np.ndarray, flip: np.ndarray, codes: np.ndarray, signed: bool, multipliers: Sequence[int]
    ) -> "ThresholdConv2d":
        """Return a convolution to levels: level index = count_i((dot >= t[i, o]) xor flip[o]), then its code.

        t int32 (L-1, O), flip bool (O,), codes uint8 (L,); signed and multipliers say what the code's planes mean.
        """
        return ThresholdConv2d(self, Thresholds(t, flip, codes, signed, multipliers))

    def __repr__(self) -> str:
        o, c, kh, kw = self.shape
        return (
            f"{type(self).__name__}({c * self.groups}->{o}, {kh}x{kw}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, groups={self.groups}, pad_value={self.pad_value}, "
            f"planes={len(self.multipliers)}, {self.nbytes} bytes)"
        )


class ThresholdConv2d:
    """A PackedConv2d (or PackedLinear) followed by integer thresholds: bits in, bits out."""

    def __init__(self, conv: Any, thresholds: Thresholds):
        if thresholds.channels != conv.shape[0]:
            raise ValueError(f"{thresholds.channels} thresholds for {conv.shape[0]} output channels")
        self.conv = conv
        self.thresholds = thresholds

    def __call__(self, x: BitTensor | np.ndarray) -> BitTensor:
        """Return the packed levels of the thresholded sums, shape (N, O, Ho, Wo) or (N, O)."""
        dot = self.conv.channels_last(x if isinstance(x, BitTensor) else pack(x))
        return self.thresholds(dot)
