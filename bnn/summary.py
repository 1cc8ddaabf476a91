"""What a network costs: bits, parameters, bytes and multiply-accumulates by precision, layer by layer.

BOPs of a layer = MACs * weight bits * activation bits (the convention of QONNX's inference cost, and PokeBNN's ACE).
Bytes are those of the packed file: the network is planned as `bnn.convert` does it, though no file is written. Of one
that cannot be converted they are an estimate, and the table says so: a bit a quantized weight and plane, 4 bytes
a float.
"""

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # SyncBatchNorm is one too

from bnn.layers.base import QuantLayer, shapes_only, weight_planes
from bnn.pixels import takes_pixels
from bnn.quantizers.base import Quantizer

FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerCost:
    """One layer: dotted name, kind, output shape (batch left out), bits, counts for one input."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    weight_bits: int
    activation_bits: int
    parameters: int
    bytes: int
    macs: int

    @property
    def bops(self) -> int:
        """Bit operations: MACs * weight bits * activation bits."""
        return self.macs * self.weight_bits * self.activation_bits


@dataclass(frozen=True)
class Summary:
    """The layers of a network; print it for a table.

    uncounted: layers with weights whose multiply-accumulates are not known here (attention, recurrent layers, modules
        of the user's own).
    estimated: why bytes are an estimate; "" where they are those of the packed file.
    """

    layers: tuple[LayerCost, ...]
    uncounted: tuple[str, ...] = ()
    estimated: str = ""

    @property
    def parameters(self) -> int:
        """Number of parameters and batch-norm statistics."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Bytes of the payload of the network's packed file, or an estimate of them, see `estimated`."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bops(self) -> int:
        """Bit operations for one input."""
        return sum(layer.bops for layer in self.layers)

    @property
    def macs_by_precision(self) -> dict[tuple[int, int], int]:
        """Multiply-accumulates by (weight bits, activation bits), fewest bits first."""
        found: dict[tuple[int, int], int] = {}
        for layer in self.layers:
            if layer.macs:
                key = (layer.weight_bits, layer.activation_bits)
                found[key] = found.get(key, 0) + layer.macs
        return dict(sorted(found.items()))

    @property
    def operations(self) -> float:
        """Binary operations / 64 + all others: the count of Bi-Real Net, ReActNet and their successors."""
        return sum(macs / 64 if key == (1, 1) else macs for key, macs in self.macs_by_precision.items())

    def __str__(self) -> str:
        rows = [("layer", "kind", "output", "W", "A", "parameters", "bytes", "MACs", "BOPs")]
        for layer in self.layers:
            shape = "x".join(map(str, layer.output_shape))
            bits = (f"{layer.weight_bits}", f"{layer.activation_bits}") if layer.macs else ("", "")
            counts = (f"{layer.parameters:,}", f"{layer.bytes:,}", f"{layer.macs:,}", f"{layer.bops:,}")
            rows.append((layer.name, layer.kind, shape, *bits, *counts))
        totals = (f"{self.parameters:,}", f"{self.bytes:,}", f"{self.macs:,}", f"{self.bops:,}")
        rows.append(("total", "", "", "", "", *totals))
        widths = [max(len(row[i]) for row in rows) for i in range(9)]
        lines = [
            "  ".join(c.rjust(w) if i > 2 else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        shares = (f"{w}/{a}: {macs:,}" for (w, a), macs in self.macs_by_precision.items())
        lines.append(f"MACs by bits of weight/activation: {', '.join(shares) or 'none'}")
        if self.uncounted:
            lines.append(f"without the MACs of {', '.join(self.uncounted)}, which are not known here")
        if self.estimated:
            lines.append(f"bytes are an estimate, for the network cannot be packed: {self.estimated}")
        return "\n".join(lines)


_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (*_CONVS, *_TRANSPOSED, nn.Linear, nn.Embedding)


def _macs(module: Any, given: Tensor, output: Tensor) -> int:
    """Return the multiply-accumulates for the whole batch of one; an embedding only looks up."""
    if isinstance(module, _CONVS):
        return module.weight.numel() * output.shape[2:].numel()
    if isinstance(module, _TRANSPOSED):
        return module.weight.numel() * given.shape[2:].numel()
    if isinstance(module, nn.Linear):
        return module.weight.numel() * (output.numel() // output.shape[-1])
    return 0


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's own parameters and batch-norm statistics."""
    buffers = {k: v for k, v in module.named_buffers(recurse=False) if k in ("running_mean", "running_var")}
    return dict(module.named_parameters(recurse=False)) | buffers


def _estimate(module: nn.Module) -> int:
    """Return about how many bytes a module's own state takes in evaluation, nothing merged or folded."""
    tensors = _state(module)
    if isinstance(module, _BatchNorm):
        return 8 * module.num_features if module.track_running_stats or module.affine else 0
    if isinstance(module, QuantLayer) and module.weight_quantizer.packable:
        planes = weight_planes(module)
        channels = planes.parts[0].bits.shape[1]
        floats = 4 * channels * (len(planes.parts) + (module.bias is not None))
        return planes.bits * -(-module.weight.numel() // 8) + floats
    return sum(4 * t.numel() for t in tensors.values())


def _stored(model: nn.Module, example: Tensor) -> dict[str, int] | str:
    """Return the bytes of each module in the packed file, or why there is none."""
    try:
        # Only here: `import bnn` and counting without bits need no kernels.
        return importlib.import_module("bnn.converter.stored_bytes").stored_bytes(model, example)
    except ImportError as error:
        return f"the kernels cannot be imported ({error})"
    except Exception as error:  # it runs the model's own code, on proxies too: anything can be raised
        return str(error) or type(error).__name__


def _cost(path: str, module: Any, size: int, shape: tuple[int, ...], macs: int) -> LayerCost:
    weight_bits = activation_bits = FLOAT_BITS
    if isinstance(module, QuantLayer):
        weight_bits, activation_bits = module.weight_quantizer.bits, module.input_quantizer.bits
    count = sum(tensor.numel() for tensor in _state(module).values())
    return LayerCost(path, type(module).__name__, shape, weight_bits, activation_bits, count, size, macs)


def _example(model: nn.Module, inputs: Sequence[int] | Tensor) -> Tensor:
    if isinstance(inputs, Tensor):
        return inputs[:1]
    if not inputs or any(int(n) < 1 for n in inputs):
        raise ValueError(f"input_shape must be like (channels, height, width), batch left out; got {inputs}")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    return torch.zeros(1, *inputs, dtype=torch.uint8 if takes_pixels(model) else like.dtype, device=like.device)


def summary(model: nn.Module, input_shape: Sequence[int] | Tensor) -> Summary:
    """Return the costs of a network for one input; print it for a table.

    input_shape: (C, H, W) or (K,), batch left out; or an example batch, as for indices of an embedding. A network that
        takes pixels (`bnn.takes_pixels`) is given uint8, as its packed file will be.

    The model is run once, in evaluation, and left as it was. A module that is used twice has its parameters counted
    once and its multiply-accumulates each time. Modules with parameters that did not run are listed without
    multiply-accumulates. Bytes of a layer are those of the steps that it becomes: what is merged into it (batch norm,
    activation, thresholds on its output) counts there. ValueError on a shape that is none.
    """
    example = _example(model, input_shape)
    shapes: dict[str, tuple[int, ...]] = {}
    macs: dict[str, int] = {}
    owners = {path: m for path, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))}
    # Batch norm without affine parameters has statistics alone.
    owners |= {path: m for path, m in model.named_modules() if isinstance(m, _BatchNorm)}
    handles = []
    for path, module in owners.items():

        def record(module: nn.Module, given: tuple, output: Any, path: str = path) -> None:
            if isinstance(output, Tensor):
                shapes[path] = tuple(output.shape[1:])
                macs[path] = macs.get(path, 0) + _macs(module, given[0] if given else output, output)

        handles.append(module.register_forward_hook(record))
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), shapes_only(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of quantizers that wait for training: costs do not depend on it
            model(example)
    finally:
        for module, mode in modes:
            module.training = mode
        for handle in handles:
            handle.remove()
    stored = _stored(model, example)
    sizes = {path: _estimate(module) for path, module in owners.items()} if isinstance(stored, str) else stored
    modules = dict(model.named_modules(remove_duplicate=False))
    # Modules without parameters may store something too: constants, tables of places.
    order = [*shapes, *(path for path in (*owners, *sizes) if path not in shapes)]
    costs = [
        _cost(path, modules[path], sizes.get(path, 0), shapes.get(path, ()), macs.get(path, 0))
        for path in dict.fromkeys(order)
        if path in owners or sizes[path]
    ]
    # Weights have two axes or more; those of layers that are known here are counted, where they ran.
    uncounted = [
        path
        for path in dict.fromkeys(order)
        if path in owners
        and (not isinstance(owners[path], _WEIGHTED) or path not in shapes)
        and not isinstance(owners[path], Quantizer)
        and any(p.ndim > 1 for p in owners[path].parameters(recurse=False))
    ]
    return Summary(tuple(costs), tuple(uncounted), stored if isinstance(stored, str) else "")
