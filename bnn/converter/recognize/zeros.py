"""Whether a sign can meet a 0, for which torch.sign has a level of its own, at twice the cost of the other two.

Behind a layer a float is 0 where its products cancel out by chance, which is as rare as a float within rounding of any
other threshold; what is not rare is an input of zeros alone. Sums of signs are integers, of which each is likely.
"""

import torch
from bnn_kernels.steps.pool import MaxPool
from torch import Tensor

from bnn.converter.graph.values import Affine, BinaryLayer, Channelwise, FloatLayer, Levels, Pool, Value
from bnn.converter.recognize.staircase import Steps

# Sums of a layer that are tried at most.
MOST_SUMS = 1 << 24


def has_level_of_zero(levels: Levels) -> bool:
    """Whether levels are signs with a third level for the one number 0."""
    quantizer, zero = levels.quantizer, torch.tensor(0.0)
    if not isinstance(quantizer, Steps) or len(quantizer.starts) != 2:
        return False
    return torch.equal(quantizer.starts, torch.stack([zero, torch.nextafter(zero, torch.tensor(1.0))]))


def meets_no_zero(x: Value) -> bool:
    """Whether a value is a layer's output, perhaps scaled, shifted and pooled, that is 0 by chance alone."""
    functions = []
    while isinstance(x, Pool) or (isinstance(x, Channelwise) and isinstance(x.form, Affine)):
        if isinstance(x, Channelwise):
            functions.append(x.function)
        elif not isinstance(x, Pool) or not isinstance(x.fields, MaxPool.Fields):
            return False
        x = x.inputs[0]
    y = _likely(x)
    if y is None:
        return False
    for function in reversed(functions):
        y = function(y)
    return bool((y != 0).all())


def _likely(x: Value) -> Tensor | None:
    """Return (T, C): what a layer gives for zeros, and for each sum of integers; None if it is no layer."""
    channels = x.shape[0]
    if isinstance(x, FloatLayer):
        bias = x.fields.bias
        return torch.zeros(1, channels) if bias is None else torch.from_numpy(bias)[None]
    if isinstance(x, BinaryLayer) and len(x.scales) == 1 and not x.fields.input_scale:
        if 2 * x.largest * channels > MOST_SUMS:
            return None
        return x.output(torch.arange(-x.largest, x.largest + 1)[:, None].expand(-1, channels))
    return None
