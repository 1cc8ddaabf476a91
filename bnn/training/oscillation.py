"""Cures for weights that jump to and fro between two levels: a pull to the levels, and freezing the restless ones."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from bnn.latent import latent_layers
from bnn.layers.base import QuantLayer
from bnn.planes import Term, by_channel
from bnn.training.curves import Curve


def _terms(network: nn.Module, most_bits: int) -> Iterator[tuple[str, QuantLayer, Tensor, Tensor, Term]]:
    """Yield (name, layer, parameter, its filters, their term) of latents of at most so many bits.

    ValueError, with the name, where levels are not those of one term around 0.
    """
    for name, layer, parameter in latent_layers(network):
        rows = layer.filters(parameter.detach())
        planes = layer.weight_quantizer.planes(rows)
        if planes.bits > most_bits:
            continue
        if len(planes.terms) > 1 or planes.offset is not None:
            raise ValueError(
                f"{name}: {type(layer.weight_quantizer).__name__} has several scales or an offset, so its weights have "
                "no integer levels whose oscillations could be followed"
            )
        yield name, layer, parameter, rows, planes.terms[0]


def _value(term: Term, levels: Tensor) -> Tensor:
    return levels * by_channel(term.scale, levels.ndim)


class _Share(Callback):
    """Knows which share of training is done."""

    _steps = 1.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps = trainer.estimated_stepping_batches

    def _share(self, steps: int) -> float:
        return steps / self._steps


class DampOscillations(_Share):
    """Adds to the loss strength * |q(W) - clip(W)|^2 / n of every quantized weight, n weights to a filter.

    Its gradient, 2 strength (W - q(W)) / n between the lowest and the highest level and 0 beyond, with q(W) constant,
    is added before each step of the optimizer, so that latents come to rest at levels rather than between two. The
    logged loss is that of the task.
    Nagel et al., "Overcoming Oscillations in Quantization-Aware Training", ICML 2022, section 4.1; the division by n is
    the authors' code's "kernel_mean".

    strength: a curve over training; theirs is `Cosine(0.0, 0.1, begin_at=0.25)`. most_bits: weights of more bits are
    left alone. ValueError for weights of several scales or an offset.
    """

    def __init__(self, strength: Curve, most_bits: int = 8):
        self._strength, self._most_bits = strength, most_bits

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        strength = self._strength(self._share(trainer.global_step))
        network: Any = pl_module.network
        if strength == 0:
            return
        for _, layer, parameter, rows, term in _terms(network, self._most_bits):
            if parameter.grad is None:
                continue
            possible = term.possible_levels()
            ends = [_value(term, torch.full_like(rows, level)) for level in (possible[0], possible[-1])]
            inside = (rows >= torch.minimum(*ends)) & (rows <= torch.maximum(*ends))
            pull = (rows - _value(term, term.levels(rows.dtype))) * inside
            parameter.grad.add_(layer.from_filters(pull), alpha=2 * strength / rows[0].numel())


class FreezeOscillations(_Share):
    """Fixes weights for the rest of training whose integer level changes its direction too often.

    After each step of the optimizer a weight has oscillated if its level changed in the direction opposite to that of
    its last change: f <- momentum * [oscillated] + (1 - momentum) f. Where f exceeds the threshold, the weight is fixed
    at the rounded moving average of its level (same momentum), times the scale as it is learned further on.
    Nagel et al., "Overcoming Oscillations in Quantization-Aware Training", ICML 2022, section 4.2 and algorithm 1.

    threshold: a curve over training; 0 fixes nothing. Theirs is `Cosine(0.1, 0.01, begin_at=0.25)` at 4 bits.
    momentum: in (0, 1), at most half the threshold. most_bits: weights of more bits are left alone.
    Its state is part of every checkpoint.
    ValueError for weights of several scales or an offset, and where a level times its scale is not quantized to itself
    (DoReFa-Net's tanh).
    """

    def __init__(self, threshold: Curve, momentum: float = 0.01, most_bits: int = 4):
        if not 0 < momentum < 1:
            raise ValueError(f"momentum must lie in (0, 1), got {momentum!r}")
        self._threshold, self._momentum, self._most_bits = threshold, momentum, most_bits
        self._seen = -1
        self._layers: dict[str, dict[str, Tensor]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen, "layers": self._layers}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seen, self._layers = int(state_dict["seen"]), dict(state_dict["layers"])

    def frozen(self) -> dict[str, float]:
        """Return {name of a latent: share of its weights that are fixed}."""
        return {name: float(state["frozen"].float().mean()) for name, state in self._layers.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._seen:  # gradients were accumulated, no step was made
            return
        self._seen = trainer.global_step
        threshold = self._threshold(self._share(trainer.global_step - 1))
        network: Any = pl_module.network
        for name, layer, parameter, rows, term in _terms(network, self._most_bits):
            if name not in self._layers:
                self._begin(name, layer, rows, term)
                continue
            state = {key: tensor.to(rows.device) for key, tensor in self._layers[name].items()}
            self._layers[name] = state
            self._follow(state, torch.where(state["frozen"], state["level"], term.levels()), threshold)
            held = _value(term, state["level"].to(rows.dtype))
            parameter.copy_(layer.from_filters(torch.where(state["frozen"], held, rows)))

    def _begin(self, name: str, layer: QuantLayer, rows: Tensor, term: Term) -> None:
        levels = term.levels()
        again = layer.weight_quantizer.planes(_value(term, levels.to(rows.dtype))).terms[0].levels()
        if not torch.equal(again, levels):
            raise ValueError(
                f"{name}: {type(layer.weight_quantizer).__name__} does not map a level times its scale to that level, "
                "so weights cannot be fixed at levels"
            )
        self._layers[name] = {
            "level": levels,
            "direction": torch.zeros_like(levels, dtype=torch.int8),
            "frequency": torch.zeros_like(rows, dtype=torch.float32),
            "mean": levels.float(),
            "frozen": torch.zeros_like(rows, dtype=torch.bool),
        }

    def _follow(self, state: dict[str, Tensor], levels: Tensor, threshold: float) -> None:
        """Take the levels after a step into account, and fix those that are too restless."""
        change = (levels - state["level"]).sign().to(torch.int8)
        oscillated = change * state["direction"] == -1
        state["frequency"] = torch.lerp(state["frequency"], oscillated.float(), self._momentum)
        state["direction"] = torch.where(change != 0, change, state["direction"])
        state["level"] = levels
        if threshold > 0:
            new = (state["frequency"] > threshold) & ~state["frozen"]
            state["level"] = torch.where(new, state["mean"].round().to(levels.dtype), levels)
            state["frozen"] = state["frozen"] | new
        state["mean"] = torch.lerp(state["mean"], state["level"].float(), self._momentum)
