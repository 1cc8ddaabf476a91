"""The doctor: watches the quantized layers of a network through some of its training steps."""

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bnn.doctor import metrics
from bnn.latent import latent_of, weight_now
from bnn.layers.base import QuantLayer
from bnn.planes import Planes
from bnn.quantizers.base import Quantizer

# Metric -> what it says; the order of tables and figures.
METRICS = {
    "flip_rate": "change of quantized weights by the step, as a share of their range: of signs, the share that flipped",
    "saturated": "share of latent weights at or beyond the clip bound",
    "no_gradient": "share of latent weights whose gradient is exactly 0",
    "weight_entropy": "entropy of the quantized weights of a filter, in bits",
    "constant_filters": "share of filters whose quantized weights are all the same",
    "distance": "distance of latent to quantized weights, up to a scale a filter",
    "weight_mismatch": "1 - cos between the surrogate's and the finite steps' gradient of the weights",
    "input_entropy": "entropy of a quantized input channel over the batch, in bits",
    "constant_channels": "share of quantized input channels that are constant over the batch",
    "input_mismatch": "1 - cos between the surrogate's and the finite steps' gradient of the inputs",
}

# Counting 2^bits values a channel.
_ENTROPY_BITS = 10


@dataclass
class Record:
    """What was measured at one step: its number, the loss if it was told, {layer: {metric: value}}."""

    step: int
    loss: float | None
    layers: dict[str, dict[str, float]] = field(default_factory=dict)


def mean_record(records: Sequence[Record]) -> Record:
    """Return what several processes measured at one step of one network: of each number the mean of those that are.

    Weights are the same in all; of inputs each process has seen its own. ValueError if the steps are not one.
    """
    if len({record.step for record in records}) != 1:
        raise ValueError(f"records are of the steps {[record.step for record in records]}, not of one")
    losses = [record.loss for record in records if record.loss is not None]
    layers: dict[str, dict[str, float]] = {}
    for name in records[0].layers:
        rows = [record.layers[name] for record in records]
        found = {metric: [row[metric] for row in rows if metric in row] for metric in METRICS}
        layers[name] = {metric: math.fsum(values) / len(values) for metric, values in found.items() if values}
    return Record(records[0].step, math.fsum(losses) / len(losses) if losses else None, layers)


def _rows(tensor: Tensor, axis: int) -> Tensor:
    return tensor.movedim(axis, 0).flatten(1) if tensor.ndim > 1 else tensor[:, None]


