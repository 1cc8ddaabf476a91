"""How integer thresholds lie in a file: the many of a k-bit quantizer are nearly evenly spaced, so 8 bits each do.

The 255 thresholds of an 8-bit activation, at 4 bytes each, would weigh more than many a layer's weights. Between
the first and the last of a channel each is the nearest even step plus a residual of a few units.
"""

from typing import TypedDict

import numpy as np

from bnn_kernels.errors import PlanError

# Fewer thresholds than this are stored as they are.
FEWEST = 8


def _even_steps(ends: np.ndarray, count: int) -> np.ndarray:
    """Return int64 (count, C) evenly spaced integers between ends int32 (2, C), in exact integer arithmetic."""
    first, last = ends.astype(np.int64)
    return first + (last - first) * np.arange(count)[:, None] // (count - 1)


class ThresholdArrays(TypedDict, total=False):
    """Either thresholds int32 (L-1, C), or threshold_ends int32 (2, C) and threshold_residuals int8 (L-1, C)."""

    thresholds: np.ndarray
    threshold_ends: np.ndarray
    threshold_residuals: np.ndarray


def compress(t: np.ndarray) -> ThresholdArrays:
    """Return {"thresholds": t} or, where it fits, {"threshold_ends", "threshold_residuals"}; t int32 (L-1, C)."""
    if len(t) >= FEWEST:
        ends = np.ascontiguousarray(t[[0, -1]])
        residuals = t - _even_steps(ends, len(t))
        if np.abs(residuals).max(initial=0) <= 127:
            return {"threshold_ends": ends, "threshold_residuals": residuals.astype(np.int8)}
    return {"thresholds": t}


def expand(ends: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """Return the thresholds, int32 (L-1, C); PlanError if they do not fit int32."""
    if len(residuals) < 2:
        raise PlanError(f"{len(residuals)} residuals make no thresholds")
    t = _even_steps(ends, len(residuals)) + residuals
    if (t != t.astype(np.int32)).any():
        raise PlanError("thresholds do not fit 32 bits")
    return t.astype(np.int32)
