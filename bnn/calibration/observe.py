"""The values that the quantizers of a network would meet if they quantized nothing, counted batch after batch."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bnn.calibration.batches import call, device_of, evaluating, inputs_of, random_numbers_kept
from bnn.calibration.histogram import Histogram
from bnn.layers.base import QuantLayer
from bnn.quantizers.base import Quantizer


def grids_of_weights(model: nn.Module) -> dict[str, tuple[QuantLayer, Quantizer]]:
    """Return the layer and the quantizer of every weight with evenly spaced levels, by the quantizer's path."""
    found: dict[str, tuple[QuantLayer, Quantizer]] = {}
    for path, module in model.named_modules():
        if isinstance(module, QuantLayer) and module.weight_quantizer.grid is not None:
            found[f"{path}.weight_quantizer".lstrip(".")] = module, module.weight_quantizer
    return found


def grids_of_inputs(model: nn.Module) -> dict[str, Quantizer]:
    """Return every other quantizer with evenly spaced levels, by its path: those of inputs."""
    weights = {id(quantizer) for _, quantizer in grids_of_weights(model).values()}
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Quantizer) and module.grid is not None and id(module) not in weights
    }


@contextmanager
def quantizing_nothing(
    model: nn.Module, quantizers: Mapping[str, Quantizer], seen: Mapping[str, Histogram]
) -> Iterator[None]:
    """Have the model in evaluation with these quantizers as identities that count what passes into `seen`."""
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        chosen = set(map(id, quantizers.values()))
        for module in model.modules():
            # An evaluation of bits would ask for planes and not for the values of a forward.
            if isinstance(module, QuantLayer) and any(id(part) in chosen for part in module.modules()):
                module.training = True
        for path, quantizer in quantizers.items():

            def passes(x: Tensor, path: str = path) -> Tensor:
                if path in seen:
                    try:
                        seen[path].add(x)
                    except ValueError as error:
                        raise ValueError(f"{path}: {error}, so no range can be calibrated") from None
                return x

            vars(quantizer)["forward"] = passes
            stack.callback(vars(quantizer).pop, "forward")
        yield


def observed_inputs(model: nn.Module, batches: Iterable[Any]) -> dict[str, Histogram]:
    """Return what each quantizer of `grids_of_inputs` meets on the batches while none of them quantizes.

    Quantizers without evenly spaced levels stay at work. ValueError for batches as in `bnn.calibrate` and for NaN.
    """
    inputs = grids_of_inputs(model)
    weights = {path: quantizer for path, (_, quantizer) in grids_of_weights(model).items()}
    seen = {path: Histogram() for path in inputs}
    with torch.no_grad(), random_numbers_kept(model), quantizing_nothing(model, inputs | weights, seen):
        for given in inputs_of(batches, device_of(model)):
            call(model, given)
    return seen
