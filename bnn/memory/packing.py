"""What quantized layers save for the backward pass, packed: k bits for an input of 2^k values, one for a mask."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bnn.layers.base import QuantLayer
from bnn.memory.bits import PackedCodes, PackedTensor
from bnn.planes import Planes, Term, code_bits
from bnn.quantizers.base import Quantizer

Packed = PackedTensor | PackedCodes
# More than bits of a byte are not worth it.
_MOST_BITS = 8


@dataclass
class Count:
    """Bytes of tensors, as plain autograd keeps them and as they are kept."""

    plain: int = 0
    packed: int = 0

    @property
    def ratio(self) -> float:
        """How many times less; 1 if there was nothing to pack."""
        return self.plain / self.packed if self.packed else 1.0


class ActivationPacking:
    """Counts what was packed, and takes the packing away again. A context manager that calls `remove` at its end.

    binarized: of inputs of few values and the boolean masks of their quantizers, since the last `reset()`.
    windows: of the inputs that Hardtanh and ReLU keep, of which they need to know only where they pass the gradient.
    layers: how many quantized layers pack.
    """

    def __init__(self, layers: Sequence[QuantLayer], hooks: Sequence[Any] = ()):
        self._layers = layers
        self.hooks = list(hooks)
        self.reset()

    def reset(self) -> None:
        """Begin to count at 0."""
        self.binarized = Count()
        self.windows = Count()

    @property
    def layers(self) -> int:
        """Number of quantized layers that pack what they save."""
        return len(self._layers)

    def remove(self) -> None:
        """Let everything be saved in full again."""
        for layer in self._layers:
            layer.saving = None
        for hook in self.hooks:
            hook.remove()

    def __enter__(self) -> "ActivationPacking":
        return self

    def __exit__(self, *_error: object) -> None:
        self.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> "ActivationPacking":
        return self  # a copy of a layer counts here too

    def pack(self, tensor: Tensor) -> Tensor | Packed:
        """Pack and count a tensor of two values; one that cannot be packed stays."""
        return _counted(tensor, PackedTensor.of(tensor), self.binarized)

    def pack_codes(self, tensor: Tensor, values: Tensor) -> Tensor | Packed:
        """Pack and count a tensor of these values; one that cannot be packed stays."""
        return _counted(tensor, PackedCodes.of(tensor, values), self.binarized)

    def pack_window(self, tensor: Tensor, low: float, high: float) -> Tensor | Packed:
        """Pack and count where a tensor lies strictly between two bounds; one that cannot be packed stays."""
        return _counted(tensor, PackedTensor.window(tensor, low, high), self.windows)


def _counted(tensor: Tensor, packed: Packed | None, count: Count) -> Tensor | Packed:
    if packed is None:
        return tensor
    count.plain += tensor.numel() * tensor.element_size()
    count.packed += packed.nbytes
    return packed


@dataclass(frozen=True)
class LayerSaving:
    """How one layer saves. two_valued: the quantized input has two values; signs: they are -1 and +1.

    few_valued: its values are those of the quantizer's planes, which have one scale for the whole tensor.
    """

    packing: ActivationPacking
    two_valued: bool
    signs: bool
    few_valued: bool

    def of_quantizer(self) -> saved_tensors_hooks:
        """Hooks around the input quantizer: its boolean masks become bits."""
        return saved_tensors_hooks(
            lambda tensor: self.packing.pack(tensor) if tensor.dtype == torch.bool else tensor, _unpack
        )

    def of_operation(self, quantizer: Quantizer, quantized: Tensor, weight: Tensor, pad: float) -> saved_tensors_hooks:
        """Hooks around the linear operation: its input becomes bits, also when padded by a value it has, or cast."""

        def is_input(tensor: Tensor) -> bool:
            if tensor.data_ptr() == quantized.data_ptr() and tensor.numel() == quantized.numel():
                return True
            same = tensor.shape == quantized.shape or (
                pad != 0 and tensor.ndim == quantized.ndim and tensor.shape[:2] == quantized.shape[:2]
            )
            return same and tensor.is_floating_point() and tensor.shape != weight.shape

        def pack(tensor: Tensor) -> Tensor | Packed:
            if not is_input(tensor):
                return tensor
            if self.two_valued and (pad == 0 or self.signs):
                return self.packing.pack(tensor)
            if self.few_valued and pad == 0:
                values = _values(quantizer, quantized)
                return tensor if values is None else self.packing.pack_codes(tensor, values)
            return tensor

        return saved_tensors_hooks(pack, _unpack)


def _unpack(saved: Tensor | Packed) -> Tensor:
    return saved.unpack() if isinstance(saved, Packed) else saved


def _values(quantizer: Quantizer, like: Tensor) -> Tensor | None:
    """Return all values of the quantizer as it is now, ascending; None if they are many or differ within a tensor."""
    planes = quantizer.planes(torch.zeros(1, 1, dtype=like.dtype, device=like.device))
    if planes.bits > _MOST_BITS or any(part.scale.ndim for part in planes.parts):
        return None
    bits = code_bits(torch.arange(2**planes.bits, device=like.device), planes.bits)
    widths = [len(term.multipliers) for term in planes.terms]
    terms = tuple(
        Term(some, term.signed, term.multipliers, term.scale)
        for some, term in zip(bits.split(widths), planes.terms, strict=True)
    )
    return Planes(terms, planes.offset).value().sort().values


def _probe(layer: Any) -> tuple[bool, bool, bool]:
    """Return `two_valued`, `signs` and `few_valued` of a layer, found by quantizing some numbers as in training."""
    quantizer = copy.deepcopy(layer.input_quantizer).train()
    channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    device, dtype = layer.weight.device, layer.weight.dtype
    generator = torch.Generator(device).manual_seed(0)
    shape = (64, channels) + (4,) * (layer.weight.ndim - 2)
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        values = quantizer(torch.randn(shape, generator=generator, device=device, dtype=dtype)).unique()
        try:
            known = _values(quantizer, values)
        except (RuntimeError, ValueError):  # it takes its channels alone
            known = None
    few = known is not None and bool(torch.isin(values, known).all())
    return len(values) <= 2, set(values.tolist()) <= {-1.0, 1.0}, few


def _window(module: nn.Module) -> tuple[float, float] | None:
    """Return the bounds between which an activation passes the gradient unchanged, and nothing elsewhere."""
    if isinstance(module, nn.Hardtanh):  # and ReLU6
        return float(module.min_val), float(module.max_val)
    if isinstance(module, nn.ReLU):
        return 0.0, math.inf
    return None


class _Window:
    """The hooks of one activation; a class, so that a model that packs can be saved whole."""

    def __init__(self, packing: ActivationPacking, low: float, high: float):
        self.packing, self.low, self.high = packing, low, high
        self.open: list[saved_tensors_hooks] = []

    def enter(self, _module: nn.Module, _inputs: Any) -> None:
        hooks = saved_tensors_hooks(self._pack, _unpack)
        hooks.__enter__()
        self.open.append(hooks)

    def leave(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        if self.open:
            self.open.pop().__exit__()

    def _pack(self, tensor: Tensor) -> Tensor | Packed:
        return self.packing.pack_window(tensor, self.low, self.high) if tensor.is_floating_point() else tensor

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"open": []}  # what a forward is in the middle of is no state


def _pack_window(module: nn.Module, packing: ActivationPacking, low: float, high: float) -> list[Any]:
    """Hook an activation so that what it saves is packed; returns the handles."""
    window = _Window(packing, low, high)
    return [
        module.register_forward_pre_hook(window.enter),
        module.register_forward_hook(window.leave, always_call=True),
    ]


def pack_activations(model: nn.Module) -> ActivationPacking:
    """Keep for the backward pass as bits what bits can hold; gradients stay the same, bit for bit.

    Autograd keeps a binarized input as floats and the window of its straight-through estimator as bytes, 40 bits an
    element; packed they are 2. Of the floats that Hardtanh, ReLU6 and ReLU keep, only the window is needed: 1 bit for
    32. An input of k bits, k at most 8, takes k of them, where its quantizer trains with the values of its planes
    (found by a probe), with one scale for the whole tensor; boolean masks of any input quantizer take 1. A gradient
    that needs x itself (ApproxSign's, LSQ's) keeps it in full. It costs time, for packing in the forward and unpacking
    in the backward pass.

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
        layer.saving = LayerSaving(packing, *_probe(layer))
    for module in model.modules():
        bounds = _window(module)
        if bounds is not None:
            packing.hooks += _pack_window(module, packing, *bounds)
    return packing
