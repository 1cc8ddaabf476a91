"""What a network costs: bits, parameters, bytes and multiply-accumulates by precision, layer by layer.

BOPs of a layer = MACs * weight bits * activation bits (the convention of QONNX's inference cost, and PokeBNN's ACE).
Bytes are those of evaluation, which a packed file holds: a bit a quantized weight and plane, 4 bytes a float, and of
what is one number a channel what is left of it (see bnn.folding).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnn.folding import NORMS, Folding, folding
from bnn.layers.base import QuantLayer, weight_planes
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
    """

    layers: tuple[LayerCost, ...]
    uncounted: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of parameters and batch-norm statistics."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Bytes of the network in evaluation, every weight at its own bits: the payload of its packed file."""
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


def _threshold_bytes(levels: int) -> int:
    """Return the bytes a channel of thresholds between levels: 4 each and a direction.

    A file may take less for the many of 4 bits and more, whose distances it stores where they are even.
    """
    return 4 * levels + 1


def _bytes(path: str, module: Any, folded: Folding) -> int:
    """Return the bytes of a module's own state in evaluation."""
    tensors = _state(module)
    if isinstance(module, NORMS):
        channels = module.num_features
        if path in folded.gone:
            return 0
        if path in folded.thresholds:
            return channels * _threshold_bytes(folded.thresholds[path])
        return 8 * channels if module.track_running_stats or module.affine else 0
    if isinstance(module, Quantizer):
        return 0 if module.packable else sum(4 * t.numel() for t in tensors.values())  # thresholds and scales elsewhere
    if isinstance(module, QuantLayer) and module.weight_quantizer.packable:
        planes = weight_planes(module)
        channels = planes.parts[0].bits.shape[1]
        size = planes.bits * -(-module.weight.numel() // 8)
        if path in folded.direct:
            size += getattr(module, "in_channels", 0) * _threshold_bytes(1)
        if path in folded.thresholds:
            return size + channels * _threshold_bytes(folded.thresholds[path])
        return size + 4 * channels * (len(planes.parts) + (module.bias is not None))
    return sum(4 * t.numel() for t in tensors.values())


def _cost(path: str, module: Any, folded: Folding, shape: tuple[int, ...], macs: int) -> LayerCost:
    weight_bits = activation_bits = FLOAT_BITS
    if isinstance(module, QuantLayer):
        weight_bits, activation_bits = module.weight_quantizer.bits, module.input_quantizer.bits
    count = sum(tensor.numel() for tensor in _state(module).values())
    size = _bytes(path, module, folded)
    return LayerCost(path, type(module).__name__, shape, weight_bits, activation_bits, count, size, macs)


def _example(model: nn.Module, inputs: Sequence[int] | Tensor) -> Tensor:
    if isinstance(inputs, Tensor):
        return inputs[:1]
    if not inputs or any(int(n) < 1 for n in inputs):
        raise ValueError(f"input_shape must be like (channels, height, width), batch left out; got {inputs}")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    return torch.zeros(1, *inputs, dtype=like.dtype, device=like.device)


def summary(model: nn.Module, input_shape: Sequence[int] | Tensor) -> Summary:
    """Return the costs of a network for one input; print it for a table.

    input_shape: (C, H, W) or (K,), batch left out; or an example batch, as for indices of an embedding.

    The model is run once, in evaluation, and left as it was. A module that is used twice has its parameters counted
    once and its multiply-accumulates each time. Modules with parameters that did not run are listed without
    multiply-accumulates. ValueError on a shape that is none.
    """
    example = _example(model, input_shape)
    shapes: dict[str, tuple[int, ...]] = {}
    macs: dict[str, int] = {}
    owners = {path: m for path, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))}
    # Batch norm without affine parameters has statistics alone.
    owners |= {path: m for path, m in model.named_modules() if isinstance(m, NORMS)}
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
        with torch.no_grad():
            model(example)
            folded = folding(model)
            order = [*shapes, *(path for path in owners if path not in shapes)]
            costs = [_cost(path, owners[path], folded, shapes.get(path, ()), macs.get(path, 0)) for path in order]
    finally:
        for module, mode in modes:
            module.training = mode
        for handle in handles:
            handle.remove()
    # Weights have two axes or more; those of layers that are known here are counted, where they ran.
    uncounted = [
        path
        for path in order
        if (not isinstance(owners[path], _WEIGHTED) or path not in shapes)
        and not isinstance(owners[path], Quantizer)
        and any(p.ndim > 1 for p in owners[path].parameters(recurse=False))
    ]
    return Summary(tuple(costs), tuple(uncounted))
