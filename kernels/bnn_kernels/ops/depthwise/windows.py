"""Where the windows of a depthwise convolution lie, and which taps of each are inside the map.

Lanes are filters of all groups side by side. One filter reads the channels of its own group alone, so a vector of
filters needs a vector of channels in the same order: the map itself where each group has one channel and one filter,
else a copy (`gathered`).

No map gets a border. Positions whose windows have the same taps inside the map are of one kind; a kernel takes six
positions of a kind at a time, over the taps of that kind. Taps outside are left out of the sums.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.ops.geometry import taps_inside
from bnn_kernels.runtime.arrays import new_array
from bnn_kernels.runtime.threads import run_rows

# Positions of a tile, and filters that a kernel takes at a time.
TILE = 6
BLOCK = 16


def suits(groups: int, channels: int, filters: int) -> bool:
    """Whether lanes are better filters of all groups than of one; channels, filters: of a group."""
    return groups > 1 and channels < 4 and filters < 8


class Filter(NamedTuple):
    """Taps (kh, kw), stride (sy, sx), padding (py, px) and dilation (dy, dx) of a filter."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


class Windows(NamedTuple):
    """Tiles of six positions of one kind, and the taps of each kind.

    starts: uint64 flat (tiles, 6), elements from an image's first to a window's first, modulo 2^64: a window may begin
    before the map. places: uint64 flat (tiles, 6), the positions oy * Wo + ox. ends: int64 flat (tiles, 2), which of
    the six are new: a tile may hold some of the one before, or the last one several times. kinds: int64 (tiles,).
    first_taps: int64 (kinds + 1,): taps first_taps[k] .. first_taps[k + 1] are those of kind k. offsets: uint64, how
    far a tap lies behind the first one. rows: uint64, its row of the weights.
    """

    starts: np.ndarray
    places: np.ndarray
    ends: np.ndarray
    kinds: np.ndarray
    first_taps: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray


def _tiles(positions: np.ndarray) -> list[tuple[np.ndarray, int, int]]:
    """Return (six positions, first and end of the new ones) for positions of one kind."""
    count = len(positions)
    if count < TILE // 2:
        return [(np.repeat(position, TILE), 0, 1) for position in positions]
    if count < TILE:
        return [(positions[np.minimum(np.arange(TILE), count - 1)], 0, count)]
    begins = [*range(0, count - TILE + 1, TILE)]
    tiles = [(positions[i : i + TILE], 0, TILE) for i in begins]
    if count % TILE:
        tiles.append((positions[-TILE:], TILE - count % TILE, TILE))
    return tiles


@functools.lru_cache(maxsize=256)
def windows_of(
    extent: tuple[int, int],
    out: tuple[int, int],
    filter_: Filter,
    pixel: int,
    channels: int,
    apart: int,
    together: int = 1,
) -> Windows:
    """Return the windows over maps of this size.

    pixel: elements of a pixel. channels: of a group, the same channel of all groups being `apart` elements behind the
    one before. together: taps that a kernel takes at a time; a kind's last ones are made up with zeros. Kinds are
    numbered as `geometry.border_of` does.
    """
    (kh, kw), (sy, sx), (py, px), (dy, dx) = filter_
    y_masks, y_kind = taps_inside(kh, sy, py, dy, extent[0], out[0])
    x_masks, x_kind = taps_inside(kw, sx, px, dx, extent[1], out[1])
    y, x = np.divmod(np.arange(out[0] * out[1]), out[1])
    starts = ((y * sy - py) * extent[1] + x * sx - px) * pixel
    kind_at = y_kind[y] * len(x_masks) + x_kind[x]
    order = np.argsort(kind_at, kind="stable")
    split = np.split(order, np.flatnonzero(np.diff(kind_at[order])) + 1)
    tiles = [(kind_at[positions[0]], *tile) for positions in split for tile in _tiles(positions)]
    places = np.array([tile[1] for tile in tiles]).reshape(-1)
    tap_y, tap_x, c = (side.reshape(-1) for side in np.mgrid[:kh, :kw, :channels])
    offset = (tap_y * dy * extent[1] + tap_x * dx) * pixel + c * apart
    inside = [np.flatnonzero(rows[tap_y] & columns[tap_x]) for rows in y_masks for columns in x_masks]
    # What makes up a last step is read inside the map, and multiplied by the row of zeros.
    more = [-len(part) % together for part in inside]
    taps = np.concatenate([np.append(part, np.repeat(part[-1:], n)) for part, n in zip(inside, more, strict=True)])
    rows = np.concatenate([np.append(part, np.full(n, len(offset))) for part, n in zip(inside, more, strict=True)])
    counts = [len(part) + n for part, n in zip(inside, more, strict=True)]
    return Windows(
        starts[places].astype(np.uint64),
        places.astype(np.uint64),
        np.array([tile[2:] for tile in tiles]).reshape(-1),
        np.array([tile[0] for tile in tiles]),
        np.concatenate([[0], np.cumsum(counts)]),
        offset[taps].astype(np.uint64),
        rows.astype(np.uint64),
    )


def by_block(weights: np.ndarray, lanes: int) -> np.ndarray:
    """Return (blocks, taps * channels + 1, 16) of (O, channels, kh, kw): the last row and lanes from O on are zeros.

    lanes: blocks * 16.
    """
    o, channels, kh, kw = weights.shape
    rows = np.zeros((kh * kw * channels + 1, lanes), weights.dtype)
    rows[:-1, :o] = weights.transpose(2, 3, 1, 0).reshape(-1, o)
    return np.ascontiguousarray(rows.reshape(len(rows), -1, BLOCK).transpose(1, 0, 2))


@inline
def six_of(array, tile):
    """The six numbers of a tile."""
    t = np.uint64(6 * tile)
    one = np.uint64(1)
    a, b, c = array[t], array[t + one], array[t + one + one]
    t += np.uint64(3)
    return a, b, c, array[t], array[t + one], array[t + one + one]


@inline
def moved(at, c):
    """Six offsets, each c further."""
    a0, a1, a2, a3, a4, a5 = at
    return a0 + c, a1 + c, a2 + c, a3 + c, a4 + c, a5 + c


@functools.lru_cache(maxsize=256)
def _sources(groups: int, channels: int, filters: int, lanes: int) -> np.ndarray:
    """Return int64 (channels * lanes,): the channel that each lane reads, for each channel of a group in turn."""
    group = np.arange(groups * filters) // filters
    sources = np.zeros((channels, lanes), np.int64)
    sources[:, : len(group)] = group * channels + np.arange(channels)[:, None]
    return sources.reshape(-1)


@jit
def _gather_channels(x, sources, out, channels, first, last):
    """Pixels of out flat (pixels, len(sources)): out[p, j] = x[p, sources[j]]."""
    for pixel in range(first, last):
        at, to = pixel * channels, pixel * len(sources)
        for j in range(len(sources)):
            out[to + j] = x[at + sources[j]]


def gathered(x: np.ndarray, pixels: int, sizes: tuple[int, int, int, int], behind: int) -> np.ndarray:
    """Return a map flat (pixels, channels of a group * lanes), and as many elements behind it, of x (pixels, C).

    sizes = (groups, channels and filters of a group, lanes).
    """
    groups, channels, _, _ = sizes
    sources = _sources(*sizes)
    out: Any = new_array((pixels * len(sources) + behind,), x.dtype, "the channels of every lane")
    run_rows(_gather_channels, pixels, out.size // 4, x, sources, out, groups * channels)
    return out
