"""What the kernels on bits share: how a sum of products becomes counts of bits, and the rows of bits that they read.

With bits a of the input and w of the weight, a product of two plane values is
    {-1,+1} x {-1,+1}:  (1 - 2a)(1 - 2w) = 1 - 2 (a^w)
    a {0,1}, w {-1,+1}:       a (1 - 2w) = (a^w) - w
    a {-1,+1}, w {0,1}:       (1 - 2a) w = w - 2 (a&w)
    {0,1}   x {0,1}   :                         a&w
so a dot product is a factor times popcount(a ^ w) or popcount(a & w), plus what depends on taps and weights alone. Taps
outside a zero-padded map have a = 0 and must contribute 0, but a ^ w counts w there: that is taken back in the same
table, one number a filter and kind of border, prepared in advance. Multi-bit operands are sums over pairs of planes,
times their multipliers.

Ternary weights of two planes {0,1} are one plane s {0,1} of signs where a mask m is set, and 0 elsewhere. Under the
mask they are weights {-1,+1}, so with a^s counted only there the first two lines hold, 1 being the mask's bit:
    {-1,+1} x {-1,0,+1}:  m - 2 ((a^s)&m)
    a {0,1}, w {-1,0,+1}:     ((a^s)&m) - s
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bnn_kernels.bits.level_bytes import LevelBytes, as_planes
from bnn_kernels.bits.sum_range import INT32, wrapped
from bnn_kernels.bits.tensor import code_of
from bnn_kernels.ops.binary_conv.rows import SLACK, bit_rows, row_length
from bnn_kernels.ops.binary_conv.windows import Kinds, Sizes, Taps
from bnn_kernels.ops.filters import Filters
from bnn_kernels.ops.geometry import Geometry, Maps, border_of
from bnn_kernels.ops.outputs import LazyConstants, Output
from bnn_kernels.ops.weights import LANES, Weights

# Positions that a kernel should get at a time at least: it computes four together.
POSITIONS = 8


def is_ternary(weights: Filters) -> bool:
    """Whether weights are -m, 0 or +m, of two planes {0,1}."""
    return not weights.signed and len(weights.multipliers) == 2 and sum(weights.multipliers) == 0


class BitPath:
    """Constants and input of a kernel on bits.

    masked: whether ternary weights are taken as signs under a mask. factors: of the kernel's sums, one for each plane
    (or pair of planes) of the input. excess: what these sums, times their factors, count too much for each plane of the
    weights. most: the largest sum; by default a window's bits.
    """

    def __init__(
        self,
        weights: Weights,
        geometry: Geometry,
        maps: Maps,
        factors: Sequence[int] | None = None,
        excess: int = 0,
        most: int | None = None,
        masked: bool = False,
    ):
        groups, own, filters = weights.groups, weights.channels, weights.filters
        planes = len(maps.multipliers)
        code = code_of(geometry.pad_value, maps) if geometry.pads_levels else 0
        self._pad_bits = tuple(bool(code >> p & 1) for p in range(planes))
        self._frame, self._channels = geometry.frame, own
        self.groups = groups
        self.join = "masked" if masked else "xor" if weights.signed else "and"
        multipliers = weights.multipliers[:1] if masked else weights.multipliers
        border, factor = border_of(geometry, maps), -2 if maps.signed else 1

        def offsets() -> np.ndarray:
            # What taps inside and outside the map add for each tap.
            if masked:
                everywhere, ones = (multipliers[0] * taps for taps in weights.tap_signs())
            else:
                ones = weights.tap_ones()
                everywhere = np.full_like(ones, own * sum(multipliers))
            if weights.signed or masked:
                inside, outside = (everywhere, 2 * ones) if maps.signed else (-ones, -ones)
            else:
                inside, outside = (ones, 0 * ones) if maps.signed else (0 * ones, 0 * ones)
            table = border.table(inside, outside)
            found = np.zeros((*table.shape[:2], -(-filters // LANES) * LANES), np.int64)
            found[..., :filters] = table * sum(maps.multipliers) - factor * excess * sum(multipliers)
            return found

        self._offsets = offsets
        pairs = [factor * a * b for a in factors or maps.multipliers for b in multipliers]
        # With one pair of planes the kernel hands on the bare count.
        self.single = len(pairs) == 1
        self.factor = int(pairs[0]) if self.single else 1
        largest = weights.products if most is None else most
        counts = [largest * p for p in ([1] if self.single else pairs)]
        self.sums_fit = sum(c for c in counts if c > 0) < INT32.max and sum(c for c in counts if c < 0) >= INT32.min
        (h, w), kernel = maps.extent, geometry.kernel
        frame = self._frame
        row_words = row_length(w, own, frame)
        self.size = Sizes(*maps.out, frame.top + h + frame.bottom, groups, own, filters, row_words, planes)
        self.taps = Taps(*kernel, *geometry.stride, *geometry.dilation)
        kinds = Kinds(border.y_kind, border.x_kind)
        self._constants = LazyConstants(self.factor, offsets)
        # What every kernel on bits takes before the constants and the output.
        of_pairs = wrapped(np.array(pairs, np.int64))
        self._rest = (tuple(kinds), of_pairs, tuple(self.size), tuple(self.taps))
        # Steps of the inner loop for a position.
        blocks = groups * -(-filters // LANES)
        self._work = len(multipliers) * blocks * kernel[0] * weights.run_words * planes

    @property
    def offsets(self) -> np.ndarray:
        """See `ops.conv_path.ConvPath`."""
        return self._offsets()

    def _last(self, output: Output) -> tuple[Any, ...]:
        """Return the last arguments of every kernel on bits."""
        return *self._rest, self._constants.of(output), tuple(output)

    def take(self, words: np.ndarray) -> tuple[Any, ...]:
        """Return (rows, words of a plane): dense rows of bits, see `bit_rows`."""
        rows = bit_rows(words, self._channels, self.groups, self._frame, self._pad_bits)
        return rows, (len(rows) - SLACK) // len(words)

    def take_bytes(self, x: LevelBytes) -> tuple[Any, ...]:
        """Return the same of levels that are bytes, by way of their planes."""
        return self.take(as_planes(x).words)
