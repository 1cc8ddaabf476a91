"""Values that are others with their numbers elsewhere: where the numbers come from, and constants that go with them."""

import math
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from bnn.converter.graph.values import Moved, OffBatch, Value


def is_permuted(x: Value) -> TypeGuard[Moved]:
    """Whether a value is another one with its numbers in another order, not merely in another shape."""
    if not isinstance(x, Moved) or x.index.size != math.prod(x.inputs[0].shape):
        return False
    order = x.index.reshape(-1)
    rising = np.arange(1, order.size + 1)
    return not np.array_equal(order, rising) and np.array_equal(np.sort(order), rising)


def second_image(first: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the second image where those of the first are; 0 stays 0, a zero of the padding."""
    return np.where(first > 0, first + count, 0)


def origin(x: Value, compose: bool) -> tuple[Value, Tensor]:
    """Return where the numbers of x come from, and float64 (2, ...): from which places of two images, 0 for a zero."""
    if isinstance(x, OffBatch):
        return x.base, x.places.contiguous()
    base, index = (x.inputs[0], x.index) if compose and isinstance(x, Moved) else (x, None)
    count = math.prod(base.shape)
    first = np.arange(1, count + 1).reshape(x.shape) if index is None else index
    return base, torch.from_numpy(np.stack([first, second_image(first, count)])).to(torch.float64).contiguous()


def move_alike(x: Moved, inner: Value) -> Value:
    """Return another value of the operand's shape with its numbers where the moved value x has them."""
    return Moved(x.shape, (inner,), index=x.index)


def carried(x: Moved, constant: Tensor | None) -> Tensor | None:
    """Return a constant (1, ...) of the permuted value x as one of its operand."""
    if constant is None or constant.numel() == 1:
        return None if constant is None else constant.reshape(())
    shape = x.inputs[0].shape
    flat = torch.empty(math.prod(shape), dtype=constant.dtype)
    flat[torch.from_numpy(x.index.reshape(-1) - 1)] = constant.expand(1, *x.shape).reshape(-1)
    moved = flat.reshape(1, *shape)
    by_channel = moved.flatten(2)[..., :1].reshape(1, -1, *[1] * (len(shape) - 1)) if len(shape) > 1 else moved
    return by_channel if bool((moved == by_channel).all()) else moved
