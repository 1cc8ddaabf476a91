"""What quantized layers save for the backward pass, packed: one bit for an input of two values, one for a mask."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bnn.layers.base import QuantLayer
from bnn.memory.bits import PackedTensor


class ActivationPacking:
    """Keeps the count of what packed layers saved, and takes the packing away again.

    plain_bytes, packed_bytes: of all tensors that were packed since the last `reset()`, as plain autograd keeps them,
    and as they were kept. layers: how many layers pack. A context manager that calls `remove` at its end.
    """

    def __init__(self, layers: Sequence[QuantLayer]):
        self._layers = layers
        self.reset()

    def reset(self) -> None:
        """Begin to count at 0."""
        self.plain_bytes = 0
        self.packed_bytes = 0

    @property
    def layers(self) -> int:
        """Number of layers that pack what they save."""
        return len(self._layers)

    def remove(self) -> None:
        """Let the layers save plain tensors again."""
        for layer in self._layers:
            layer.saving = None

    def __enter__(self) -> "ActivationPacking":
        return self

    def __exit__(self, *_error: object) -> None:
        self.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> "ActivationPacking":
        return self  # a copy of a layer counts here too

    def pack(self, tensor: Tensor) -> Tensor | PackedTensor:
        """Pack and count a tensor of two values; one that cannot be packed stays."""
        packed = PackedTensor.of(tensor)
        if packed is None:
            return tensor
        self.plain_bytes += tensor.numel() * tensor.element_size()
        self.packed_bytes += packed.nbytes
        return packed


@dataclass(frozen=True)
class LayerSaving:
    """How one layer saves. two_valued: the quantized input has two values; signs: they are -1 and +1."""

    packing: ActivationPacking
    two_valued: bool
    signs: bool

    def of_quantizer(self) -> saved_tensors_hooks:
        """Hooks around the input quantizer: its boolean masks become bits."""
        return saved_tensors_hooks(
            lambda tensor: self.packing.pack(tensor) if tensor.dtype == torch.bool else tensor, _unpack
        )

    def of_operation(self, quantized: Tensor, weight: Tensor, pad: float) -> saved_tensors_hooks:
        """Hooks around the linear operation: its input becomes bits, also when padded by a value it has, or cast."""

        def is_input(tensor: Tensor) -> bool:
            if tensor.data_ptr() == quantized.data_ptr() and tensor.numel() == quantized.numel():
                return True
            same = tensor.shape == quantized.shape or (
                pad != 0 and tensor.ndim == quantized.ndim and tensor.shape[:2] == quantized.shape[:2]
            )
            return same and tensor.is_floating_point() and tensor.shape != weight.shape

        packs = self.two_valued and (pad == 0 or self.signs)
        return saved_tensors_hooks(
            lambda tensor: self.packing.pack(tensor) if packs and is_input(tensor) else tensor, _unpack
        )


def _unpack(saved: Tensor | PackedTensor) -> Tensor:
    return saved.unpack() if isinstance(saved, PackedTensor) else saved


def _two_values(layer: Any) -> tuple[bool, bool]:
    """Return (whether the quantizer trains with two values only, whether those are -1 and +1), found by a probe."""
    quantizer = copy.deepcopy(layer.input_quantizer).train()
    channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    device, dtype = layer.weight.device, layer.weight.dtype
    generator = torch.Generator(device).manual_seed(0)
    shape = (64, channels) + (4,) * (layer.weight.ndim - 2)
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        values = quantizer(torch.randn(shape, generator=generator, device=device, dtype=dtype)).unique()
    return len(values) <= 2, set(values.tolist()) <= {-1.0, 1.0}


def pack_activations(model: nn.Module) -> ActivationPacking:
    """Let every quantized layer save its inputs for the backward pass as bits; gradients stay the same, bit for bit.

    Autograd keeps a binarized input as floats and the window of its straight-through estimator as bytes, 40 bits an
    element; packed they are 2. Inputs are packed where the input quantizer gives two values for the whole tensor in
    training (found by a probe), boolean masks of any input quantizer. A surrogate that needs x itself (ApproxSign)
    keeps it in full. It costs time, for packing in the forward and unpacking in the backward pass.

        with pack_activations(model):
            loss = criterion(model(x), y)
            loss.backward()

    Returns a handle that counts bytes and has `remove()`. Other hooks on saved tensors (save_on_cpu) do not see what is
    packed. ValueError if no layer of the model quantizes its inputs.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, QuantLayer) and getattr(module, "input_quantizer", None) is not None
    ]
    layers = [layer for layer in layers if layer.input_quantizer.packable]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layer with an input quantizer: there is nothing to pack")
    packing = ActivationPacking(layers)
    for layer in layers:
        layer.saving = LayerSaving(packing, *_two_values(layer))
    return packing
