"""Quantizers that learn from data begin with some batches as in training, layer after layer."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bnn.calibration.batches import call, device_of, inputs_of, random_numbers_kept
from bnn.layers.base import QuantLayer
from bnn.quantizers.base import Quantizer


def begin(model: nn.Module, batches: Iterable[Any], stacklevel: int = 2) -> None:
    """Initialize, in place, every quantizer that learns from data and has not begun; see `bnn.calibrate`."""
    waiting = {
        path: module for path, module in model.named_modules() if isinstance(module, Quantizer) and module.needs_data
    }
    averaging: list[Any] = [quantizer for quantizer in waiting.values() if hasattr(quantizer, "momentum")]
    before = {path: {k: v.clone() for k, v in q.state_dict().items()} for path, q in waiting.items()}
    done = False
    try:
        with torch.no_grad(), random_numbers_kept(model), _learning(model, waiting.values()) as reached:
            for count, inputs in enumerate(inputs_of(batches, device_of(model)), start=1):
                for quantizer in averaging:
                    quantizer.momentum = 1 / count  # so that each batch counts alike
                if waiting:
                    call(model, inputs)
        done = True
    finally:
        if not done:
            for path, state in before.items():
                waiting[path].load_state_dict(state)
    missed = [path for path, quantizer in waiting.items() if id(quantizer) not in reached]
    if missed:
        listed = ", ".join(missed)
        warnings.warn(f"no batch reached these quantizers, they are as they were: {listed}", stacklevel=stacklevel + 1)


@contextmanager
def _learning(model: nn.Module, quantizers: Iterable[Quantizer]) -> Iterator[set[int]]:
    """Have the model in evaluation but these quantizers in training, and so the layers that hold them.

    Yields the ids of those that have been called, which it fills.
    """
    modes = [(module, module.training) for module in model.modules()]
    quantizers = list(quantizers)
    averaging: list[Any] = [quantizer for quantizer in quantizers if hasattr(quantizer, "momentum")]
    momenta = [(quantizer, quantizer.momentum) for quantizer in averaging]
    chosen, called = set(map(id, quantizers)), set[int]()
    hooks = [q.register_forward_hook(lambda module, _inputs, _output: called.add(id(module))) for q in quantizers]
    try:
        for module, _ in modes:
            holds = isinstance(module, QuantLayer) and any(id(part) in chosen for part in module.modules())
            module.training = id(module) in chosen or holds
        yield called
    finally:
        for hook in hooks:
            hook.remove()
        for quantizer, momentum in momenta:
            quantizer.momentum = momentum
        for module, training in modes:
            module.training = training
