"""How a filter moves over a map: sizes of outputs, and which taps lie outside the map at which positions."""

from typing import NamedTuple

import numpy as np

from bnn_kernels.bits.zero_points import ZeroPoints


class Frame(NamedTuple):
    """Rows above and below a map, and columns left and right of it."""

    top: int
    left: int
    bottom: int
    right: int


class Geometry(NamedTuple):
    """Kernel size, stride, padding and dilation, each (y, x); groups; and the integer level outside the map.

    padding: of the first side; end: behind the map, if that is not the same.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    pad_value: int
    end: tuple[int, int] | None = None

    @property
    def frame(self) -> Frame:
        """Rows and columns around the map."""
        return Frame(*self.padding, *(self.padding if self.end is None else self.end))

    @property
    def pads_levels(self) -> bool:
        """Whether positions outside the map hold a level; otherwise they contribute nothing."""
        return self.pad_value != 0 and any(self.frame)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (Ho, Wo) for an (H, W) map; ValueError if the filter does not fit."""
        size = []
        around = self.frame.top + self.frame.bottom, self.frame.left + self.frame.right
        for extent, k, s, p, d in zip((height, width), self.kernel, self.stride, around, self.dilation, strict=True):
            if extent + p < d * (k - 1) + 1:
                raise ValueError(
                    f"the {self.kernel[0]}x{self.kernel[1]} filter with dilation {self.dilation} does not fit "
                    f"the {height}x{width} map with padding {self.padding if self.end is None else tuple(self.frame)}"
                )
            size.append((extent + p - d * (k - 1) - 1) // s + 1)
        return size[0], size[1]


class Maps(NamedTuple):
    """The inputs that a plan is made for: size of the map, size of the output, planes and zero points of the levels."""

    extent: tuple[int, int]
    out: tuple[int, int]
    signed: bool
    multipliers: tuple[int, ...]
    zero: ZeroPoints | None = None


class Border(NamedTuple):
    """Positions with the same taps inside the map are of one kind of border: their sums need the same constant.

    y_kind int32 (Ho,), x_kind int32 (Wo,): y_kind[oy] + x_kind[ox] is the kind of output (oy, ox). y_masks, x_masks:
    int64 (kinds of an axis, kh or kw), 1 where a tap lies inside the map, or on a border that holds a level.
    """

    y_kind: np.ndarray
    x_kind: np.ndarray
    y_masks: np.ndarray
    x_masks: np.ndarray

    def table(self, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
        """Return the constants int64 (kinds, G, filters of a group) of a layer.

        inside, outside: int64 (G, filters of a group, kh, kw), what a tap adds where it lies inside, and outside.
        """
        table = np.einsum("yk,xl,gfkl->yxgf", self.y_masks, self.x_masks, inside - outside) + outside.sum((2, 3))
        return table.reshape(-1, *table.shape[2:])


def taps_inside(k: int, s: int, p: int, d: int, extent: int, out: int, frame: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (masks bool (kinds, k), kind int64 (out,)) of an axis: which taps lie inside the map at each position.

    k, s, p, d: taps, stride, padding and dilation. frame: how far beyond the map still counts as inside.
    """
    tap = np.arange(out)[:, None] * s - p + np.arange(k) * d
    within = (tap >= -frame) & (tap < extent + frame)
    masks, kind = np.unique(within, axis=0, return_inverse=True)
    return masks, kind.reshape(-1)


def border_of(geometry: Geometry, maps: Maps) -> Border:
    """Return the kinds of border of a layer's outputs."""
    kinds, masks = [], []
    for axis in range(2):
        k, s, p, d = (v[axis] for v in (geometry.kernel, geometry.stride, geometry.padding, geometry.dilation))
        frame = max(geometry.frame[axis::2]) if geometry.pads_levels else 0
        mask, kind = taps_inside(k, s, p, d, maps.extent[axis], maps.out[axis], frame)
        masks.append(mask.astype(np.int64))
        kinds.append(kind)
    y_kind, x_kind = kinds[0] * len(masks[1]), kinds[1]
    return Border(y_kind.astype(np.int32), x_kind.astype(np.int32), *masks)
