"""What a binary convolution prepares once for each size of map: tables, the kernel that runs it, and its bounds.

`binary_conv` derives the sums; here are their constants: the factor of a count, what taps and weights add at each kind
of border, and thresholds solved for the bare count.
"""

import math
from typing import Any

import numpy as np

from bnn_kernels.bits.tensor import BitTensor, code_of
from bnn_kernels.bits.thresholds import Thresholds
from bnn_kernels.ops.binary_conv.level_lookup import level_lookup_kernel, lookups_for
from bnn_kernels.ops.binary_conv.lookup import lookup_kernel, pair_table
from bnn_kernels.ops.binary_conv.popcount import LANES, popcount_kernel
from bnn_kernels.ops.binary_conv.rows import row_length
from bnn_kernels.runtime.threads import run_rows

# Positions that a kernel should get at a time at least: it computes four together.
POSITIONS = 8
# Fewer positions than this are split by their filters too.
FEW = 16

INT32 = np.iinfo(np.int32)


def wrapped(numbers: np.ndarray) -> np.ndarray:
    """Return int64 numbers modulo 2^32, as int32."""
    return (numbers & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


class ConvPlan:
    """What a convolution (`binary_conv.PackedConv2d`) needs for maps of one size and kind of planes."""

    def __init__(self, conv: Any, bits: BitTensor):
        h, w = bits.words.shape[2:4]
        own, groups = conv.shape[1], conv.groups
        self.ho, self.wo = conv.output_size(h, w)
        planes = len(bits.multipliers)
        pads = conv.pad_value != 0 and conv.padding != (0, 0)
        code = code_of(conv.pad_value, bits) if pads else 0
        self.pad_bits = tuple(bool(code >> p & 1) for p in range(planes))
        kinds, masks = conv.border_kinds((h, w), (self.ho, self.wo), pads)
        kinds[0] = kinds[0] * len(masks[1])
        self.xor = conv.signed
        # Factor of a count, and what taps inside and outside the map add for each tap.
        ones = conv.tap_ones
        everywhere = np.full_like(ones, own * sum(conv.multipliers))
        if conv.signed:
            factor, inside, outside = (-2, everywhere, 2 * ones) if bits.signed else (1, -ones, -ones)
        else:
            factor, inside, outside = (-2, ones, 0 * ones) if bits.signed else (1, 0 * ones, 0 * ones)
        sums = np.einsum("yk,xl,gfkl->yxgf", *masks, inside - outside) + outside.sum((2, 3))
        offsets = np.zeros((*sums.shape[:3], -(-conv.filters // LANES) * LANES), np.int64)
        offsets[..., : conv.filters] = sums * sum(bits.multipliers)
        self.kind, plane_pairs = conv.kernel_for(bits.multipliers, self.ho * self.wo)
        multipliers = bits.multipliers
        most = math.prod(conv.shape[1:])
        if plane_pairs is not None:
            multipliers = tuple(int(m) for m in plane_pairs.factors)
            lookups = lookups_for(conv.shape[2], conv.shape[3] * own)
            most = lookups * plane_pairs.most
            too_much = lookups * int(plane_pairs.factors @ plane_pairs.bias) * sum(conv.multipliers)
            offsets[..., : conv.filters] -= factor * too_much
        factors = [factor * a * b for a in multipliers for b in conv.multipliers]
        # Kernels add modulo 2^32, and the dot products fit. What is compared before an offset is added must fit too.
        pairs = wrapped(np.array(factors, np.int64))
        self.single = len(factors) == 1
        counts = [most] if self.single else [most * f for f in factors]
        self.sums_fit = sum(c for c in counts if c > 0) < INT32.max and sum(c for c in counts if c < 0) >= INT32.min
        row_words = row_length(w, own, conv.padding[1])
        size = (self.ho, self.wo, h + 2 * conv.padding[0], groups, own, conv.filters, row_words, planes)
        # The input's own words are the windows of a 1x1 convolution.
        kernel = (*conv.shape[2:], *conv.stride, *conv.padding, groups, own % 64)
        self.direct = self.kind == "popcount" and kernel == (1, 1, 1, 1, 0, 0, 1, 0)
        if plane_pairs is not None:
            extra: Any = (plane_pairs.table, plane_pairs.most)
        else:
            extra = pair_table(self.xor) if self.kind == "lookup" else self.direct
        geometry = (*conv.shape[2:], *conv.stride, *conv.dilation)
        self.factor = factors[0] if self.single else 1
        self.offsets = offsets
        self.blocks = -(-conv.filters // LANES)
        weights = conv.weights_for(self.kind)
        self.head = (extra, weights, *(k.astype(np.int32) for k in kinds), pairs, size, geometry)
        self.tables = (wrapped(np.array(self.factor))[()], wrapped(offsets).reshape(-1))
        self.work = conv.lane_weights.size // LANES * planes
        self._bounds: tuple[Thresholds, np.ndarray, np.ndarray] | None = None

    def bounds(self, thresholds: Thresholds) -> tuple[np.ndarray, np.ndarray]:
        """Return (bounds int32 flat like the offsets, flip uint8): thresholds of a sign solved for the kernel's sums.

        factor * sum + offset < t is sum < ceil((t - offset) / factor) for a positive factor, and for a negative one
        not sum < floor((t - offset) / factor) + 1. Lanes without a filter give bit 0.
        """
        found = self._bounds
        if found is None or found[0] is not thresholds:
            t = np.zeros(self.offsets.shape[2] * self.offsets.shape[3], np.int64).reshape(self.offsets.shape[2:])
            flip = np.zeros(t.shape, bool)
            filters = thresholds.channels // t.shape[0]
            t[:, :filters] = thresholds.t[0].reshape(t.shape[0], -1)
            flip[:, :filters] = thresholds.flip.reshape(t.shape[0], -1)
            rest = t - self.offsets
            if self.factor > 0:
                bounds = -(-rest // self.factor)
            else:
                bounds = rest // self.factor + 1
                flip = ~flip
            bounds[..., filters:] = INT32.max if self.factor < 0 else INT32.min
            flip[:, filters:] = self.factor < 0
            found = (
                thresholds,
                bounds.clip(INT32.min, INT32.max).astype(np.int32).reshape(-1),
                np.packbits(flip, bitorder="little"),
            )
            self._bounds = found
        return found[1], found[2]

    def run(self, rows: np.ndarray, plane_size: int, positions: int, sink_name: str, sink: tuple[Any, ...]) -> None:
        """Compute all positions into a sink (`conv_sinks`)."""
        work = positions * self.work
        if self.kind == "popcount":
            kernel = popcount_kernel(sink_name, self.xor, self.single)
            # Few positions, as in a linear layer, are shared among threads by their filters.
            splits = 1 if positions >= FEW else max(1, min(FEW, self.blocks // 2))
            parts, multiple = positions * splits, POSITIONS if splits == 1 else 1
            given = (*self.head, (positions, splits), self.tables, sink)
            run_rows(kernel, parts, work, rows, plane_size, *given, multiple=multiple)
            return
        kernel = lookup_kernel(sink_name) if self.kind == "lookup" else level_lookup_kernel(sink_name)
        run_rows(kernel, positions, work, rows, plane_size, *self.head, self.tables, sink, multiple=POSITIONS)
