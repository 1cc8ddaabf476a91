"""Filters as a file holds them, bit planes without gaps, from which every kernel makes the layout that it reads."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from bnn_kernels.bits.planes import check_codes
from bnn_kernels.bits.storage import codes_between, to_dense_bits
from bnn_kernels.bits.tensor import pack_codes, words_for
from bnn_kernels.ops.filters import Filters
from bnn_kernels.runtime.cache_lines import zeros_at_line
from bnn_kernels.runtime.mapped import release

# Filters that lie side by side in words.
LANES = 8
# Weights that are a byte each at a time, while something is made of them: temporary arrays of some MB would not go
# back to the system.
AT_A_TIME = 1 << 17

T = TypeVar("T")


class Weights(Filters):
    """Filters (O, C/groups, kh, kw) as dense bits uint8 (P, bytes), see `bits.storage`; bit p of a code is plane p's.

    The dense bits may be those of a mapped file. Only the layouts that kernels ask for are held beside them.
    """

    def __init__(self, dense: np.ndarray, shape: Sequence[int], multipliers: Sequence[int], signed: bool, groups: int):
        super().__init__(shape, multipliers, signed, groups)
        self.dense = dense
        self._layouts: dict[Any, Any] = {}

    @classmethod
    def of_codes(cls, codes: np.ndarray, multipliers: Sequence[int], signed: bool, groups: int) -> "Weights":
        """Build from codes uint8 (O, C/groups, kh, kw)."""
        planes = len(multipliers)
        return cls(to_dense_bits(check_codes(codes, planes), planes), codes.shape, multipliers, signed, groups)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_layouts": {}}

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (filters, their codes uint8 (n, kh, kw, C/groups)), some filters at a time."""
        o, channels, kh, kw = self.shape
        step = max(1, AT_A_TIME // self.products)
        for first in range(0, o, step):
            last = min(o, first + step)
            codes = codes_between(self.dense, first * self.products, last * self.products)
            in_order = codes.reshape(last - first, channels, kh, kw).transpose(0, 2, 3, 1)
            yield slice(first, last), np.ascontiguousarray(in_order)
        release(self.dense)

    def places(self, filters: slice, lanes: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (block, lane) int64 (n,) of filters, where `lanes` of a group lie side by side in a block."""
        group, f = np.divmod(np.arange(filters.start, filters.stop), self.filters)
        return group * -(-self.filters // lanes) + f // lanes, f % lanes

    def tap_ones(self) -> np.ndarray:
        """Return int64 (G, filters of a group, kh, kw): the set bits of every tap, each times its multiplier."""
        ones = np.empty((self.shape[0], *self.shape[2:]), np.int64)
        for filters, codes in self.blocks():
            planes = (m * ((codes >> np.uint8(p)) & 1).sum(-1, np.int64) for p, m in enumerate(self.multipliers))
            ones[filters] = sum(planes)
        return ones.reshape(self.groups, self.filters, *self.shape[2:])

    def tap_signs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return two int64 (G, filters of a group, kh, kw), of ternary weights in two planes {0,1}.

        They say how many weights of each tap differ from 0, and how many of these are the second plane's.
        """
        found = np.empty((2, self.shape[0], *self.shape[2:]), np.int64)
        for filters, codes in self.blocks():
            second = codes == 2
            found[:, filters] = ((codes == 1) | second).sum(-1), second.sum(-1)
        nonzero, negative = found.reshape(2, self.groups, self.filters, *self.shape[2:])
        return nonzero, negative

    def tap_levels(self) -> np.ndarray:
        """Return the sums of the levels of every tap, int64 (G, filters of a group, kh, kw)."""
        ones = self.tap_ones()
        return self.channels * sum(self.multipliers) - 2 * ones if self.signed else ones

    def levels(self) -> np.ndarray:
        """Return all levels, int64 (O, C/groups, kh, kw)."""
        found = np.empty(self.shape, np.int64)
        for filters, codes in self.blocks():
            found[filters] = self.level_values[codes].transpose(0, 3, 1, 2)
        return found

    @property
    def run_words(self) -> int:
        """The words of a filter row."""
        return words_for(self.shape[3] * self.channels)

    def words(self) -> np.ndarray:
        """Return uint64 (P, G, blocks of eight filters, kh * run words, 8).

        Each filter row is one run of bits, rounded up to words, as `bit_rows` gives the input.
        """
        return self.layout("words", self._words)

    def masked_words(self) -> np.ndarray:
        """Return the same of ternary weights in two planes {0,1}: what is the second plane's, and what is not 0."""

        def make() -> np.ndarray:
            # Codes 0 and 3 are 0; 1 and 2 have the mask's bit, 2 the sign's too.
            return self._words(np.array([0, 2, 3, 0], np.uint8))

        return self.layout("masked words", make)

    def _words(self, recoded: np.ndarray | None = None) -> np.ndarray:
        kh, planes = self.shape[2], len(self.multipliers)
        blocks = -(-self.filters // LANES)
        words = zeros_at_line((planes, self.groups * blocks, kh * self.run_words, LANES), np.uint64)
        for filters, codes in self.blocks():
            if recoded is not None:
                codes = recoded[codes]
            packed = pack_codes(codes.reshape(len(codes), kh, -1), planes).reshape(planes, len(codes), -1)
            block, lane = self.places(filters, LANES)
            words[:, block, :, lane] = packed.swapaxes(0, 1)
        return words.reshape(planes, self.groups, blocks, -1, LANES)

    def layout(self, key: Any, make: Callable[[], T]) -> T:
        """Return what `make` makes of these weights, made once for each key."""
        if key not in self._layouts:
            self._layouts[key] = make()
        return self._layouts[key]
