"""Dense bits: how weights lie in a file, 1 bit a weight and plane, in the order of the weight array.

This is the canonical form: no channel is padded to a word. The layouts that kernels want are made from it on loading
and are never stored.
"""

import math

import numpy as np


def to_dense_bits(codes: np.ndarray, planes: int) -> np.ndarray:
    """Return uint8 (P, ceil(n/8)): bit i (least significant first) of plane p is bit p of the i-th code."""
    flat = np.ascontiguousarray(codes).reshape(-1)
    return np.packbits((flat[None] >> np.arange(planes, dtype=np.uint8)[:, None]) & 1, axis=1, bitorder="little")


def check_dense_bits(dense: np.ndarray, shape: tuple[int, ...]) -> int:
    """Return the number of weights; ValueError if the bytes do not fit the shape or a bit after the last is set."""
    count = math.prod(shape)
    if dense.dtype != np.uint8 or dense.ndim != 2 or dense.shape[1] != -(-count // 8):
        raise ValueError(f"{shape} takes uint8 (planes, {-(-count // 8)}), got {dense.dtype} {dense.shape}")
    if count % 8 and (dense[:, -1] >> count % 8).any():
        raise ValueError("a bit after the last weight is set")
    return count


def from_dense_bits(dense: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return uint8 codes of the given shape; ValueError if the bytes do not fit it or a tail bit is set."""
    count = check_dense_bits(dense, shape)
    codes = np.unpackbits(dense[0], count=count, bitorder="little")
    for p in range(1, len(dense)):
        codes |= np.unpackbits(dense[p], count=count, bitorder="little") << np.uint8(p)
    return codes.reshape(shape)