def watched_layers(network: nn.Module) -> dict[str, QuantLayer]:
    """Return {dotted name: layer} of the layers that quantize their weight or their input."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, QuantLayer) and (module.weight_quantizer.packable or module.input_quantizer.packable)
    }


class Doctor:
    """Measures every quantized layer of a network at every `every`-th training step.

        doctor = Doctor(network, every=20)
        for step, (images, labels) in enumerate(batches):
            doctor.begin(step)
            ... forward, backward, optimizer step ...
            doctor.end(loss)
        print(*findings(doctor.records))

    Between the watched steps it costs nothing but two calls. It draws no random numbers of PyTorch's generators and
    leaves quantizers and weights as they are, so a network trains to the same weights with and without it.

    latent_clip: bound of latent weights, for those quantizers that have no `clip` of their own; None: not measured.
    ValueError if `every` is below 1 or the network has no layer with a quantizer.
    """

    def __init__(self, network: nn.Module, every: int = 20, latent_clip: float | None = None):
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.records: list[Record] = []
        self.every = every
        self._latent_clip = latent_clip
        self._layers = watched_layers(network)
        if not self._layers:
            raise ValueError(f"{type(network).__name__} has no quantized layer to watch")
        self._hooks: list[Any] = []
        self._step: int | None = None
        self._found: dict[str, dict[str, list[Tensor]]] = {}
        self._before: dict[str, Planes] = {}
        self._generators: dict[torch.device, torch.Generator] = {}

    def begin(self, step: int) -> None:
        """Say that training step number `step` begins: before the forward pass."""
        self._remove_hooks()
        self._step = None
        if step % self.every or (self.records and self.records[-1].step == step):
            return
        self._step = step
        self._found = {name: {} for name in self._layers}
        self._before = dict(self._weights())
        for name, layer in self._layers.items():
            for role in ("weight", "input"):
                quantizer = getattr(layer, f"{role}_quantizer")
                if quantizer.packable:
                    self._hooks.append(quantizer.register_forward_hook(self._watch(name, role, quantizer)))

    def end(self, loss: Tensor | float | None = None) -> None:
        """Say that the step is done: after the optimizer's step, gradients still in place."""
        self._remove_hooks()
        if self._step is None:
            return
        for name, planes in self._weights():
            self._add(name, "flip_rate", metrics.flips(self._before[name], planes))
            self._measure_latents(name, planes)
        # A value that is not finite (no gradient at all, a diverged layer) is no measurement.
        layers = {
            name: {metric: value for metric in METRICS if (value := _mean(found.get(metric, []))) is not None}
            for name, found in self._found.items()
        }
        number = loss.item() if isinstance(loss, Tensor) else loss
        self.records.append(Record(self._step, number, layers))
        self._step, self._found, self._before = None, {}, {}

    def _weights(self) -> Iterator[tuple[str, Planes]]:
        for name, layer in self._layers.items():
            if layer.weight_quantizer.packable:
                with torch.no_grad(), _own_random_numbers(layer.weight):
                    weight = layer.filters(weight_now(layer).detach())
                    yield name, copy.deepcopy(layer.weight_quantizer).planes(weight)

    def _measure_latents(self, name: str, planes: Planes) -> None:
        layer = self._layers[name]
        latent = layer.filters(weight_now(layer).detach())
        rows = _rows(metrics.codes(planes), 0)
        if planes.bits <= _ENTROPY_BITS:
            self._add(name, "weight_entropy", metrics.entropy(rows, planes.bits))
        self._add(name, "constant_filters", metrics.constant(rows))
        self._add(name, "distance", metrics.distance(_rows(latent, 0), _rows(planes.value(), 0)))
        clip = getattr(layer.weight_quantizer, "clip", None)
        bound = clip if isinstance(clip, int | float) else self._latent_clip
        if bound is not None and not _binary(latent):
            self._add(name, "saturated", metrics.saturated(latent, bound))
        with contextlib.suppress(ValueError):  # of a weight that is made of several parameters
            gradient = latent_of(name, layer)[1].grad
            if gradient is not None:
                self._add(name, "no_gradient", (gradient == 0).float().mean())

    def _watch(self, name: str, role: str, watched: Quantizer) -> Any:
        def hook(quantizer: Quantizer, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            # A copy that is being measured has this hook too.
            if self._step is None or not quantizer.training or quantizer is not watched:
                return
            x = arguments[0].detach()
            if role == "input":
                with torch.no_grad(), _own_random_numbers(x):
                    planes = copy.deepcopy(quantizer).planes(x)
                    rows = _rows(metrics.codes(planes), -1 if isinstance(self._layers[name], nn.Linear) else 1)
                if planes.bits <= _ENTROPY_BITS:
                    self._add(name, "input_entropy", metrics.entropy(rows, planes.bits))
                self._add(name, "constant_channels", metrics.constant(rows))
            if output.requires_grad:
                output.register_hook(lambda gradient: self._mismatch(name, role, quantizer, x, gradient))

        return hook

    def _mismatch(self, name: str, role: str, quantizer: Quantizer, x: Tensor, gradient: Tensor) -> None:
        if self._step is None or (role == "weight" and _binary(x)):
            return
        generator = self._generators.setdefault(x.device, torch.Generator(x.device))
        generator.manual_seed(self._step)
        with _own_random_numbers(x):
            value = metrics.gradient_mismatch(quantizer, x, gradient.detach(), generator=generator)
        self._add(name, f"{role}_mismatch", value)

    def _add(self, name: str, metric: str, value: Tensor) -> None:
        self._found[name].setdefault(metric, []).append(value)

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _binary(weight: Tensor) -> bool:
    """Weights that are +-1 themselves (Bop's) are no latents."""
    return bool((weight.abs() == 1).all())


def _mean(values: list[Tensor]) -> float | None:
    if not values:
        return None
    mean = float(torch.stack([value.double() for value in values]).mean())
    return mean if math.isfinite(mean) else None


def _own_random_numbers(like: Tensor) -> Any:
    """What a stochastic quantizer draws while it is measured shall not be missing in training."""
    devices = [like.device] if like.device.type == "cuda" else []
    return torch.random.fork_rng(devices)
