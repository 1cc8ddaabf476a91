"""SmoothQuant: the range of activations is handed over to the weights that multiply them, channel by channel."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnn.calibration.batches import call, device_of, evaluating, inputs_of, random_numbers_kept
from bnn.calibration.layer_graph import LayerGraph


def smooth(
    model: nn.Module, batches: Iterable[Any], strength: float = 0.5,
    readers: Mapping[str, Sequence[str]] | None = None,
) -> nn.Module:  # fmt: skip
    """Return a new model of the same function in which linear layers behind norms have inputs without outliers.

    Where nn.Linear layers alone read a LayerNorm or RMSNorm, the norm's weight and bias are divided by

        s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)

    and the layers' weights multiplied by it, for each channel j of the norm's output X, which W_j multiplies in all of
    these layers. So few channels with large activations, as transformers have, no longer take all levels of a
    quantized input. Outputs are equal up to rounding.
    Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML 2023,
    section 4, equations 3 and 4.

    batches: as for `bnn.calibrate`. strength: alpha in [0, 1], how much of the difficulty the weights take over.
    readers: dotted path of a norm -> those of all linear layers that read it, where torch.fx cannot trace the model.

    ValueError if there is no such norm, if the model cannot be traced and readers are not given, or if they name what
    is none, for a strength out of range and for batches as in `bnn.calibrate`.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength!r}")
    model = copy.deepcopy(model)
    places = _places(model) if readers is None else _named(model, readers)
    if not places:
        raise ValueError(f"{type(model).__name__} has no LayerNorm or RMSNorm that linear layers alone read")
    largest = _largest_outputs(model, [norm for norm, _ in places], batches)
    with torch.no_grad():
        for norm, layers in places:
            if norm not in largest:
                continue
            weights = torch.stack([layer.weight.abs().amax(0) for layer in layers]).amax(0)
            factors = largest[norm] ** strength / weights ** (1 - strength)
            factors = torch.where((largest[norm] > 0) & (weights > 0), factors, 1)
            norm.weight.div_(factors)
            if getattr(norm, "bias", None) is not None:
                norm.bias.div_(factors)
            for layer in layers:
                layer.weight.mul_(factors)
    return model


Place = tuple[Any, list[Any]]


def _places(model: nn.Module) -> list[Place]:
    """Return the norms that linear layers alone read, with these."""
    try:
        graph = LayerGraph.of(model)
    except ValueError as error:
        raise ValueError(f"{error}: pass readers, norms and the linear layers that read them") from error
    found = []
    for node in graph.graph.nodes:
        norm = graph.module(node)
        layers = [graph.module(user) for user in node.users]
        if _is_norm(norm) and layers and all(isinstance(layer, nn.Linear) for layer in layers):
            found.append((norm, layers))
    return found


def _named(model: nn.Module, readers: Mapping[str, Sequence[str]]) -> list[Place]:
    modules = dict(model.named_modules())
    found: list[Place] = []
    for path, layers in readers.items():
        if not _is_norm(modules.get(path)):
            raise ValueError(f"{path} is no LayerNorm or RMSNorm over one axis with a weight")
        for name in layers:
            if not isinstance(modules.get(name), nn.Linear):
                raise ValueError(f"{name}, which is said to read {path}, is no linear layer")
        found.append((modules[path], [modules[name] for name in layers]))
    return found


def _is_norm(module: Any) -> bool:
    is_norm = isinstance(module, nn.LayerNorm | nn.RMSNorm)
    return is_norm and module.elementwise_affine and len(module.normalized_shape) == 1


def _largest_outputs(model: nn.Module, norms: list[Any], batches: Iterable[Any]) -> dict[Any, Tensor]:
    """Return the largest magnitude of each channel of the outputs of norms."""
    found: dict[Any, Tensor] = {}

    def seen(norm: nn.Module, _given: Any, y: Tensor) -> None:
        largest = y.detach().abs().flatten(0, -2).amax(0)
        found[norm] = torch.maximum(found[norm], largest) if norm in found else largest

    handles = [norm.register_forward_hook(seen) for norm in norms]
    try:
        with torch.no_grad(), random_numbers_kept(model), evaluating(model):
            for given in inputs_of(batches, device_of(model)):
                call(model, given)
    finally:
        for handle in handles:
            handle.remove()
    return found
