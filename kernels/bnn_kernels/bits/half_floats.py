"""Weights of float layers in 16 bits: what is a number of 16 bits anyway is stored as such, and widened at load."""

import numpy as np

# The tensor of a step that may be stored in 16 bits: the weight of a float layer.
FLOATS = "weight"
# Numbers by which most weights of 32 bits are told.
SAMPLE = 1024


def narrowed(x: np.ndarray) -> np.ndarray:
    """Return float32 numbers as float16 or as the upper halves of their bits (uint16, bfloat16) if that loses nothing.

    Others are returned as they are. `widened` undoes it, bit for bit.
    """
    if x.dtype != np.float32 or x.size == 0:
        return x
    if x.size > SAMPLE and narrowed(x.reshape(-1)[:SAMPLE]).dtype == np.float32:
        return x  # as weights of 32 bits mostly show at once
    bits = np.ascontiguousarray(x).view(np.uint32)
    if not (bits & np.uint32(0xFFFF)).any():
        return (bits >> np.uint32(16)).astype(np.uint16)
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), x) else x


def widened(x: np.ndarray) -> np.ndarray:
    """Return float32 of float16 numbers or of the upper halves of bits, uint16; others as they are."""
    if x.dtype == np.float16:
        return x.astype(np.float32)
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return x


def stored_bytes(name: str, x: np.ndarray) -> int:
    """Return the bytes that a tensor of a step takes in a file."""
    return narrowed(x).nbytes if name == FLOATS else x.nbytes
