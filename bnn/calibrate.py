"""bnn.calibrate: quantizers that learn from data begin with some batches, without training."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bnn.layers.base import QuantLayer
from bnn.quantizers.base import Quantizer


def calibrate(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Initialize, in place, every quantizer that learns from data (LSQ, LQ-Net, RBNN, TBN), and return the model.

        model = bnn.calibrate(bnn.quantize(model, bits=4), train_loader)

    batches: a tensor, or an iterable of batches such as a DataLoader, each a tensor, a tuple or list whose first part
        is the input (a tuple or list there holds several inputs), or a dict of the model's arguments. They are moved
        to the model's device. A few hundred samples are enough.

    The network runs on the batches in evaluation. Each layer's quantizers begin where the layer is reached, so they see
    what the quantized layers before them give. Steps, bases and rotations begin with the first batch, as in training;
    LQ-Net's bases and TBN's thresholds then are the mean of what all batches ask for. Nothing else changes: neither
    modes and batch norm's statistics, nor weights, gradients and random numbers, nor what was initialized before.

    TypeError for what is no model or no batches, ValueError if there is no batch or an empty one; an error leaves the
    quantizers as they were. Warns (UserWarning) of quantizers that no batch reached.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"bnn.calibrate takes a model, got {type(model).__name__}")
    waiting = {
        path: module for path, module in model.named_modules() if isinstance(module, Quantizer) and module.needs_data
    }
    averaging: list[Any] = [quantizer for quantizer in waiting.values() if hasattr(quantizer, "momentum")]
    before = {path: {k: v.clone() for k, v in q.state_dict().items()} for path, q in waiting.items()}
    done = False
    try:
        with torch.no_grad(), _random_numbers_kept(model), _learning(model, waiting.values()) as reached:
            for count, inputs in enumerate(_inputs(batches, _device(model)), start=1):
                for quantizer in averaging:
                    quantizer.momentum = 1 / count  # so that each batch counts alike
                if waiting:
                    _call(model, inputs)
        done = True
    finally:
        if not done:
            for path, state in before.items():
                waiting[path].load_state_dict(state)
    missed = [path for path, quantizer in waiting.items() if id(quantizer) not in reached]
    if missed:
        warnings.warn(f"no batch reached these quantizers, they are as they were: {', '.join(missed)}", stacklevel=2)
    return model


def _device(model: nn.Module) -> torch.device:
    tensor = next(model.parameters(), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _inputs(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """Yield the inputs of each batch on the device; ValueError if there is none or one without samples."""
    if isinstance(batches, Tensor):
        batches = [batches]
    if isinstance(batches, str | Mapping) or not isinstance(batches, Iterable):
        raise TypeError(f"batches must be a tensor or an iterable of batches, got {type(batches).__name__}")
    found = False
    for batch in batches:
        inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
        parts = list(inputs.values()) if isinstance(inputs, Mapping) else inputs
        parts = list(parts) if isinstance(parts, tuple | list) else [parts]
        if not parts or not any(isinstance(part, Tensor) for part in parts):
            raise TypeError(
                "a batch must be a tensor, a tuple or list whose first part is the input, or a dict of arguments, got "
                f"{type(batch).__name__}"
            )
        if any(part.numel() == 0 for part in parts if isinstance(part, Tensor)):
            raise ValueError("a batch without samples says nothing about the quantizers")
        found = True
        yield _moved(inputs, device)
    if not found:
        raise ValueError("there are no batches: an iterator that was read before, or an empty data set?")


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _moved(part, device) for name, part in value.items()}
    return [_moved(part, device) for part in value] if isinstance(value, tuple | list) else value


def _call(model: nn.Module, inputs: Any) -> None:
    if isinstance(inputs, dict):
        model(**inputs)
    elif isinstance(inputs, list):
        model(*inputs)
    else:
        model(inputs)


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


@contextmanager
def _random_numbers_kept(model: nn.Module) -> Iterator[None]:
    device = _device(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
