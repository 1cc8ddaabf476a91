"""Batches of data to calibrate with: what counts as one, and how a model is called with it."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter, or the CPU."""
    tensor = next(model.parameters(), None)
    return torch.device("cpu") if tensor is None else tensor.device


def inputs_of(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """Yield the inputs of each batch on the device; ValueError if there is none or one without samples.

    batches: a tensor, or an iterable of batches such as a DataLoader, each a tensor, a tuple or list whose first part
        is the input (a tuple or list there holds several inputs), or a dict of the model's arguments. TypeError on
        others.
    """
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


def repeatable(batches: Iterable[Any]) -> Iterable[Any]:
    """Return batches that can be gone through several times: an iterator, which cannot, becomes a list."""
    return list(batches) if isinstance(batches, Iterator) else batches


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _moved(part, device) for name, part in value.items()}
    return [_moved(part, device) for part in value] if isinstance(value, tuple | list) else value


def call(model: nn.Module, inputs: Any) -> Any:
    """Return what a model makes of the inputs of a batch."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, list) else model(inputs)


def counterparts(original: nn.Module, layers: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Return what a float network has at the paths of quantized layers; ValueError if it is another network."""
    found = dict(original.named_modules())
    for path, layer in layers.items():
        weight = getattr(found.get(path), "weight", None)
        if not isinstance(weight, Tensor) or weight.shape != layer.weight.shape:
            raise ValueError(f"{path}: the float network has no such layer there; give the network that was quantized")
    return {path: found[path] for path in layers}


@contextmanager
def random_numbers_kept(model: nn.Module) -> Iterator[None]:
    """Leave the random number generators of the CPU and of the model's device as they were."""
    device = device_of(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have the whole model in evaluation mode, and each module as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
