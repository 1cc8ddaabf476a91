"""Attention of one new token to all tokens of a cache, which its key and value join: a step of a decoder."""

import math
from typing import NamedTuple

import numpy as np

from bnn_kernels.compile.jit import jit
from bnn_kernels.compile.simd import float32x16
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty

LANES = float32x16.LANES


class Sizes(NamedTuple):
    """Heads, features of one head, and tokens that a cache holds."""

    heads: int
    features: int
    context: int


@jit
def _attend(query, key, value, keys, values, place, weights, out, scale, size, first, last):
    """Rows (n, head) of query, key, value and out, flat (N, H, F); keys, values flat (N, H, F, context).

    place (N,): where the new token goes in the cache. Sums over tokens go sixteen at a time, then one by one.
    weights: scratch, flat (N, H, context + sixteen).
    """
    size = Sizes(*size)
    for row in range(first, last):
        place_here = place[row // size.heads]
        here = 0
        if place_here >= 1:  # neither a NaN nor too large a number leaves the cache
            here = size.context - 1 if place_here >= size.context - 1 else int(place_here)
        count = here + 1
        whole = count - count % LANES
        one = row * size.features
        cache = one * size.context
        for f in range(size.features):
            keys[cache + f * size.context + here] = key[one + f]
            values[cache + f * size.context + here] = value[one + f]
        at = row * (size.context + LANES)
        for t in range(0, whole, LANES):
            total = float32x16.zero()
            for f in range(size.features):
                line = float32x16.load(keys, np.uint64(cache + f * size.context + t))
                total = float32x16.multiply_add(float32x16.broadcast(query, np.uint64(one + f)), line, total)
            float32x16.store(weights, np.uint64(at + t), total)
        for t in range(whole, count):
            product = np.float32(0)
            for f in range(size.features):
                product += query[one + f] * keys[cache + f * size.context + t]
            weights[at + t] = product
        largest = weights[at]
        for t in range(1, count):
            largest = max(largest, weights[at + t])
        together = np.float32(0)
        for t in range(count):
            power = np.exp((weights[at + t] - largest) * scale)
            weights[at + t] = power
            together += power
        for f in range(size.features):
            line_at = cache + f * size.context
            total = float32x16.zero()
            for t in range(0, whole, LANES):
                line = float32x16.load(values, np.uint64(line_at + t))
                total = float32x16.multiply_add(float32x16.load(weights, np.uint64(at + t)), line, total)
            lanes = at + size.context
            float32x16.store(weights, np.uint64(lanes), total)
            product = np.float32(0)
            for i in range(LANES):
                product += weights[lanes + i]
            for t in range(whole, count):
                product += weights[at + t] * values[line_at + t]
            out[one + f] = product / together


def attend(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, keys: np.ndarray, values: np.ndarray, place: np.ndarray
) -> np.ndarray:
    """Return softmax(query keys^T / sqrt(F)) values, float32 (N, H, F, 1), after key and value are in the caches.

    query, key, value: float32 (N, H, F, 1). keys, values: float32 (N, H, F, context), changed in place. place: float32
    (N, 1), how many tokens came before; only they and the new one are attended to.
    """
    n, heads, features, context = keys.shape
    size = Sizes(heads, features, context)
    out = empty(query.shape, np.float32)
    weights = empty((n * heads, context + LANES), np.float32)
    flat = [x.reshape(-1) for x in (query, key, value, keys, values, place, weights, out)]
    work = keys.size * 2 // LANES
    run_rows(_attend, n * heads, work, *flat, np.float32(1 / math.sqrt(features)), tuple(size))
    return out
