"""AdaRound: each weight is rounded up or down so that the layer's output, not the weight, comes closest."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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

# The stretch of the sigmoid, equation 23, so that 0 and 1 are reached.
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
# The exponent of the regularizer at first and at last, and the share of the iterations without one: the authors' code.
FIRST_EXPONENT, LAST_EXPONENT, WARM_UP = 20.0, 2.0, 0.2


def adaptive_rounding(
    model: nn.Module, original: nn.Module, batches: Iterable[Any], bits: int = 4, iterations: int = 1000,
    learning_rate: float = 1e-2, regularization: float = 1e-2, batch_size: int = 32, seed: int = 0,
) -> nn.Module:  # fmt: skip
    """Choose, in place, for every weight of few bits whether it is rounded up or down (AdaRound), and return the model.

    Layer after layer, in the order in which they run, with W the weight, s its step and V a number for each weight:

        min over V of ||y - y_V||^2 + lambda sum(1 - |2 h(V) - 1|^beta),   h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)

    y is the output of the layer at the same path of the float network, y_V that of the quantized layer behind quantized
    ones, with weights s clip(floor(W / s) + h(V), -Q_N, Q_P). The squared error is summed over channels and averaged
    over samples and positions; beta falls from 20 to 2 along a cosine after a fifth of the iterations without the
    second term. Then h(V) is 0 or 1: the latent weights become the values that were chosen, which every later rounding
    keeps. Where a layer's error over all batches is not smaller than with the nearest values, it keeps these.
    Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020, section 3, equations 21 to
    25; iterations, learning rate and lambda as in the authors' released code (AIMET), but for their 10,000 iterations.

    model: as bnn.quantize returned it, with steps that are set (`bnn.calibrate`). original: the float network it was
    made of. batches: as for `bnn.calibrate`, all inputs and outputs of a layer at a time are kept in memory. bits: the
    widest weights that are rounded so. batch_size: samples of one of the batches that a step of Adam sees. seed: of
    the order of the samples.

    ValueError if the model has no such layer, if one has no counterpart in `original`, for batches as in
    `bnn.calibrate` and for iterations that are not positive.
    """
    if iterations < 1 or batch_size < 1:
        raise ValueError(f"iterations and batch_size must be at least 1, got {iterations!r} and {batch_size!r}")
    layers: dict[str, Any] = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, QuantLayer)
        and not isinstance(module, nn.Embedding)
        and module.weight_quantizer.grid is not None
        and module.weight_quantizer.bits <= bits
    }
    if not layers:
        raise ValueError(f"the model has no layer with evenly spaced weights of at most {bits} bits: nothing to round")
    theirs = counterparts(original, layers)
    batches = repeatable(batches)
    generator = torch.Generator().manual_seed(seed)
    with random_numbers_kept(model), evaluating(original), evaluating(model):
        for path in _order(model, layers, batches):
            outputs = [y for _, y in _calls(original, theirs[path], batches)]
            inputs = [x for x, _ in _calls(model, layers[path], batches)]
            if [len(x) for x in inputs] != [len(y) for y in outputs]:
                raise ValueError(f"{path}: it runs on other inputs than in the float network; give the network it was")
            problem = _Problem(layers[path], inputs, outputs)
            chosen = problem.solve(iterations, learning_rate, regularization, batch_size, generator)
            with torch.no_grad():
                layers[path].weight.copy_(layers[path].from_filters(chosen))
    return model


def _order(model: nn.Module, layers: dict[str, Any], batches: Iterable[Any]) -> list[str]:
    """Return the paths of layers in the order in which they first run on the first batch."""
    order: list[str] = []
    handles = [
        layer.register_forward_hook(lambda _layer, _given, _y, path=path: order.append(path))
        for path, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            call(model, next(inputs_of(batches, device_of(model))))
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(order))


def _calls(model: nn.Module, layer: nn.Module, batches: Iterable[Any]) -> list[tuple[Tensor, Tensor]]:
    """Return (input, output) of every call of a layer."""
    found: list[tuple[Tensor, Tensor]] = []
    handle = layer.register_forward_hook(lambda _layer, given, y: found.append((given[0].detach(), y.detach())))
    try:
        with torch.no_grad():
            for given in inputs_of(batches, device_of(model)):
                call(model, given)
    finally:
        handle.remove()
    return found


class _Problem:
    """One layer's rounding: what it is given, what it shall answer, and how far a weight is from that."""

    def __init__(self, layer: Any, inputs: list[Tensor], outputs: list[Tensor]):
        self.layer, self.inputs, self.outputs = layer, inputs, outputs
        self.channels = -1 if isinstance(layer, nn.Linear) else 1
        with torch.no_grad():
            self.filters = layer.filters(layer.weight.detach())
            (term,) = layer.weight_quantizer.planes(self.filters).terms
            self.step = term.channel_scale(self.filters.ndim)
            self.nearest = layer.weight_quantizer(self.filters)
        grid = layer.weight_quantizer.grid
        self.bounds = grid.low, grid.high

    def solve(
        self, iterations: int, learning_rate: float, regularization: float, batch_size: int, generator: torch.Generator
    ) -> Tensor:
        """Return the rounded weights, as filters."""
        down = (self.filters / self.step).floor()
        rest = (self.filters / self.step - down).clamp(0, 1)
        # h of it is the rest of the division: the weights begin as they are.
        start = -torch.log((STRETCH_HIGH - STRETCH_LOW) / (rest - STRETCH_LOW) - 1)
        v = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([v], learning_rate)
        for i in range(iterations):
            up = _stretched_sigmoid(v)
            x, y = self._draw(batch_size, generator)
            loss = self._error(x, y, self._weight(down + up))
            done = (i / iterations - WARM_UP) / (1 - WARM_UP)
            if done >= 0:
                exponent = LAST_EXPONENT + (FIRST_EXPONENT - LAST_EXPONENT) * (1 + math.cos(math.pi * done)) / 2
                loss = loss + regularization * (1 - (2 * up - 1).abs() ** exponent).sum()
            optimizer.zero_grad()
            (v.grad,) = torch.autograd.grad(loss, [v])
            optimizer.step()
        with torch.no_grad():
            chosen = self._weight(down + (_stretched_sigmoid(v) >= 0.5))
            return chosen if self._whole_error(chosen) < self._whole_error(self.nearest) else self.nearest

    def _weight(self, levels: Tensor) -> Tensor:
        return levels.clamp(*self.bounds) * self.step

    def _draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        at = int(torch.randint(len(self.inputs), (), generator=generator))
        x, y = self.inputs[at], self.outputs[at]
        rows = torch.randperm(len(x), generator=generator)[:batch_size].to(x.device)
        return x[rows], y[rows]

    def _error(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        with _weighing(self.layer, weight):
            return ((self.layer._trained(x) - y) ** 2).sum(self.channels).mean()

    def _whole_error(self, weight: Tensor) -> float:
        errors = [self._error(x, y, weight) * len(x) for x, y in zip(self.inputs, self.outputs, strict=True)]
        return float(sum(errors))


def _stretched_sigmoid(v: Tensor) -> Tensor:
    return (torch.sigmoid(v) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)


@contextmanager
def _weighing(layer: QuantLayer, weight: Tensor) -> Iterator[None]:
    """Have a layer multiply by these filters in place of its quantized ones."""
    vars(layer.weight_quantizer)["forward"] = lambda _filters: weight
    try:
        yield
    finally:
        del vars(layer.weight_quantizer)["forward"]
