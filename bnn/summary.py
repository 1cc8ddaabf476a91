"""What a network costs: bits, parameters, bytes and multiply-accumulates by precision, layer by layer.

BOPs of a layer = MACs * weight bits * activation bits (the convention of QONNX's inference cost).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnn.layers.base import QuantLayer

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
    bytes: float
    macs: int

    @property
    def bops(self) -> int:
        """Bit operations: MACs * weight bits * activation bits."""
        return self.macs * self.weight_bits * self.activation_bits


@dataclass(frozen=True)
class Summary:
    """The layers of a network; print it for a table."""

    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        """Number of parameters and batch-norm statistics."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Bytes with every weight at its own bits: quantized weights take theirs, all else 32."""
        return round(sum(layer.bytes for layer in self.layers))

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bops(self) -> int:
        """Bit operations for one input."""
        return sum(layer.bops for layer in self.layers)

    def __str__(self) -> str:
        rows = [("layer", "kind", "output", "W", "A", "parameters", "bytes", "MACs")]
        for layer in self.layers:
            shape = "x".join(map(str, layer.output_shape))
            bits = (f"{layer.weight_bits}", f"{layer.activation_bits}") if layer.macs else ("", "")
            counts = (f"{layer.parameters:,}", f"{layer.bytes:,.0f}", f"{layer.macs:,}")
            rows.append((layer.name, layer.kind, shape, *bits, *counts))
        rows.append(("total", "", "", "", "", f"{self.parameters:,}", f"{self.bytes:,}", f"{self.macs:,}"))
        widths = [max(len(row[i]) for row in rows) for i in range(8)]
        return "\n".join(
            "  ".join(c.rjust(w) if i > 2 else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        )


def _macs(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, nn.Conv2d):
        return module.weight.numel() * output.shape[2] * output.shape[3]
    return module.weight.numel() if isinstance(module, nn.Linear) else 0


def _cost(name: str, module: nn.Module, output: Tensor) -> LayerCost:
    weight_bits = activation_bits = FLOAT_BITS
    if isinstance(module, QuantLayer):
        weight_bits, activation_bits = module.weight_quantizer.bits, module.input_quantizer.bits
    tensors: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    tensors |= {k: v for k, v in module.named_buffers(recurse=False) if k in ("running_mean", "running_var")}
    size = 0.0
    for key, tensor in tensors.items():
        bits = weight_bits if key == "weight" and isinstance(module, nn.Conv2d | nn.Linear) else FLOAT_BITS
        size += tensor.numel() * bits / 8
    macs = _macs(module, output)
    count = sum(tensor.numel() for tensor in tensors.values())
    shape = tuple(output.shape[1:])
    return LayerCost(name, type(module).__name__, shape, weight_bits, activation_bits, count, size, macs)


def summary(model: nn.Module, input_shape: Sequence[int]) -> Summary:
    """Return the costs of a network for one input of shape (C, H, W) or (K,), batch left out; print it for a table.

    The model is run once, in evaluation, on zeros. Weight scales of quantized layers are not counted: they become
    part of thresholds or of 4 bytes a channel.
    """
    if not input_shape or any(int(n) < 1 for n in input_shape):
        raise ValueError(f"input_shape must be like (channels, height, width), batch left out; got {input_shape}")
    costs: list[LayerCost] = []
    hooks = []
    for name, module in model.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue

        def record(module: nn.Module, _inputs: tuple, output: Tensor, name: str = name) -> None:
            costs.append(_cost(name, module, output))

        hooks.append(module.register_forward_hook(record))
    training = model.training
    parameter = next(model.parameters())
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, *input_shape, dtype=parameter.dtype, device=parameter.device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return Summary(tuple(costs))
