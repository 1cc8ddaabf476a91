"""Binary and few-bit convolution of maps: exact integers from packed levels, and thresholds that give levels again."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bnn_kernels import checks
from bnn_kernels.bits.level_bytes import LevelBytes, LevelTensor
from bnn_kernels.bits.planes import check_planes, encode
from bnn_kernels.bits.storage import checked_dense_bits
from bnn_kernels.bits.sum_range import largest_level, largest_sum
from bnn_kernels.bits.tensor import BitTensor, pack, words_for
from bnn_kernels.bits.thresholds import Thresholds, check_thresholds
from bnn_kernels.bits.zero_points import ZeroPoints
from bnn_kernels.ops.epilogue import Epilogue
from bnn_kernels.ops.geometry import Geometry, Maps
from bnn_kernels.ops.outputs import IntOutput, SignOutput
from bnn_kernels.ops.packed_layers.plan import MapPlan
from bnn_kernels.ops.weights import Weights
from bnn_kernels.runtime.arrays import new_array

# Map sizes that one layer keeps its tables for.
MOST_PLANS = 64
FILTERS = "(O, C/groups, kh, kw)"


class PackedConv2d:
    """Convolution of bit planes, exact in int32, without im2col.

    weight: float (O, C/groups, kh, kw), of which the signs are used; integer levels go through `from_levels`.
    stride, padding, dilation: an int or a pair (y, x); padding also (top, left, bottom, right). pad_value: 0 (outside
    positions contribute nothing) or another integer level of the input, such as +1 or -1. ValueError on shapes that do
    not fit.
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
        zero: ZeroPoints | None = None,
    ) -> "PackedConv2d":
        """Build from codes uint8 (O, C/groups, kh, kw), whose bit p is that of plane p, see `bits.planes`.

        zero: what the levels of the input count as, if not as themselves; then pad_value is 0.
        """
        self = cls.__new__(cls)
        self._build(codes, multipliers, signed, stride, padding, dilation, groups, pad_value)
        self._set_zero(zero)
        return self

    @classmethod
    def from_dense_bits(
        cls,
        dense: np.ndarray,
        shape: Sequence[int],
        multipliers: Sequence[int] = (1,),
        signed: bool = True,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        pad_value: int = 0,
        zero: ZeroPoints | None = None,
    ) -> "PackedConv2d":
        """Build from the bits of a packed file, see `dense_bits`, which are kept as they are.

        shape = (O, C/groups, kh, kw); zero: see `from_codes`.
        """
        self = cls.__new__(cls)
        sides = checked_dense_bits(dense, shape, len(check_planes(multipliers, signed)), FILTERS)
        self._set_geometry(sides, stride, padding, dilation, groups, pad_value)
        self.weights = Weights(dense, sides, multipliers, signed, self.geometry.groups)
        self._set_zero(zero)
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
        self._set_geometry(codes.shape, stride, padding, dilation, groups, pad_value)
        self.weights = Weights.of_codes(codes, check_planes(multipliers, signed), signed, self.geometry.groups)

    def _set_geometry(
        self,
        shape: Sequence[int],
        stride: int | Sequence[int],
        padding: int | Sequence[int],
        dilation: int | Sequence[int],
        groups: int,
        pad_value: int,
    ) -> None:
        top, left, bottom, right = checks.around(padding, "padding")
        self.geometry = Geometry(
            (shape[2], shape[3]),
            checks.pair(stride, "stride", 1),
            (top, left),
            checks.pair(dilation, "dilation", 1),
            checks.integer(groups, "groups", 1),
            checks.integer(pad_value, "pad_value (a level of the input such as 0, +1 or -1)"),
            None if (bottom, right) == (top, left) else (bottom, right),
        )
        if shape[0] % self.geometry.groups:
            raise ValueError(f"groups must divide the {shape[0]} output channels, got {groups}")
        self.zero: ZeroPoints | None = None
        self._plans: dict[Maps, MapPlan] = {}

    def _set_zero(self, zero: ZeroPoints | None) -> None:
        if zero is not None:
            if len(zero.points) not in (1, self.in_channels):
                raise ValueError(f"zero points of {len(zero.points)} channels do not fit {self.in_channels}")
            if self.geometry.pads_levels:
                raise ValueError(f"inputs with zero points are padded with 0, got pad_value {self.geometry.pad_value}")
        self.zero = zero

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_plans": {}}

    @property
    def shape(self) -> tuple[int, ...]:
        """(O, C/groups, kh, kw)."""
        return self.weights.shape

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.weights.channels * self.weights.groups

    @property
    def nbytes(self) -> int:
        """Bytes of the weights at 1 bit a weight and plane, each plane rounded up to whole bytes."""
        return len(self.weights.multipliers) * -(-int(np.prod(self.shape)) // 8)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (Ho, Wo) for an (H, W) map; ValueError if the filter does not fit."""
        return self.geometry.output_size(height, width)

    def __call__(self, x: LevelTensor | np.ndarray) -> np.ndarray:
        """Return int32 (N, O, Ho, Wo) (a view with channels last in memory), exact. A float input is packed first."""
        return self.channels_last(x if isinstance(x, LevelTensor) else pack(x)).transpose(0, 3, 1, 2)

    def channels_last(self, bits: LevelTensor) -> np.ndarray:
        """Return int32 (N, Ho, Wo, O) of a packed input (N, C, H, W)."""
        self._check_input(bits)
        return self._dots(bits)

    def to_levels(self, bits: LevelTensor, thresholds: Thresholds) -> LevelTensor:
        """Return the levels of the thresholded sums of a packed input (N, C, H, W)."""
        self._check_input(bits)
        check_thresholds(thresholds, self.shape[0])
        return self._levels(bits, thresholds)

    def finish(
        self, bits: LevelTensor, epilogue: Epilogue, residual: np.ndarray | None = None, keep: bool = True
    ) -> tuple[np.ndarray | None, LevelTensor | None]:
        """Return (float32 (N, Ho, Wo, O) or None, signs or None): the sums of a packed input through an epilogue.

        residual: float32 (N, Ho, Wo, O) if the epilogue adds one; keep: whether the floats are wanted.
        """
        self._check_input(bits)
        checks.instance(epilogue, Epilogue, "the epilogue")
        return self._finished(bits, epilogue, residual, keep)

    def _finished(
        self, bits: LevelTensor, epilogue: Epilogue, residual: np.ndarray | None, keep: bool
    ) -> tuple[np.ndarray | None, LevelTensor | None]:
        plan = self._plan(bits)
        if not plan.whole_bytes:
            return epilogue(self._dots(bits), residual, keep)
        straight = plan.path.factor == 1
        output, results = epilogue.output((bits.map_size[0], *plan.out, self.shape[0]), residual, keep, straight)
        plan.run(bits, output)
        return results()

    def _levels(self, bits: LevelTensor, thresholds: Thresholds) -> LevelTensor:
        plan = self._plan(bits)
        # Sums before their offset is added may leave int32 though the dot products do not; those are compared then.
        if thresholds.is_sign and not thresholds.as_bytes and plan.whole_bytes and plan.path.sums_fit:
            return self._signs(bits, thresholds)
        return thresholds(self._dots(bits))

    def _check_input(self, bits: LevelTensor) -> None:
        if not isinstance(bits, LevelBytes):
            checks.instance(bits, BitTensor, "the input", "; pack it first")
        if len(bits.shape) != 4:
            raise ValueError(f"a convolution takes an input of shape (N, C, H, W), got {bits.shape}")
        if bits.shape[1] != self.in_channels:
            raise ValueError(f"the input has {bits.shape[1]} channels, the weight takes {self.in_channels}")

    def _dots(self, bits: LevelTensor) -> np.ndarray:
        """Return int32 (N, Ho, Wo, O) of words whose channel count has been checked."""
        plan = self._plan(bits)
        out = new_array((bits.map_size[0], *plan.out, self.shape[0]), np.int32, "an output")
        plan.run(bits, IntOutput(out.reshape(-1), self.shape[0]))
        return out

    def _signs(self, bits: LevelTensor, thresholds: Thresholds) -> BitTensor:
        """Return the signs behind thresholds; whole bytes of filters must belong to one group."""
        plan, n, filters = self._plan(bits), bits.map_size[0], self.shape[0]
        # The kernel writes whole bytes; only words that are not made of 8 need their tail zeroed first.
        shape = (1, n, *plan.out, words_for(filters))
        words = new_array(shape, np.uint64, "an output", zeros=filters % 64 != 0)
        as_bytes = words.view(np.uint8).reshape(-1)
        plan.run(bits, SignOutput(*plan.bounds(thresholds), as_bytes, words_for(filters) * 8))
        return BitTensor(words, (n, filters, *plan.out))

    def _plan(self, bits: LevelTensor) -> MapPlan:
        """Return what depends on the size of the map and on its planes only; made once for each."""
        _, h, w = bits.map_size
        maps = Maps((h, w), self.output_size(h, w), bits.signed, bits.multipliers, self.zero)
        plan = self._plans.get(maps)
        if plan is None:
            self._check_range(bits)
            if len(self._plans) >= MOST_PLANS:  # maps of ever new sizes must not fill the memory
                self._plans.clear()
            plan = self._plans[maps] = MapPlan(self.weights, self.geometry, maps)
        return plan

    def _check_range(self, bits: LevelTensor) -> None:
        planes = bits.multipliers, bits.signed
        level = largest_level(*planes) if self.zero is None else self.zero.largest(*planes)
        largest_sum(self.weights.products, level, self.weights.largest)

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
        g = self.geometry
        padding = g.padding if g.end is None else tuple(g.frame)
        return (
            f"{type(self).__name__}({self.in_channels}->{self.shape[0]}, {g.kernel[0]}x{g.kernel[1]}, "
            f"stride={g.stride}, padding={padding}, dilation={g.dilation}, groups={g.groups}, "
            f"pad_value={g.pad_value}, planes={len(self.weights.multipliers)}, {self.nbytes} bytes)"
        )


class ThresholdConv2d:
    """A PackedConv2d (or PackedLinear) followed by integer thresholds: bits in, bits out."""

    def __init__(self, conv: Any, thresholds: Thresholds):
        if not hasattr(conv, "to_levels"):
            raise TypeError(f"thresholds follow a packed layer, got {type(conv).__name__}")
        check_thresholds(thresholds, conv.shape[0])
        self.conv = conv
        self.thresholds = thresholds

    def __call__(self, x: LevelTensor | np.ndarray) -> LevelTensor:
        """Return the packed levels of the thresholded sums, shape (N, O, Ho, Wo)."""
        return self.conv.to_levels(x if isinstance(x, LevelTensor) else pack(x), self.thresholds)
