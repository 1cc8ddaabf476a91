"""Dense bits: how weights lie in a file, 1 bit a weight and plane, in the order of the weight array.

This is the canonical form: no channel is padded to a word. The layouts that kernels want are made from it on loading
and are never stored.
"""

import math
from collections.abc import Sequence

import numpy as np

from bnn_kernels import checks


def to_dense_bits(codes: np.ndarray, planes: int) -> np.ndarray:
    """Return uint8 (P, ceil(n/8)): bit i (least significant first) of plane p is bit p of the i-th code."""
    flat = np.ascontiguousarray(codes).reshape(-1)
    return dense_of_planes((flat[None] >> np.arange(planes, dtype=np.uint8)[:, None]) & 1)


def dense_of_planes(planes: np.ndarray) -> np.ndarray:
    """Return uint8 (P, ceil(n/8)) of planes (P, *shape), bool or of 0 and 1."""
    return np.packbits(np.ascontiguousarray(planes).reshape(len(planes), -1), axis=1, bitorder="little")


def check_dense_bits(dense: np.ndarray, shape: tuple[int, ...]) -> int:
    """Return the number of weights; ValueError if the bytes do not fit the shape or a bit after the last is set."""
    count = math.prod(shape)
    if dense.dtype != np.uint8 or dense.ndim != 2 or dense.shape[1] != -(-count // 8):
        raise ValueError(f"{shape} takes uint8 (planes, {-(-count // 8)}), got {dense.dtype} {dense.shape}")
    if count % 8 and (dense[:, -1] >> count % 8).any():
        raise ValueError("a bit after the last weight is set")
    return count


def checked_dense_bits(dense: np.ndarray, shape: Sequence[int], planes: int, sides: str) -> tuple[int, ...]:
    """Return the shape of a weight; ValueError or TypeError if its bits do not fit.

    planes: that there must be; sides: the names of the sides, such as "(O, K)".
    """
    dense = checks.array(dense, "the dense bits", writable=False)
    found = tuple(checks.integer(side, "each side of the weight's shape", 1) for side in shape)
    if len(found) != sides.count(",") + 1 or len(dense) != planes:
        raise ValueError(f"weight must have shape {sides} and a plane for each multiplier, got {found}, {len(dense)}")
    check_dense_bits(dense, found)
    return found


def from_dense_bits(dense: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return uint8 codes of the given shape; ValueError if the bytes do not fit it or a tail bit is set."""
    return codes_between(dense, 0, check_dense_bits(dense, shape)).reshape(shape)


def codes_of_rows(dense: np.ndarray, rows: np.ndarray, length: int) -> np.ndarray:
    """Return uint8 (*rows.shape, length): the codes of rows, int64, of a weight whose rows are `length` long."""
    begin = rows[..., None] * length
    # A row may begin and end within a byte.
    places = np.minimum(begin // 8 + np.arange((length + 14) // 8), dense.shape[1] - 1)
    inside = begin % 8 + np.arange(length)
    codes = np.zeros(inside.shape, np.uint8)
    for p, plane in enumerate(dense):
        bits = np.unpackbits(plane[places], axis=-1, bitorder="little")
        codes |= np.take_along_axis(bits, inside, -1) << np.uint8(p)
    return codes


def codes_between(dense: np.ndarray, first: int, last: int) -> np.ndarray:
    """Return uint8 (last - first,): the codes of some of the weights."""
    begin = first % 8
    part = dense[:, first // 8 : -(-last // 8)]
    codes = np.unpackbits(part[0], bitorder="little")[begin : begin + last - first]
    for p in range(1, len(part)):
        codes |= np.unpackbits(part[p], bitorder="little")[begin : begin + last - first] << np.uint8(p)
    return codes
