"""Binary and bit-serial linear layer: the convolution whose filter covers the whole map."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bnn_kernels import checks
from bnn_kernels.bits.level_bytes import LevelBytes, LevelTensor
from bnn_kernels.bits.planes import check_codes, check_planes, encode
from bnn_kernels.bits.storage import checked_dense_bits, to_dense_bits
from bnn_kernels.bits.tensor import BitTensor, pack
from bnn_kernels.bits.thresholds import Thresholds, check_thresholds
from bnn_kernels.ops.epilogue import Epilogue
from bnn_kernels.ops.packed_layers.conv2d import PackedConv2d


class PackedLinear:
    """Matrix product of bit planes, exact in int32.

    weight: float (O, K), of which the signs are used; integer levels go through `from_levels`. The input is (N, K),
    or a map (N, C, H, W) or sequence (N, C, L) with K features that count in C, H, W order (torch.flatten's) though
    its bits lie channels last: the weight is laid out once for each shape it meets, and flattening costs nothing.
    """

    def __init__(self, weight: np.ndarray):
        weight = checks.floats(weight, "weight", "(O, K)", (2,), hint="; integer levels go through from_levels")
        self._build((checks.no_nan(weight, "the weight") < 0).astype(np.uint8), (1,), True)

    @classmethod
    def from_levels(cls, levels: np.ndarray, multipliers: Sequence[int] = (1,), signed: bool = True) -> "PackedLinear":
        """Build from integer weight levels (O, K), level = sum_p multipliers[p] * plane[p]."""
        levels = checks.integers(levels, "weight", "(O, K)", (2,))
        return cls.from_codes(encode(levels, check_planes(multipliers, signed), bool(signed)), multipliers, signed)

    @classmethod
    def from_codes(cls, codes: np.ndarray, multipliers: Sequence[int] = (1,), signed: bool = True) -> "PackedLinear":
        """Build from codes uint8 (O, K), whose bit p is that of plane p, see `bits.planes`."""
        self = cls.__new__(cls)
        self._build(codes, multipliers, signed)
        return self

    @classmethod
    def from_dense_bits(
        cls, dense: np.ndarray, shape: Sequence[int], multipliers: Sequence[int] = (1,), signed: bool = True
    ) -> "PackedLinear":
        """Build from the bits of a packed file, see `dense_bits`; they are kept as they are, shape = (O, K)."""
        self = cls.__new__(cls)
        sides = checked_dense_bits(dense, shape, len(check_planes(multipliers, signed)), "(O, K)")
        self._keep(dense, sides, multipliers, signed)
        return self

    def _build(self, codes: np.ndarray, multipliers: Sequence[int], signed: bool) -> None:
        codes = checks.integers(codes, "weight", "(O, K)", (2,))
        if 0 in codes.shape:
            raise ValueError(f"weight must have shape (O, K) with no empty side, got {codes.shape}")
        planes = len(check_planes(multipliers, signed))
        self._keep(to_dense_bits(check_codes(codes, planes), planes), codes.shape, multipliers, signed)

    def _keep(self, dense: np.ndarray, shape: Sequence[int], multipliers: Sequence[int], signed: bool) -> None:
        self.shape = tuple(shape)
        self.multipliers = check_planes(multipliers, signed)
        self.signed = bool(signed)
        self._dense = dense
        self._layouts: dict[tuple[int, ...], PackedConv2d] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_layouts": {}}

    @property
    def nbytes(self) -> int:
        """Bytes of the weights at 1 bit a weight and plane, each plane rounded up to whole bytes."""
        return self._dense.nbytes

    def layout(self, shape: tuple[int, ...]) -> PackedConv2d:
        """Return the convolution that covers a map of (K,), (C, L) or (C, H, W); built once for each shape."""
        found = self._layouts.get(shape)
        if found is None:
            sides = {1: (*shape, 1, 1), 2: (shape[0], 1, shape[-1]), 3: shape}[len(shape)]
            filters = (self.shape[0], *sides)
            found = PackedConv2d.from_dense_bits(self._dense, filters, self.multipliers, self.signed)
            self._layouts[shape] = found
        return found

    def to_levels(self, bits: LevelTensor, thresholds: Thresholds) -> LevelTensor:
        """Return the levels of the thresholded sums, shape (N, O), of a packed input (N, K) or (N, C, H, W)."""
        self._check_input(bits)
        check_thresholds(thresholds, self.shape[0])
        levels = self.layout(bits.shape[1:])._levels(bits, thresholds)
        return levels.with_shape(levels.shape[:2])

    def finish(
        self, bits: LevelTensor, epilogue: Epilogue, residual: np.ndarray | None = None, keep: bool = True
    ) -> tuple[np.ndarray | None, LevelTensor | None]:
        """Return (float32 (N, 1, 1, O) or None, signs (N, O, 1, 1) or None) of a packed input through an epilogue."""
        self._check_input(bits)
        checks.instance(epilogue, Epilogue, "the epilogue")
        return self.layout(bits.shape[1:])._finished(bits, epilogue, residual, keep)

    def __call__(self, x: LevelTensor | np.ndarray) -> np.ndarray:
        """Return int32 (N, O), exact. A float input is packed first (its signs)."""
        return self.channels_last(x if isinstance(x, LevelTensor) else pack(x)).reshape(-1, self.shape[0])

    def channels_last(self, bits: LevelTensor) -> np.ndarray:
        """Return int32 (N, 1, 1, O) of a packed input (N, K) or (N, C, H, W) with C*H*W = K."""
        self._check_input(bits)
        return self.layout(bits.shape[1:])._dots(bits)

    def _check_input(self, bits: LevelTensor) -> None:
        if not isinstance(bits, LevelBytes):
            checks.instance(bits, BitTensor, "the input", "; pack it first")
        features = math.prod(bits.shape[1:])
        if features != self.shape[1]:
            raise ValueError(f"the input {bits.shape} has {features} features, the weight takes {self.shape[1]}")

    def with_threshold(self, t: np.ndarray, flip: np.ndarray) -> "ThresholdLinear":
        """Return a linear layer to bits: bit = (dot < t) xor flip, with t int32 (O,) and flip bool (O,)."""
        return ThresholdLinear(self, Thresholds.sign(t, flip))

    def with_thresholds(
        self, t: np.ndarray, flip: np.ndarray, codes: np.ndarray, signed: bool, multipliers: Sequence[int]
    ) -> "ThresholdLinear":
        """Return a linear layer to levels; the arguments are those of PackedConv2d.with_thresholds."""
        return ThresholdLinear(self, Thresholds(t, flip, codes, signed, multipliers))

    def __repr__(self) -> str:
        return f"PackedLinear({self.shape[1]}->{self.shape[0]}, planes={len(self.multipliers)}, {self.nbytes} bytes)"


class ThresholdLinear:
    """A PackedLinear followed by integer thresholds: bits in, bits out."""

    def __init__(self, linear: PackedLinear, thresholds: Thresholds):
        checks.instance(linear, PackedLinear, "the layer before thresholds")
        check_thresholds(thresholds, linear.shape[0])
        self.linear = linear
        self.thresholds = thresholds

    def __call__(self, x: LevelTensor | np.ndarray) -> LevelTensor:
        """Return the packed levels of the thresholded sums, shape (N, O)."""
        return self.linear.to_levels(x if isinstance(x, LevelTensor) else pack(x), self.thresholds)
