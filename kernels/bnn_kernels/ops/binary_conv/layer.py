"""Binary and bit-serial convolution: exact integers from bit planes, and thresholds that give bits again.

Everything is one operation, a population count over the taps of a filter. With bits a of the input and w of the
weight, a product of two plane values is
    {-1,+1} x {-1,+1}:  (1 - 2a)(1 - 2w) = 1 - 2 (a^w)
    a {0,1}, w {-1,+1}:       a (1 - 2w) = (a^w) - w
    a {-1,+1}, w {0,1}:       (1 - 2a) w = w - 2 (a&w)
    {0,1}   x {0,1}   :                         a&w
so a dot product is a factor times popcount(a ^ w) or popcount(a & w), plus what depends on taps and weights alone. Taps
outside a zero-padded map have a = 0 and must contribute 0, but a ^ w counts w there: that is taken back in the same
table, one number a filter and kind of border, prepared in advance. Multi-bit operands are sums over pairs of planes,
times their multipliers.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bnn_kernels import checks
from bnn_kernels.bits.planes import check_codes, check_planes, encode
from bnn_kernels.bits.sum_range import largest_level, largest_sum
from bnn_kernels.bits.tensor import BitTensor, pack, pack_codes, words_for
from bnn_kernels.bits.thresholds import Thresholds, check_thresholds
from bnn_kernels.compile.isa import isa
from bnn_kernels.ops.binary_conv.geometry import ConvPlan
from bnn_kernels.ops.binary_conv.level_lookup import PlanePairs, lookups_for
from bnn_kernels.ops.binary_conv.lookup import MOST_BITS, spread_weights
from bnn_kernels.ops.binary_conv.popcount import LANES
from bnn_kernels.ops.binary_conv.rows import SLACK, bit_rows
from bnn_kernels.ops.epilogue import Epilogue
from bnn_kernels.runtime.aligned import aligned
from bnn_kernels.runtime.arrays import new_array
from bnn_kernels.runtime.workspace import contiguous

# Map sizes that one layer keeps its tables for.
MOST_PLANS = 64


FILTERS = "(O, C/groups, kh, kw)"
# Weights that are spread out to a byte each at a time.
AT_A_TIME = 1 << 22


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
        weight = checks.floats(weight, "weight", FILTERS, (4,), hint="; integer levels go through from_levels")
        codes = (checks.no_nan(weight, "the weight") < 0).astype(np.uint8)
        self._build(codes, (1,), True, stride, padding, dilation, groups, pad_value)

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
        levels = checks.integers(levels, "weight", FILTERS, (4,))
        codes = encode(levels, check_planes(multipliers, signed), bool(signed))
        return cls.from_codes(codes, multipliers, signed, stride, padding, dilation, groups, pad_value)

    @classmethod
    def from_codes(
        cls,
        codes: np.ndarray,
        multipliers: Sequence[int] = (1,),
        signed: bool = True,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        pad_value: int = 0,
    ) -> "PackedConv2d":
        """Build from codes uint8 (O, C/groups, kh, kw), whose bit p is that of plane p, see `bit_planes`."""
        self = cls.__new__(cls)
        self._build(codes, multipliers, signed, stride, padding, dilation, groups, pad_value)
        return self

    def _build(
        self,
        codes: np.ndarray,
        multipliers: Sequence[int],
        signed: bool,
        stride: int | Sequence[int],
        padding: int | Sequence[int],
        dilation: int | Sequence[int],
        groups: int,
        pad_value: int,
    ) -> None:
        codes = checks.integers(codes, "weight", FILTERS, (4,))
        if 0 in codes.shape:
            raise ValueError(f"weight must have shape {FILTERS} with no empty side, got {codes.shape}")
        self.shape = tuple(codes.shape)
        self.stride = checks.pair(stride, "stride", 1)
        self.padding = checks.pair(padding, "padding", 0)
        self.dilation = checks.pair(dilation, "dilation", 1)
        self.groups = checks.integer(groups, "groups", 1)
        if self.shape[0] % self.groups:
            raise ValueError(f"groups must divide the {self.shape[0]} output channels, got {groups}")
        self.pad_value = checks.integer(pad_value, "pad_value (a level of the input such as 0, +1 or -1)")
        self.multipliers = check_planes(multipliers, signed)
        self.signed = bool(signed)
        self._max_level = largest_level(self.multipliers, self.signed)
        o, channels, kh, kw = self.shape
        self.in_channels = channels * self.groups
        self.filters = o // self.groups
        planes = len(self.multipliers)
        words, ones = _filter_words(check_codes(codes, planes), planes, self.groups)
        # Set bits of every tap and filter, weighted over planes.
        self.tap_ones = np.tensordot(self.multipliers, ones, 1).reshape(self.groups, self.filters, kh, kw)
        self._keep(words)

    def _keep(self, words: np.ndarray) -> None:
        """Take the weights as `_filter_words` lays them out; whatever else is made of them is made when it is used."""
        self._words = words
        self.lane_weights = words.reshape(-1)
        self._plans: dict[tuple[Any, ...], ConvPlan] = {}
        self._layouts = {"popcount": self.lane_weights}

    def __getstate__(self) -> dict[str, Any]:
        made = ("_plans", "_layouts", "lane_weights")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._keep(aligned(self._words))

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
        self._check_input(bits)
        return self._dots(bits)

    def to_levels(self, bits: BitTensor, thresholds: Thresholds) -> BitTensor:
        """Return the levels of the thresholded sums of a packed input (N, C, H, W)."""
        self._check_input(bits)
        check_thresholds(thresholds, self.shape[0])
        return self._levels(bits, thresholds)

    def finish(
        self, bits: BitTensor, epilogue: Epilogue, residual: np.ndarray | None = None, keep: bool = True
    ) -> tuple[np.ndarray | None, BitTensor | None]:
        """Return (float32 (N, Ho, Wo, O) or None, signs or None): the sums of a packed input through an epilogue.

        residual: float32 (N, Ho, Wo, O) if the epilogue adds one; keep: whether the floats are wanted.
        """
        self._check_input(bits)
        checks.instance(epilogue, Epilogue, "the epilogue")
        return self._finished(bits, epilogue, residual, keep)

    def _finished(
        self, bits: BitTensor, epilogue: Epilogue, residual: np.ndarray | None, keep: bool
    ) -> tuple[np.ndarray | None, BitTensor | None]:
        if not self._whole_bytes:
            return epilogue(self._dots(bits), residual, keep)
        plan, n = self._plan(bits), bits.words.shape[1]
        shape = (n, plan.ho, plan.wo, self.shape[0])
        sink, results = epilogue.sink(shape, residual, keep)
        plan.run(*self._input(bits, plan), n * plan.ho * plan.wo, "to_floats", sink)
        return results()

    @property
    def _whole_bytes(self) -> bool:
        """Whether each byte of output bits belongs to one group."""
        return self.groups == 1 or self.filters % LANES == 0

    def _levels(self, bits: BitTensor, thresholds: Thresholds) -> BitTensor:
        # Sums before their offset is added may leave int32 though the dot products do not; those are compared then.
        if thresholds.is_sign and self._whole_bytes and self._plan(bits).sums_fit:
            return self._signs(bits, thresholds)
        return thresholds(self._dots(bits))

    def _check_input(self, bits: BitTensor) -> None:
        checks.instance(bits, BitTensor, "the input", "; pack it first")
        if len(bits.shape) != 4:
            raise ValueError(f"a convolution takes an input of shape (N, C, H, W), got {bits.shape}")
        if bits.shape[1] != self.in_channels:
            raise ValueError(f"the input has {bits.shape[1]} channels, the weight takes {self.in_channels}")

    def _dots(self, bits: BitTensor) -> np.ndarray:
        """Return int32 (N, Ho, Wo, O) of words whose channel count has been checked."""
        plan, n = self._plan(bits), bits.words.shape[1]
        out = new_array((n, plan.ho, plan.wo, self.shape[0]), np.int32, "an output")
        plan.run(*self._input(bits, plan), n * plan.ho * plan.wo, "to_ints", (out.reshape(-1), self.shape[0]))
        return out

    def _signs(self, bits: BitTensor, thresholds: Thresholds) -> BitTensor:
        """Return the signs behind thresholds; whole bytes of filters must belong to one group."""
        plan, n = self._plan(bits), bits.words.shape[1]
        filters = self.shape[0]
        # The kernel writes whole bytes; only words that are not made of 8 need their tail zeroed first.
        shape = (1, n, plan.ho, plan.wo, words_for(filters))
        words = new_array(shape, np.uint64, "an output", zeros=filters % 64 != 0)
        sink = (*plan.bounds(thresholds), words.view(np.uint8).reshape(-1), words_for(filters) * 8)
        plan.run(*self._input(bits, plan), n * plan.ho * plan.wo, "to_bits", sink)
        return BitTensor(words, (n, filters, plan.ho, plan.wo))

    def _input(self, bits: BitTensor, plan: ConvPlan) -> tuple[np.ndarray, int]:
        """Return the input as flat dense rows, and the words of one plane."""
        words = bits.words
        if plan.direct:
            flat = contiguous(words)
            return (flat if flat.flags.writeable else flat.copy()).reshape(-1), words[0].size
        rows = bit_rows(contiguous(words), self.shape[1], self.groups, self.padding, plan.pad_bits)
        return rows, (len(rows) - SLACK) // len(words)

    def _plan(self, bits: BitTensor) -> ConvPlan:
        """Return what depends on the size of the map and on its planes only; made once for each."""
        key = (*bits.words.shape[2:4], bits.signed, bits.multipliers)
        plan = self._plans.get(key)
        if plan is None:
            self._check_range(bits)
            if len(self._plans) >= MOST_PLANS:  # maps of ever new sizes must not fill the memory
                self._plans.clear()
            plan = self._plans[key] = ConvPlan(self, bits)
        return plan

    def _check_range(self, bits: BitTensor) -> None:
        largest_sum(math.prod(self.shape[1:]), largest_level(bits.multipliers, bits.signed), self._max_level)

    def border_kinds(
        self, extent: tuple[int, int], out: tuple[int, int], pads: bool
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return by axis the kind of border of each output position, and int64 (kinds, taps): the taps inside.

        Positions of one kind have the same taps inside the map; taps that hold a pad value (`pads`) count as inside.
        """
        kinds, masks = [], []
        for axis in range(2):
            k, s, p, d = (v[axis] for v in (self.shape[2:], self.stride, self.padding, self.dilation))
            tap = np.arange(out[axis])[:, None] * s - p + np.arange(k) * d
            frame = p if pads else 0
            inside = (tap >= -frame) & (tap < extent[axis] + frame)
            mask, kind = np.unique(inside, axis=0, return_inverse=True)
            masks.append(mask.astype(np.int64))
            kinds.append(kind.reshape(-1))
        return kinds, masks

    def kernel_for(self, multipliers: tuple[int, ...], positions: int) -> tuple[str, PlanePairs | None]:
        """Return the fastest kernel for inputs of these planes: "popcount", "lookup", or "levels" with its plane pairs.

        Lookups work on 32 filters and four positions at a time.
        """
        if isa() == "avx2" and self.filters >= 24 and positions >= 4:
            pairs = self.plane_pairs(multipliers) if len(multipliers) > 1 else None
            if pairs is not None:
                return "levels", pairs
            if lookups_for(self.shape[2], self.shape[3] * self.shape[1]) * 4 <= MOST_BITS:
                return "lookup", None
        return "popcount", None

    def plane_pairs(self, multipliers: tuple[int, ...]) -> PlanePairs | None:
        """Return how "levels" takes inputs of these planes; None if its sums would not hold them."""
        pairs = PlanePairs(multipliers, self.signed)
        return pairs if pairs.fits(lookups_for(self.shape[2], self.shape[3] * self.shape[1])) else None

    def weights_for(self, kind: str) -> np.ndarray:
        """Return the weights as a kernel takes them, flat, made once."""
        if kind not in self._layouts:
            planes, groups = self._words.shape[:2]
            words = self._words.swapaxes(3, 4).reshape(planes, groups, -1, self._words.shape[3])[:, :, : self.filters]
            multiple = (2, 3) if kind == "lookup" else (1, 1)
            spread = spread_weights(words, self.shape[2], self.shape[3] * self.shape[1], multiple)
            self._layouts[kind] = spread.reshape(-1)
        return self._layouts[kind]

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
        if not hasattr(conv, "to_levels"):
            raise TypeError(f"thresholds follow a packed layer, got {type(conv).__name__}")
        check_thresholds(thresholds, conv.shape[0])
        self.conv = conv
        self.thresholds = thresholds

    def __call__(self, x: BitTensor | np.ndarray) -> BitTensor:
        """Return the packed levels of the thresholded sums, shape (N, O, Ho, Wo)."""
        return self.conv.to_levels(x if isinstance(x, BitTensor) else pack(x), self.thresholds)
