"""What a layer prepares once for maps of one size and kind of planes: the kernels that run it, and their bounds."""

import numpy as np

from bnn_kernels.bits.level_bytes import LevelBytes, LevelTensor
from bnn_kernels.bits.sum_range import INT32
from bnn_kernels.bits.thresholds import Thresholds
from bnn_kernels.ops.geometry import Geometry, Maps
from bnn_kernels.ops.outputs import Output
from bnn_kernels.ops.packed_layers import choice
from bnn_kernels.ops.weights import LANES, Weights
from bnn_kernels.runtime.workspace import contiguous


class MapPlan:
    """out: (Ho, Wo). path: the kernels, see `ops.conv_path`.

    whole_bytes: whether eight neighbours of its lanes are eight neighbouring filters of all, a byte of signs.
    """

    def __init__(self, weights: Weights, geometry: Geometry, maps: Maps):
        self.out = maps.out
        self.path = choice.path_for(weights, geometry, maps)
        self.whole_bytes = self.path.groups == 1 or weights.filters % LANES == 0
        self._bounds: tuple[Thresholds, np.ndarray, np.ndarray] | None = None

    def bounds(self, thresholds: Thresholds) -> tuple[np.ndarray, np.ndarray]:
        """Return (bounds int32 flat like the path's offsets, flip uint8): a sign solved for the kernel's sums.

        factor * sum + offset < t is sum < ceil((t - offset) / factor) for a positive factor, and for a negative one
        not sum < floor((t - offset) / factor) + 1. Lanes without a filter give bit 0.
        """
        found = self._bounds
        if found is None or found[0] is not thresholds:
            found = self._bounds = (thresholds, *self._solve(thresholds))
        return found[1], found[2]

    def _solve(self, thresholds: Thresholds) -> tuple[np.ndarray, np.ndarray]:
        offsets, factor = self.path.offsets, self.path.factor
        t, flip = np.zeros(offsets.shape[1:], np.int64), np.zeros(offsets.shape[1:], bool)
        filters = thresholds.channels // len(t)
        t[:, :filters] = thresholds.t[0].reshape(len(t), -1)
        flip[:, :filters] = thresholds.flip.reshape(len(t), -1)
        rest = t - offsets
        if factor > 0:
            bounds = -(-rest // factor)
        else:
            bounds = rest // factor + 1
            flip = ~flip
        bounds[..., filters:] = INT32.max if factor < 0 else INT32.min
        flip[:, filters:] = factor < 0
        solved = bounds.clip(INT32.min, INT32.max).astype(np.int32).reshape(-1)
        return solved, np.packbits(flip, bitorder="little")

    def run(self, x: LevelTensor, output: Output) -> None:
        """Compute all positions of an input into an output."""
        positions = x.map_size[0] * self.out[0] * self.out[1]
        taken = self.path.take_bytes(x) if isinstance(x, LevelBytes) else self.path.take(contiguous(x.words))
        self.path.run(taken, positions, output)
