"""The same functions in plain NumPy: obvious, slow, and what every kernel is tested against.

Tensors are channels first, (N, C, H, W), and levels are integers; nothing here knows of words, tiles or threads.
"""

import math
from collections.abc import Sequence

import numpy as np

from bnn_kernels import checks


def sign(x: np.ndarray) -> np.ndarray:
    """Return float32 +1 where x >= 0 (also -0.0) and -1 elsewhere."""
    return np.where(pack_bits(x), -1, 1).astype(np.float32)


def pack_bits(x: np.ndarray) -> np.ndarray:
    """Return bool of x's shape: the bit of each sign, True for -1."""
    return np.asarray(checks.array(x, "x") < 0)


def pack_words(bits: np.ndarray) -> np.ndarray:
    """Return uint64 (N, H, W, ceil(C/64)) of bool (N, C, H, W): channel c is bit c % 64 of word c // 64."""
    bits = checks.exactly(bits, "bits", np.bool_, (None,) * 4)
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

    padding: an int, a pair (y, x), or (top, left, bottom, right). Positions outside the map have the value pad_value.
    Returns (N, O, Ho, Wo).
    """
    x, weight = (checks.array(a, name) for a, name in ((x, "x"), (weight, "weight")))
    if x.ndim != 4 or weight.ndim != 4:
        raise ValueError(f"x must be (N, C, H, W) and weight (O, C/groups, kh, kw), got {x.shape} and {weight.shape}")
    groups = checks.integer(groups, "groups", 1)
    if weight.shape[1] * groups != x.shape[1] or weight.shape[0] % groups or 0 in weight.shape:
        raise ValueError(f"the weight {weight.shape} in {groups} groups does not fit the input {x.shape}")
    pad_value = checks.number(pad_value, "pad_value")
    integers = all(np.equal(np.mod(a, 1), 0).all() for a in (x, weight))
    dtype = np.int64 if integers and pad_value.is_integer() else np.float64
    (sy, sx), (dy, dx) = checks.pair(stride, "stride", 1), checks.pair(dilation, "dilation", 1)
    top, left, bottom, right = checks.around(padding, "padding")
    n, c, h, w = x.shape
    o, _, kh, kw = weight.shape
    padded = np.full((n, c, top + h + bottom, left + w + right), pad_value, dtype)
    padded[:, :, top : top + h, left : left + w] = x
    ho = (top + h + bottom - dy * (kh - 1) - 1) // sy + 1
    wo = (left + w + right - dx * (kw - 1) - 1) // sx + 1
    if ho < 1 or wo < 1:
        raise ValueError(f"the {kh}x{kw} filter does not fit the {h}x{w} map")
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
    """Return int64 (N, O) of integer levels x (N, K), (N, C, L) or (N, C, H, W), flattened so, and weight (O, K)."""
    x, weight = checks.array(x, "x"), checks.array(weight, "weight")
    if weight.ndim != 2 or x.ndim not in (2, 3, 4) or math.prod(x.shape[1:]) != weight.shape[1]:
        raise ValueError(f"x must be (N, K) or (N, C, H, W) and weight (O, K), got {x.shape} and {weight.shape}")
    return x.reshape(len(x), weight.shape[1]).astype(np.int64) @ weight.astype(np.int64).T


def level_matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return int64 (N, H, R, C): sum over k of integer levels a (N, K, H, R) times b (N, K, H, C)."""
    a, b = checks.array(a, "a"), checks.array(b, "b")
    if a.ndim != 4 or b.ndim != 4 or a.shape[:3] != b.shape[:3]:
        raise ValueError(f"a must be (N, K, H, R) and b (N, K, H, C), got {a.shape} and {b.shape}")
    return a.astype(np.int64).transpose(0, 2, 3, 1) @ b.astype(np.int64).transpose(0, 2, 1, 3)


def threshold(dot: np.ndarray, t: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """Return bool: (dot < t) xor flip, with t and flip (O,) for dot (N, O, ...)."""
    dot, t, flip = checks.array(dot, "dot"), checks.array(t, "t"), checks.array(flip, "flip")
    if dot.ndim < 2 or t.shape != dot.shape[1:2] or flip.shape != t.shape or flip.dtype != np.bool_:
        raise ValueError(f"t and bool flip must be (O,) for dot (N, O, ...), got {t.shape} {flip.shape} {dot.shape}")
    shape = (1, -1, *[1] * (dot.ndim - 2))
    return (dot < t.reshape(shape)) ^ flip.reshape(shape)


def thresholds(dot: np.ndarray, t: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """Return int64 level indices: how many i have (dot >= t[i]) xor flip; t (L-1, O), flip (O,), dot (N, O, ...)."""
    t = checks.array(t, "t")
    if t.ndim != 2:
        raise ValueError(f"t must be (levels - 1, O), got {t.shape}")
    return sum((~threshold(dot, row, flip) for row in t), start=np.zeros(np.shape(dot), np.int64))


def _windows(
    x: np.ndarray,
    kernel: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    outside: float,
) -> np.ndarray:
    x = checks.array(x, "x").astype(np.float64)
    if x.ndim != 4:
        raise ValueError(f"x must be (N, C, H, W), got {x.shape}")
    kernel, stride = checks.pair(kernel, "kernel", 1), checks.pair(stride, "stride", 1)
    py, px = checks.pair(padding, "padding", 0)
    x = np.pad(x, ((0, 0), (0, 0), (py, py), (px, px)), constant_values=outside)
    if kernel[0] > x.shape[2] or kernel[1] > x.shape[3]:
        raise ValueError(f"a {kernel} pooling window does not fit the map with its border, {x.shape[2:]}")
    view = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1]]


def max_pool2d(
    x: np.ndarray, kernel: int | Sequence[int], stride: int | Sequence[int], padding: int | Sequence[int] = 0
) -> np.ndarray:
    """Return the maximum of each window of x (N, C, H, W), rounded down in size; pads never win."""
    return np.asarray(_windows(x, kernel, stride, padding, -np.inf).max((4, 5)))


def avg_pool2d(
    x: np.ndarray, kernel: int | Sequence[int], stride: int | Sequence[int], padding: int | Sequence[int] = 0
) -> np.ndarray:
    """Return the mean of each window of x (N, C, H, W); pads count as zeros."""
    return np.asarray(_windows(x, kernel, stride, padding, 0).mean((4, 5)))


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
    x, groups = checks.array(x, "x"), checks.integer(groups, "groups", 1)
    if x.ndim != 4 or x.shape[1] % groups or x.shape[1] == 0:
        raise ValueError(f"x must be (N, C, H, W) with channels in {groups} groups, got {x.shape}")
    n, c, h, w = x.shape
    mean = np.abs(x.astype(np.float64)).reshape(n, groups, c // groups, h, w).mean(2)
    kh, kw = checks.pair(kernel, "kernel", 1)
    box = np.full((groups, 1, kh, kw), 1 / (kh * kw))
    return conv2d(mean, box, stride, padding, dilation, groups)
