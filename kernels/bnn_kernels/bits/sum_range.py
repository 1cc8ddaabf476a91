"""How large the sums of a layer may become: the one limit for layers, plans and the converter.

A dot product of `products` pairs of levels is at most products * |input level| * |weight level|, and leaves a kernel as
int32. The largest int32 itself stands for a threshold that no sum reaches, so sums stay below it.
"""

import numpy as np

from bnn_kernels.bits.planes import level_of_code

INT32 = np.iinfo(np.int32)
LARGEST_SUM = int(INT32.max) - 1


def largest_level(multipliers: tuple[int, ...], signed: bool) -> int:
    """Return the largest magnitude of the levels of some planes."""
    return int(np.abs(level_of_code(multipliers, signed)).max())


def largest_sum(products: int, input_level: int, weight_level: int) -> int:
    """Return the largest magnitude of a sum of products of levels; ValueError if int32 does not hold it."""
    largest = products * input_level * weight_level
    if largest > LARGEST_SUM:
        raise ValueError(
            f"sums of {products} products of up to {input_level} x {weight_level} can overflow int32 "
            f"({largest} > {LARGEST_SUM}); use fewer bits or inputs"
        )
    return largest


def wrapped(numbers: np.ndarray) -> np.ndarray:
    """Return int64 numbers modulo 2^32, as int32: kernels add modulo 2^32, and what they end with fits."""
    return (numbers & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
