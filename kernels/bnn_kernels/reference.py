"""The same functions in plain NumPy: obvious, slow, and what every kernel is tested against.

Tensors are channels first, (N, C, H, W), and levels are integers; nothing here knows of words, tiles or threads.
"""

from collections.abc import Sequence

import numpy as np


def _two(value: int | Sequence[int]) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, (int, np.integer)) else (int(value[0]), int(value[1]))


def sign(x: np.ndarray) -> np.ndarray:
    """Return float32 +1 where x >= 0 (also -0.0) and -1 elsewhere."""
    return np.where(x < 0, -1, 1).astype(np.float32)


def pack_bits(x: np.ndarray) -> np.ndarray:
    """Return bool of x's shape: the bit of each sign, True for -1."""
    return x < 0


def pack_words(bits: np.ndarray) -> np.ndarray:
    """Return uint64 (N, H, W, ceil(C/64)) of bool (N, C, H, W): channel c is bit c % 64 of word c // 64."""
    n, c, h, w = bits.shape
    words = np.zeros((n, h, w, -(-c // 64)), np.uint64)
    for channel in range(c):
        words[..., channel // 64] |= bits[:, channel].astype(np.uint64) << np.uint64(channel % 64)
    return words


def conv2d(
    x: np.ndarray,
    weight: np.ndarray,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    pad_value: float = 0,
) -> np.ndarray:
    """Convolve x (N, C, H, W) with weight (O, C/groups, kh, kw): int64 if both are integers, else float64.

    Positions outside the map have the value pad_value. Returns (N, O, Ho, Wo).
    """
    integers = all(np.equal(np.mod(a, 1), 0).all() for a in (x, weight))
    dtype = np.int64 if integers and pad_value == int(pad_value) else np.float64
    (sy, sx), (py, px), (dy, dx) = _two(stride), _two(padding), _two(dilation)
    n, c, h, w = x.shape
    o, _, kh, kw = weight.shape
    padded = np.full((n, c, h + 2 * py, w + 2 * px), pad_value, dtype)
    padded[:, :, py : py + h, px : px + w] = x
    ho = (h + 2 * py - dy * (kh - 1) - 1) // sy + 1
    wo = (w + 2 * px - dx * (kw - 1) - 1) // sx + 1
    out = np.zeros((n, o, ho, wo), dtype)
    for i in range(o):
        group = i // (o // groups)
        channels = slice(group * (c // groups), (group + 1) * (c // groups))
        for y in range(ho):
            for z in range(wo):
                rows = slice(y * sy, y * sy + dy * (kh - 1) + 1, dy)
                columns = slice(z * sx, z * sx + dx * (kw - 1) + 1, dx)
                out[:, i, y, z] = (padded[:, channels, rows, columns] * weight[i].astype(dtype)).sum((1, 2, 3))
    return out


def linear(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return int64 (N, O) of integer levels x (N, K) or (N, C, H, W), flattened in that order, and weight (O, K)."""
    return x.reshape(len(x), weight.shape[1]).astype(np.int64) @ weight.astype(np.int64).T


def threshold(dot: np.ndarray, t: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """Return bool: (dot < t) xor flip, with t and flip (O,) for dot (N, O, ...)."""
    shape = (1, -1, *[1] * (dot.ndim - 2))
    return (dot < t.reshape(shape)) ^ flip.reshape(shape)


def thresholds(dot: np.ndarray, t: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """Return int64 level indices: how many i have (dot >= t[i]) xor flip; t (L-1, O), flip (O,), dot (N, O, ...)."""
    return np.stack([~threshold(dot, row, flip) for row in t]).sum(0, dtype=np.int64)


def _windows(x: np.ndarray, kernel: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    view = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1]]


def max_pool2d(
    x: np.ndarray, kernel: int | Sequence[int], stride: int | Sequence[int], padding: int | Sequence[int] = 0
) -> np.ndarray:
    """Return the maximum of each window of x (N, C, H, W), rounded down in size; pads never win."""
    py, px = _two(padding)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (py, py), (px, px)), constant_values=-np.inf)
    return _windows(padded, _two(kernel), _two(stride)).max((4, 5))


def avg_pool2d(
    x: np.ndarray, kernel: int | Sequence[int], stride: int | Sequence[int], padding: int | Sequence[int] = 0
) -> np.ndarray:
    """Return the mean of each window of x (N, C, H, W); pads count as zeros."""
    py, px = _two(padding)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (py, py), (px, px)))
    return _windows(padded, _two(kernel), _two(stride)).mean((4, 5))


def input_scale(
    x: np.ndarray,
    kernel: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> np.ndarray:
    """Return XNOR-Net's K, float64 (N, groups, Ho, Wo): mean |x| over a group's channels, box filtered, zeros outside.

    Rastegari et al. 2016, section 3.2.
    """
    n, c, h, w = x.shape
    mean = np.abs(x.astype(np.float64)).reshape(n, groups, c // groups, h, w).mean(2)
    kh, kw = _two(kernel)
    box = np.full((groups, 1, kh, kw), 1 / (kh * kw))
    return conv2d(mean, box, stride, padding, dilation, groups)
