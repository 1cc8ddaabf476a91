"""Attention to a cache of keys and values, the state of a decoder that computes token by token."""

import math

import numpy as np

from bnn_kernels.ops.cached_attention import attend
from bnn_kernels.steps.base import Spec, Step, need, step
from bnn_kernels.steps.fields import StepFields


@step
class CachedAttention(Step):
    """Query, key and value (1, heads, features) of one token, caches (context, heads, features), place (1,).

    The key and the value go to `place` of their caches, which are changed in place. The output, (1, heads, features),
    is softmax(query keys^T / sqrt(features)) values over the places up to it.
    """

    class Fields(StepFields):
        op = "cached_attention"

    fields: Fields
    arity = 6
    in_place = (3, 4)

    def infer(self, inputs: list[Spec]) -> Spec:
        query, key, value, keys, values, place = inputs
        for x in inputs:
            need(x.kind == "float", f"takes floats, got {x}")
        need(len(query.shape) == 3 and query.shape[0] == 1, f"takes one token (1, heads, features), got {query.shape}")
        need(
            query.shape == key.shape == value.shape,
            f"query, key and value are {query.shape}, {key.shape}, {value.shape}",
        )
        fits = keys.shape == values.shape and keys.shape[1:] == query.shape[1:]
        need(fits, f"the caches {keys.shape} and {values.shape} do not fit {query.shape}")
        need(place.shape == (1,), f"the place is one number, got {place.shape}")
        return query

    def below(self, inputs: list[Spec]) -> dict[int, int]:
        return {5: inputs[3].shape[0]}

    def macs(self, inputs: list[Spec]) -> int:
        return 2 * math.prod(inputs[3].shape)

    def precision(self, inputs: list[Spec]) -> str:
        return "A32A32"

    def run(self, *inputs: np.ndarray) -> np.ndarray:
        return attend(*inputs)
