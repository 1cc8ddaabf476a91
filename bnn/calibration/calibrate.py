"""bnn.calibrate: quantizers begin with some batches, without training."""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bnn.calibration.batches import repeatable
from bnn.calibration.begin import begin
from bnn.calibration.distribution import Distribution
from bnn.calibration.histogram import Histogram
from bnn.calibration.observe import grids_of_inputs, grids_of_weights, observed_inputs
from bnn.calibration.observers import Observer, observer_of
from bnn.quantizers.base import Quantizer


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    observer: str | Observer | None = None,
    weight_observer: str | Observer | None = None,
) -> nn.Module:
    """Begin, in place, every quantizer that learns from data (LSQ, LQ-Net, RBNN, TBN), and return the model.

        model = bnn.calibrate(bnn.quantize(model, bits=4), train_loader)
        model = bnn.calibrate(bnn.quantize(model, "int8"), batches, "mse")

    batches: a tensor, or an iterable of batches such as a DataLoader, each a tensor, a tuple or list whose first part
        is the input (a tuple or list there holds several inputs), or a dict of the model's arguments. They are moved
        to the model's device. A few hundred samples are enough.
    observer: None for a beginning as in training, below. Or how the ranges of inputs are chosen for a network that is
        not trained further, or from a better start: "min_max", "percentile" (99.99), "mse", "entropy", or an object
        such as `bnn.calibration.Percentile(99.9)`. Then every quantizer with evenly spaced levels (`LsqWeight`,
        `LsqActivation`, `AffineActivation`, `Pact`), even one that has begun, gets the step and the zero point with
        which its levels cover the range.
    weight_observer: the same for weights, "mse" if only `observer` is given. Steps are those of a channel where the
        quantizer has one for each (`per_channel`).

    Without an observer the network runs on the batches in evaluation. Each layer's quantizers begin where the layer is
    reached, so they see what the quantized layers before them give. Steps, bases and rotations begin with the first
    batch, as in training; LQ-Net's bases and TBN's thresholds then are the mean of what all batches ask for. With one,
    ranges are those of the network whose evenly spaced quantizers quantize nothing; other quantizers begin before.
    Nothing else changes: neither modes and batch norm's statistics, nor weights, gradients and random numbers, nor
    without an observer what was initialized before.

    TypeError for what is no model or no batches, ValueError if there is no batch or an empty one and, with an observer,
    for inputs that are constant or not finite, with the quantizer's path; an error leaves the quantizers as they were.
    Warns (UserWarning) of quantizers that no batch reached.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"bnn.calibrate takes a model, got {type(model).__name__}")
    if observer is None and weight_observer is None:
        begin(model, batches, stacklevel=3)
        return model
    for_weights = observer_of("mse" if weight_observer is None else weight_observer)
    for_inputs = None if observer is None else observer_of(observer)
    batches = repeatable(batches)
    weights = grids_of_weights(model)
    inputs = {} if for_inputs is None else grids_of_inputs(model)
    if not weights and not inputs:
        raise ValueError(
            "the model has no quantizer with evenly spaced levels, whose range an observer could choose: quantize it "
            'first, for instance with bnn.quantize(model, "int8")'
        )
    before = {module: _state(module) for module in model.modules() if isinstance(module, Quantizer)}
    try:
        others = [q for q in before if q.needs_data and q not in (*inputs.values(), *(q for _, q in weights.values()))]
        if others:
            begin(model, batches, stacklevel=3)
        found = {path: _of_weight(layer, q, for_weights) for path, (layer, q) in weights.items()}
        if for_inputs is not None:
            seen = observed_inputs(model, batches)
            missed = [path for path, histogram in seen.items() if histogram.is_empty]
            found |= {
                path: _of_input(path, inputs[path], seen[path], for_inputs) for path in inputs if path not in missed
            }
            if missed:
                listed = ", ".join(missed)
                warnings.warn(f"no batch reached these quantizers, they are as they were: {listed}", stacklevel=2)
        quantizers = inputs | {path: q for path, (_, q) in weights.items()}
        with torch.no_grad():
            for path, (step, zero_point) in found.items():
                quantizers[path].set_grid(step, zero_point)
    except BaseException:
        for module, state in before.items():
            module.load_state_dict(state)
        raise
    return model


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _of_weight(layer: Any, quantizer: Quantizer, observer: Observer) -> tuple[Tensor, Tensor]:
    """Return the step and the zero point of a layer's weight."""
    grid = quantizer.grid
    assert grid is not None
    filters = layer.filters(layer.weight.detach())
    rows = filters.reshape(1 if grid.channels is None else grid.channels, -1)
    if grid.channels is not None:
        values = Distribution.of(rows)
    else:
        histogram = Histogram()
        histogram.add(rows)
        values = histogram.distribution()
    return grid.fit(*observer.range_of(values, grid))


def _of_input(path: str, quantizer: Quantizer, seen: Histogram, observer: Observer) -> tuple[Tensor, Tensor]:
    """Return the step and the zero point of an input; ValueError if its values say nothing about them."""
    grid = quantizer.grid
    assert grid is not None
    if seen.low == seen.high:
        raise ValueError(
            f"{path}: all its inputs are {seen.low:g}, so they say nothing about the range of the quantizer: calibrate "
            "with other data, or, if the layers before it give nothing else, leave this layer float with skip"
        )
    if grid.low == 0 and not grid.has_zero_point and seen.high <= 0:
        raise ValueError(
            f"{path}: none of its inputs is positive, and its levels begin at 0: take a quantizer with signed "
            "levels or a zero point"
        )
    low, high = observer.range_of(seen.distribution(), grid)
    if not bool((low.isfinite() & high.isfinite() & (high > low)).all()):
        raise ValueError(
            f"{path}: {type(observer).__name__} chose the range {low.tolist()} to {high.tolist()}: no range"
        )
    return grid.fit(low, high)
