"""FP32 matrix product with the tiles of the FP32 convolution: the classifier of a binary network.

A row of work is a block of sixteen outputs: with one image its weights pass by once, with many they stay in the
cache while six images at a time go over them. Every image's sum has the same order whatever the batch.
"""

import numpy as np

from bnn_kernels import _simd
from bnn_kernels._jit import jit
from bnn_kernels.bit_tensor import BitTensor
from bnn_kernels.epilogue import Epilogue, addresses, finish_block
from bnn_kernels.float_conv import filter_lanes, tile_of_eight, tile_of_sixteen, window_offsets
from bnn_kernels.threads import run_rows


@jit
def _linear_blocks(x, offsets, w, sink, size, first, last):
    """Blocks of sixteen outputs.

    x float32 flat (N, K); offsets 0 .. K-1; w flat `filter_lanes`; sink: see `epilogue.addresses`; size = (N, O).
    """
    images, outputs = size
    features = len(offsets)
    sums = np.zeros(96, np.float32)
    ready = addresses(sink)
    for block in range(first, last):
        o = block * 16
        j = np.uint64(o * features)
        halves = 2 if o + 8 < outputs else 1
        for n in range(0, images, 6):
            end = images - 1
            at = (
                np.uint64(n * features),
                np.uint64(min(n + 1, end) * features),
                np.uint64(min(n + 2, end) * features),
                np.uint64(min(n + 3, end) * features),
                np.uint64(min(n + 4, end) * features),
                np.uint64(min(n + 5, end) * features),
            )
            if halves == 2:
                tile_of_sixteen(x, offsets, at, w, j, sums)
            else:
                tile_of_eight(x, offsets, at, w, j, sums)
            for i in range(min(6, images - n)):
                for half in range(halves):
                    c = o + half * 8
                    finish_block(_simd.load(sums, np.uint64(i * 16 + half * 8)), n + i, c, outputs - c, ready)


class FloatProduct:
    """FP32 matrix product of contiguous (N, K) with weight float32 (O, K)."""

    def __init__(self, weight: np.ndarray):
        self.outputs, self.features = weight.shape
        self._lanes = filter_lanes(weight[:, :, None, None], 1).reshape(-1)
        self._plain = Epilogue(self.outputs)
        self._offsets = window_offsets(self.features, self.features, 1, (1, 1, 1, 1))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return float32 (N, O)."""
        floats, _ = self.finish(x, self._plain)
        assert floats is not None
        return floats[:, 0, 0]

    def finish(
        self, x: np.ndarray, epilogue: Epilogue, residual: np.ndarray | None = None, keep: bool = True
    ) -> tuple[np.ndarray | None, BitTensor | None]:
        """Return (float32 (N, 1, 1, O) or None, signs or None): the sums through an epilogue."""
        sink, results = epilogue.sink((len(x), 1, 1, self.outputs), residual, keep)
        blocks = -(-self.outputs // 16)
        work = len(x) * self._lanes.size // _simd.LANES
        run_rows(_linear_blocks, blocks, work, x.reshape(-1), self._offsets, self._lanes, sink, (len(x), self.outputs))
        return results()
