"""Try one network definition: build it, give it the state of a trained network, convert it and hold it against PyTorch.

Runs in a process of its own, as repositories share names such as `models` or `utils`: what to try comes as JSON on
standard input, what came of it is the last line of standard output, after whatever the repository's own code prints.
"""

import copy
import fnmatch
import importlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# More values than these, for one filter or one channel of inputs, are no levels of 8 bits.
_MOST_LEVELS = 256
# Rows that are looked at.
_MOST_ROWS = 64
_IMAGES_AT_ONCE = 50
_PRODUCTS = ("conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear")


def build(folder: Path, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return what `module:Class` of a folder makes of keyword arguments: a class, or a function that returns a module.

    An argument {"class": "module:Class", ...} is itself built so, of the keyword arguments beside it. ValueError if a
    name is not of that form, or if it makes no module. A module that is not there raises ImportError.
    """
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    network = _made({"class": name, **arguments})
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} makes a {type(network).__name__}, no torch.nn.Module")
    return network


def _made(value: Any) -> Any:
    if not isinstance(value, Mapping) or "class" not in value:
        return value
    module, colon, attribute = str(value["class"]).partition(":")
    if not colon or not attribute:
        raise ValueError(f"{value['class']!r} must be module:Class, such as models.resnet:resnet18")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found(**{name: _made(argument) for name, argument in value.items() if name != "class"})


def set_buffers(network: nn.Module, values: Mapping[str, float]) -> None:
    """Fill buffers that training would have moved, by globs of their dotted names; ValueError if one names none."""
    for glob, number in values.items():
        found = [buffer for name, buffer in network.named_buffers() if fnmatch.fnmatch(name, glob)]
        if not found:
            raise ValueError(f"no buffer is called {glob!r}")
        for buffer in found:
            buffer.fill_(number)


class _Products(TorchFunctionMode):
    """Counts the products of weights and inputs that PyTorch computes, and those of which both take few values."""

    def __init__(self) -> None:
        super().__init__()
        self.all = 0
        self.few = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in _PRODUCTS:
            given = dict(zip(("input", "weight"), args, strict=False)) | (kwargs or {})
            self._count(given["input"], given["weight"])
        return func(*args, **(kwargs or {}))

    def _count(self, inputs: Tensor, weight: Tensor) -> None:
        channels = inputs.transpose(0, 1) if inputs.ndim > 2 else inputs[None]
        self.all += 1
        self.few += max(most_values(weight), most_values(channels)) <= _MOST_LEVELS


def most_values(x: Tensor) -> int:
    """Return the most values that one row of a tensor takes, `_MOST_LEVELS` + 1 if they occur but once or twice."""
    most = 1
    for row in x.detach().flatten(1)[:_MOST_ROWS]:
        count = len(row.unique())
        if count > max(2, min(_MOST_LEVELS, len(row) // 3)):
            return _MOST_LEVELS + 1
        most = max(most, count)
    return most


def float64_agreement(network: nn.Module, images: Tensor) -> float | None:
    """Return the share of images of which PyTorch predicts the same class in float64 as in float32; None if it cannot.

    Where a network takes signs of floats, rounding decides some: no other way of adding them up agrees more surely.
    """
    with torch.no_grad(), on_cpu():
        wide = copy.deepcopy(network).double()
        try:
            same = [network(part).argmax(1) == wide(part.double()).argmax(1) for part in images.split(_IMAGES_AT_ONCE)]
        except (RuntimeError, TypeError, ValueError):  # code that names float32 somewhere
            return None
    return float(torch.cat(same).float().mean())


def try_network(network: nn.Module, images: Tensor) -> dict[str, Any]:
    """Return what becomes of a network that is held against PyTorch on these images; ConversionError if it is refused.

    network: in evaluation mode.
    """
    import bnn

    with torch.no_grad(), _Products() as products, on_cpu():
        network(images[:4])
    start = time.perf_counter()
    packed = bnn.convert(network, images[:1])
    seconds = time.perf_counter() - start
    explanation = bnn.converter.explain(network, images[:1])
    report = bnn.check_parity(network, packed, images)
    decided_by_rounding = report.first_difference is None and not report.predictions_agree
    return {
        "products": products.all,
        "few_valued_products": products.few,
        "layers": len(explanation.layers),
        "on_bits": sum(layer.on_bits for layer in explanation.layers),
        "missed": [f"{layer.place}: {layer.reason}" for layer in explanation.missed],
        "inputs": len(images),
        "agreement": report.agreement,
        "undecided": report.undecided,
        "float64_agreement": float64_agreement(network, images) if decided_by_rounding else None,
        "parity": report.ok,
        "first_difference": None if report.first_difference is None else report.first_difference.source,
        "packed_bytes": packed.stored_bytes,
        "fp32_bytes": 4 * sum(p.numel() for p in network.parameters()),
        "seconds": round(seconds, 2),
    }


def on_cpu() -> AbstractContextManager[Any]:
    """Within it code that names a graphics card runs on the CPU, as in a conversion, where PyTorch has no CUDA."""
    from bnn.converter.capture.on_cpu import OnCpu

    return nullcontext() if torch.cuda.is_available() else OnCpu()


def main() -> None:
    """Try what standard input names, and print what came of it."""
    from bnn.converter import ConversionError
    from bnn.models.trained_like import trained_like

    task = json.load(sys.stdin)
    sys.argv = ["main.py", *task["argv"]]
    torch.manual_seed(0)
    np.random.seed(0)  # some networks draw with NumPy
    images = torch.randn((task["inputs"], *task["shape"]))
    result: dict[str, Any]
    try:
        with torch.no_grad(), on_cpu():
            network = build(Path(task["folder"]), task["class"], task["arguments"])
            trained_like(network, images[:16])
            set_buffers(network, task["buffers"])
        result = try_network(network, images)
    except ConversionError as error:
        result = {"refused": str(error)}
    except Exception as error:  # whatever the repository's code does
        result = {"fails": f"{type(error).__name__}: {error}"}
    print("\n" + json.dumps(result))
