"""Binary and bit-serial convolution over sequences: the convolution of a map one row high."""

from collections.abc import Sequence

import numpy as np

from bnn_kernels import checks
from bnn_kernels.bits.level_bytes import LevelTensor
from bnn_kernels.bits.tensor import pack
from bnn_kernels.bits.thresholds import Thresholds
from bnn_kernels.ops.epilogue import Epilogue
from bnn_kernels.ops.packed_layers.conv2d import PackedConv2d, ThresholdConv2d


class PackedConv1d:
    """Convolution of bit planes over (N, C, L), exact in int32.

    weight: float (O, C/groups, k), of which the signs are used; integer levels go through `from_levels`. The other
    arguments are those of `PackedConv2d`, for one axis. ValueError on shapes that do not fit.
    """

    def __init__(
        self,
        weight: np.ndarray,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        pad_value: int = 0,
    ):
        weight = self._check(weight)
        self.conv = PackedConv2d(weight, (1, stride), (0, padding), (1, dilation), groups, pad_value)

    @classmethod
    def from_levels(
        cls,
        levels: np.ndarray,
        multipliers: Sequence[int] = (1,),
        signed: bool = True,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        pad_value: int = 0,
    ) -> "PackedConv1d":
        """Build from integer weight levels (O, C/groups, k), level = sum_p multipliers[p] * plane[p]."""
        self = cls.__new__(cls)
        geometry = ((1, stride), (0, padding), (1, dilation), groups, pad_value)
        self.conv = PackedConv2d.from_levels(cls._check(levels), multipliers, signed, *geometry)
        return self

    @staticmethod
    def _check(weight: np.ndarray) -> np.ndarray:
        weight = checks.array(weight, "weight")
        if weight.ndim != 3:
            raise ValueError(f"weight must have shape (O, C/groups, k), got {weight.shape}")
        return weight[:, :, None]

    @property
    def nbytes(self) -> int:
        """Bytes of the weights at 1 bit a weight and plane."""
        return self.conv.nbytes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(O, C/groups, k)."""
        o, c, _, k = self.conv.shape
        return o, c, k

    def _map(self, x: LevelTensor | np.ndarray) -> LevelTensor:
        bits = x if isinstance(x, LevelTensor) else pack(x)
        if len(bits.shape) != 3:
            raise ValueError(f"a convolution over sequences takes an input of shape (N, C, L), got {bits.shape}")
        n, c, length = bits.shape
        return bits.with_shape((n, c, 1, length))

    @staticmethod
    def _sequence(bits: LevelTensor) -> LevelTensor:
        n, c, _, length = bits.shape
        return bits.with_shape((n, c, length))

    def __call__(self, x: LevelTensor | np.ndarray) -> np.ndarray:
        """Return int32 (N, O, Lo), exact. A float input (N, C, L) is packed first (its signs)."""
        return self.conv(self._map(x))[:, :, 0]

    def to_levels(self, bits: LevelTensor, thresholds: Thresholds) -> LevelTensor:
        """Return the levels (N, O, Lo) of the thresholded sums of a packed input (N, C, L)."""
        return self._sequence(self.conv.to_levels(self._map(bits), thresholds))

    def with_threshold(self, t: np.ndarray, flip: np.ndarray) -> "ThresholdConv1d":
        """Return a convolution to bits: bit = (dot < t) xor flip, with t int32 (O,) and flip bool (O,)."""
        return ThresholdConv1d(self, Thresholds.sign(t, flip))

    def with_thresholds(
        self, t: np.ndarray, flip: np.ndarray, codes: np.ndarray, signed: bool, multipliers: Sequence[int]
    ) -> "ThresholdConv1d":
        """Return a convolution to levels; the arguments are those of PackedConv2d.with_thresholds."""
        return ThresholdConv1d(self, Thresholds(t, flip, codes, signed, multipliers))

    def finish(
        self, bits: LevelTensor, epilogue: Epilogue, residual: np.ndarray | None = None, keep: bool = True
    ) -> tuple[np.ndarray | None, LevelTensor | None]:
        """Return (float32 (N, 1, Lo, O) or None, signs (N, O, Lo) or None) of a packed input through an epilogue."""
        floats, signs = self.conv.finish(self._map(bits), epilogue, residual, keep)
        return floats, None if signs is None else self._sequence(signs)

    def __repr__(self) -> str:
        return f"PackedConv1d({self.conv!r})"


class ThresholdConv1d(ThresholdConv2d):
    """A PackedConv1d followed by integer thresholds: bits in (N, C, L), bits out (N, O, Lo)."""
