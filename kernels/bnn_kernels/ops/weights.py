"""Filters as bit planes, from which every kernel makes the layout that it reads."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from bnn_kernels.bits.planes import check_codes
from bnn_kernels.bits.tensor import pack_codes, words_for
from bnn_kernels.ops.filters import Filters
from bnn_kernels.runtime.arrays import aligned

# Filters that lie side by side.
LANES = 8
# Weights that are spread out to a byte each at a time.
AT_A_TIME = 1 << 22

T = TypeVar("T")


def _filter_words(codes: np.ndarray, planes: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (uint64 (P, G, blocks, kh * run words, 8), int64 (P, O, kh, kw)) of codes (O, C/G, kh, kw).

    The first are eight filters side by side, each filter row one run of bits, rounded up to words, as `bit_rows` gives
    the input; the others count the set bits of each plane, filter and tap.
    """
    o, channels, kh, kw = codes.shape
    filters, row_words = o // groups, words_for(kw * channels)
    words = np.zeros((planes, groups, -(-filters // LANES) * LANES, kh * row_words), np.uint64)
    ones = np.empty((planes, o, kh, kw), np.int64)
    step = max(1, AT_A_TIME // (channels * kh * kw))
    for first in range(0, o, step):
        part = codes[first : first + step].transpose(0, 2, 3, 1)
        packed = pack_codes(part.reshape(len(part), kh, -1), planes).reshape(planes, len(part), -1)
        for i in range(len(part)):
            group, f = divmod(first + i, filters)
            words[:, group, f] = packed[:, i]
        for p in range(planes):
            ones[p, first : first + step] = ((part >> np.uint8(p)) & 1).sum(-1)
    side_by_side = words.reshape(planes, groups, -1, LANES, kh * row_words).swapaxes(3, 4)
    return aligned(side_by_side), ones


class Weights(Filters):
    """Filters of codes uint8 (O, C/groups, kh, kw), whose bit p is that of plane p, see `bits.planes`.

    words: uint64 (P, G, blocks of eight filters, kh * run words, 8). tap_ones: int64 (G, filters of a group, kh, kw),
    the set bits of every tap, each times its plane's multiplier.
    """

    def __init__(self, codes: np.ndarray, multipliers: Sequence[int], signed: bool, groups: int):
        super().__init__(codes.shape, multipliers, signed, groups)
        planes = len(self.multipliers)
        words, ones = _filter_words(check_codes(codes, planes), planes, groups)
        self.tap_ones = np.tensordot(self.multipliers, ones, 1).reshape(groups, self.filters, *self.shape[2:])
        self._keep(words)

    def _keep(self, words: np.ndarray) -> None:
        self.words = words
        self._layouts: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_layouts"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._keep(aligned(self.words))

    @property
    def tap_levels(self) -> np.ndarray:
        """The sums of the levels of every tap, int64 (G, filters of a group, kh, kw)."""
        if not self.signed:
            return self.tap_ones
        return self.channels * sum(self.multipliers) - 2 * self.tap_ones

    def filter_words(self) -> np.ndarray:
        """Return uint64 (P, G, filters of a group, kh * run words): each filter's words by themselves."""
        planes, groups, _, words, _ = self.words.shape
        return self.words.swapaxes(3, 4).reshape(planes, groups, -1, words)[:, :, : self.filters]

    def levels(self) -> np.ndarray:
        """Return the levels, int64 (O, C/groups, kh, kw)."""
        o, channels, kh, kw = self.shape
        words = np.ascontiguousarray(self.filter_words(), "<u8").reshape(len(self.multipliers), o, kh, -1)
        bits = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")[..., : kw * channels]
        codes = np.zeros(bits.shape[1:], np.uint8)
        for p, plane in enumerate(bits):
            codes |= plane << np.uint8(p)
        return self.level_values[codes].reshape(o, kh, kw, channels).transpose(0, 3, 1, 2)

    def layout(self, key: Any, make: Callable[[], T]) -> T:
        """Return what `make` makes of these weights, made once for each key."""
        if key not in self._layouts:
            self._layouts[key] = make()
        return self._layouts[key]
