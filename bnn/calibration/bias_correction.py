"""Bias correction: the mean of each quantized layer's output becomes that of the float network again."""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from bnn.calibration.batches import (
    call,
    counterparts,
    device_of,
    evaluating,
    inputs_of,
    random_numbers_kept,
    repeatable,
)
from bnn.layers.base import QuantLayer


class _ReachedError(Exception):
    """The layer that was asked for has given all its outputs."""


class _Mean:
    """The mean of a layer's output for each channel, over all that it is called with."""

    def __init__(self, layer: nn.Module):
        self.axis = -1 if isinstance(layer, nn.Linear) else 1
        self.total: Tensor | None = None
        self.count = 0
        self.calls: Counter[int] = Counter()  # in each batch

    def add(self, y: Tensor, batch: int) -> None:
        rows = y.detach().movedim(self.axis, 0).flatten(1).to(torch.float64)
        self.total = rows.sum(1) + (0 if self.total is None else self.total)
        self.count += rows.shape[1]
        self.calls[batch] += 1

    def value(self) -> Tensor:
        assert self.total is not None
        return self.total / self.count


def correct_bias(model: nn.Module, original: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Shift, in place, the biases of a quantized model's layers by what quantizing changed in their mean output.

        float_model, model = ..., bnn.calibrate(bnn.quantize(float_model, "int8"), batches, "mse")
        bnn.calibration.correct_bias(model, float_model, batches)

    Layer after layer, in the order in which they run: b += E[y] - E[q(y)] for each output channel, where y is the
    output of the layer at the same path of the float network and q(y) that of the quantized layer behind layers that
    are corrected already. Both means are over all batches, positions and calls. A layer without a bias gets one. After
    it the means are equal up to rounding, unless a layer is called several times with what it gave before.
    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2, with
    the expectations of data (appendix D).

    model: as bnn.quantize returned it, with steps that are set. original: the float network it was made of. batches: as
    for `bnn.calibrate`; the model runs on them once for each layer. Both run in evaluation.

    Returns the model. ValueError if it has no quantized layer, if one has no counterpart in `original`, or for batches
    as in `bnn.calibrate`.
    """
    layers: dict[str, Any] = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, QuantLayer) and not isinstance(module, nn.Embedding)
    }
    if not layers:
        raise ValueError(
            "the model has no quantized layer whose bias could be corrected: quantize it with bnn.quantize"
        )
    theirs = counterparts(original, layers)
    batches = repeatable(batches)
    with torch.no_grad(), random_numbers_kept(model), evaluating(original), evaluating(model):
        expected = _means(original, theirs, batches)
        order = list(_means(model, layers, batches))
        for path in order:
            if path not in expected:
                raise ValueError(f"{path}: it runs in the quantized network alone; give the network that was quantized")
            (found,) = _means(model, {path: layers[path]}, batches, calls=expected[path].calls).values()
            change = (expected[path].value() - found.value()).to(layers[path].weight)
            if layers[path].bias is None:
                layers[path].bias = nn.Parameter(torch.zeros_like(change))
            layers[path].bias += change
    return model


def _means(
    model: nn.Module, layers: dict[str, nn.Module], batches: Iterable[Any], calls: Counter[int] | None = None
) -> dict[str, _Mean]:
    """Return the mean outputs of layers, by path, in the order in which they first run.

    calls: how often the one layer is called in each batch, so that a batch need not run on after that.
    """
    found: dict[str, _Mean] = {}
    batch = 0

    def seen(path: str, layer: nn.Module, y: Tensor) -> None:
        mean = found.setdefault(path, _Mean(layer))
        mean.add(y, batch)
        if calls is not None and mean.calls[batch] == calls[batch]:
            raise _ReachedError

    handles = [
        layer.register_forward_hook(lambda layer, _given, y, path=path: seen(path, layer, y))
        for path, layer in layers.items()
    ]
    try:
        for given in inputs_of(batches, device_of(model)):
            with suppress(_ReachedError):
                call(model, given)
            batch += 1
    finally:
        for handle in handles:
            handle.remove()
    return found
