"""What quantized layers share: their quantizers, and an evaluation whose sums are exact integers.

In training a layer convolves the quantized floats. In evaluation it convolves the integer levels instead, which
float32 (or float64, where sums pass 2^24) holds exactly, and applies the scales to the integer sums:

    y = sum_t scale[t] * dot[t]   (in the order of the terms; then XNOR-Net's K, then the bias)

The packed network does the same operations in the same order, so the two agree bit for bit wherever integers are
fed in. Rounding inside a float convolution of +-alpha would differ from machine to machine.

So an evaluation does not follow autocast, whose floats of 16 bits round sums beyond 256 or 2048: it takes its input as
float32, and under autocast returns float32. A layer that is itself of 16 bits (`model.half()`) sums and scales in
float32 and rounds its output once.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bnn.planes import Planes, Term
from bnn.quantizers.base import Quantizer, checked_planes, checked_values
from bnn.quantizers.precision import is_autocast, without_autocast

QuantizerFactory = Callable[..., Quantizer]

# Integers up to here are exact in float32.
_EXACT_FLOAT32 = 2**24


class _ExactValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, exact: Tensor) -> Tensor:
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def make_quantizer(factory: QuantizerFactory, role: str, like: Tensor | None = None, **facts: int) -> Quantizer:
    """Return a quantizer of its own for one layer; TypeError if given an instance, which layers would share.

    like: the layer's weight, whose device and dtype the quantizer's parameters take.
    facts: what the layer knows and a quantizer may need: `channels` (of its weight or input), `channel_axis` (0 of a
    weight) and `fan_in` (inputs of one filter). Those that the factory has a parameter for, and that functools.partial
    has not bound, are passed by name. ValueError for an input quantizer that learns something for each filter.
    """
    if isinstance(factory, torch.nn.Module):
        raise TypeError(
            f"{role} must be a factory such as {type(factory).__name__} or functools.partial(...), not an instance: "
            "an instance would be shared by every layer that is given it"
        )
    taken = inspect.signature(factory).parameters
    required = {
        name for name, p in taken.items() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    if missing := sorted(required - set(facts)):
        raise TypeError(
            f"{role}: {factory} needs {', '.join(missing)}, which this layer does not know: use functools.partial"
        )
    bound = factory.keywords if isinstance(factory, functools.partial) else {}
    quantizer = factory(**{name: fact for name, fact in facts.items() if name in taken and name not in bound})
    if not isinstance(quantizer, Quantizer):
        raise TypeError(f"{role} must make a bnn.quantizers.Quantizer, got {type(quantizer).__name__}")
    if quantizer.for_weights and facts.get("channel_axis", 0) != 0:
        raise ValueError(
            f"{role}: {type(quantizer).__name__} learns scales of output channels, so it is for weights only"
        )
    if like is None:
        return quantizer
    # On the meta device, where a layer waits for its weight, the start values of its quantizers would be lost.
    return quantizer.to(None if like.is_meta else like.device, like.dtype)


def check_pad_value(pad_value: float) -> float:
    """Return pad_value as a float if it is 0, +1 or -1, else raise ValueError."""
    if pad_value not in (0, 1, -1):
        raise ValueError(f"pad_value must be 0, +1 or -1, got {pad_value!r}")
    return float(pad_value)


class QuantLayer:
    """Mixin of the quantized layers: everything but the linear operation itself."""

    weight: Tensor
    bias: Any  # Tensor | None; torch's layers declare it as Tensor
    training: bool
    weight_quantizer: Quantizer
    input_quantizer: Quantizer
    input_scale: bool
    _channels: tuple[int, int, int]  # of outputs, of inputs, and the axis of the inputs'
    # Set by bnn.memory.pack_activations: how what the backward pass needs is kept.
    saving: Any = None
    # Set by bnn.converter: gives the planes of the weight, by a function that makes them of the layer.
    kept_planes: Callable[[Callable[["QuantLayer"], Planes]], Planes] | None = None

    def _make_quantizers(
        self, weight_quantizer: QuantizerFactory, input_quantizer: QuantizerFactory, outputs: int, inputs: int,
        input_axis: int,
    ) -> None:  # fmt: skip
        """Make both quantizers, of as many output and input channels; the input has its channels on `input_axis`."""
        self._channels = outputs, inputs, input_axis
        weight = self.weight
        self.weight_quantizer = make_quantizer(
            weight_quantizer,
            "weight_quantizer",
            weight,
            channels=outputs,
            channel_axis=0,
            fan_in=weight.numel() // outputs,
        )
        self.input_quantizer = make_quantizer(
            input_quantizer, "input_quantizer", weight, channels=inputs, channel_axis=input_axis
        )

    def set_quantizers(self, weight_quantizer: QuantizerFactory, input_quantizer: QuantizerFactory) -> None:
        """Take new quantizers, made by these factories as the layer's own were; the latent weight stays.

        What the old ones learned is lost. TypeError, ValueError as of the constructor.
        """
        self._make_quantizers(weight_quantizer, input_quantizer, *self._channels)
        for quantizer in (self.weight_quantizer, self.input_quantizer):
            quantizer.train(self.training)
        self._check_input_scale()

    def _operate(self, x: Tensor, weight: Tensor, bias: Tensor | None, pad: float) -> Tensor:
        """Apply the bare linear operation; `pad` is what lies outside the map."""
        raise NotImplementedError

    def _input_scale(self, x: Tensor) -> Tensor:
        """Return XNOR-Net's K of the input, shaped to multiply the output."""
        raise NotImplementedError

    def filters(self, weight: Tensor) -> Tensor:
        """Return a tensor of the weight's shape as the quantizer sees it: axis 0 are the output channels."""
        return weight

    def from_filters(self, filters: Tensor) -> Tensor:
        """Undo `filters`."""
        return filters

    def _by_channel(self, values: Tensor) -> Tensor:
        """Shape a value for each output channel to go with the output; here the channels are the last axis."""
        return values

    def _check_input(self, x: Tensor) -> None:
        """ValueError if the layer would take this input for something else."""

    def _pad(self) -> float:
        return 0.0

    def _check_input_scale(self) -> None:
        if self.input_scale and not self.input_quantizer.packable:
            raise ValueError("input_scale restores what a quantized input lost: it needs an input_quantizer")

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output; see the module for how training and evaluation compute the same numbers."""
        self._check_input(x)
        if x.dtype == torch.uint8:  # pixels
            x = x.to(self.weight.dtype)
        packable = self.weight_quantizer.packable, self.input_quantizer.packable
        if self.training or not any(packable):
            return self._trained(x)
        self.weight_quantizer.before_evaluation()
        self.input_quantizer.before_evaluation()
        if is_autocast(x.device):  # it made x what it is; the layer takes its own dtype
            x = x.to(torch.promote_types(x.dtype, self.weight.dtype))
        with without_autocast(x.device):
            return self._evaluated(x) if all(packable) else self._trained(x)

    def _evaluated(self, x: Tensor) -> Tensor:
        """Return the output by exact sums of integers, with the gradients of training."""
        with torch.no_grad():
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            exact = self._finish(self._exact(wide), wide).to(x.dtype)
        parameters = torch.nn.Module.parameters(self)  # type: ignore[arg-type]
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
            return _ExactValue.apply(self._trained(x), exact)
        return exact

    def _trained(self, x: Tensor) -> Tensor:
        """Return the output by the quantized floats."""
        bias = None if self.input_scale else self.bias
        weight = self.quantized_weight()
        if self.saving is None:
            y = self._operate(self._quantized_input(x), weight, bias, self._pad())
        else:
            with self.saving.of_quantizer():
                quantized = self._quantized_input(x)
            with self.saving.of_operation(self.input_quantizer, quantized, weight, self._pad()):
                y = self._operate(quantized, weight, bias, self._pad())
        return self._finish(y, x) if self.input_scale else y

    def quantized_weight(self) -> Tensor:
        """Return the quantized weight as filters, with the quantizer's gradient."""
        return checked_values(self.weight_quantizer, self.filters(self.weight))

    def _quantized_input(self, x: Tensor) -> Tensor:
        return checked_values(self.input_quantizer, x)

    def _finish(self, y: Tensor, x: Tensor) -> Tensor:
        if self.input_scale:
            y = y * self._input_scale(x)
        if self.bias is not None:
            y = y + self._by_channel(self.bias)
        return y

    def _exact(self, x: Tensor) -> Tensor:
        inputs = checked_planes(self.input_quantizer, x)
        if self._pad() != 0 and len(inputs.parts) != 1:
            raise ValueError(f"pad_value {self._pad():+g} needs an input quantizer of one term: use 0")
        total: Tensor | None = None
        for term in weight_planes(self).terms:
            scale = term.scale if term.scale.ndim == 0 else self._by_channel(term.scale)
            for given in inputs.parts:
                part = self.dot(given, term).to(x.dtype) * (scale * given.channel_scale(x.ndim))
                total = part if total is None else total + part
        assert total is not None
        return total

    def dot(self, given: Term, term: Term) -> Tensor:
        """Return the integer sums of two terms' levels, as floats that hold them exactly."""
        largest = given.max_level * term.max_level * term.bits[0, 0].numel()
        dtype = torch.float32 if largest < _EXACT_FLOAT32 else torch.float64
        y = self._operate(given.levels(dtype), term.levels(dtype), None, self.pad_level(given))
        # A convolution by transforms (Winograd, FFT) is off by less than a half.
        return y.round_()

    def pad_level(self, given: Term) -> float:
        """Return the integer level of the input that stands for pad_value; ValueError if there is none."""
        value = self._pad()
        if value == 0:
            return 0.0
        if given.zero_points is not None:
            raise ValueError(f"pad_value {value:+g} cannot be had of inputs with zero points: use 0")
        found = [level for level in given.possible_levels() if (level * given.scale == value).all()]
        if not found:
            raise ValueError(f"pad_value {value:+g} is not a value of {self.input_quantizer}: use 0 or one that is")
        return float(found[0])


@contextmanager
def shapes_only(network: nn.Module) -> Iterator[None]:
    """Let the quantized layers of a network skip their quantizers: outputs have the right shape, not the right numbers.

    A large weight takes longer to quantize than to multiply by, which is wasted where only the shapes are of use.
    """
    changed = []
    for layer in network.modules():
        if not isinstance(layer, QuantLayer):
            continue
        for name in ("_evaluated", "_trained"):
            if getattr(type(layer), name) is getattr(QuantLayer, name) and name not in vars(layer):
                vars(layer)[name] = functools.partial(_without_quantizers, layer)
                changed.append((layer, name))
    try:
        yield
    finally:
        for layer, name in changed:
            del vars(layer)[name]


def _without_quantizers(layer: QuantLayer, x: Tensor) -> Tensor:
    return layer._operate(x, layer.filters(layer.weight), None, 0.0)


def output_scale(given: Term, term: Term, ndim: int) -> Tensor:
    """Return the scale of a dot product of an input and a weight term, shaped for an output of `ndim` axes."""
    scale = term.scale * given.scale
    return scale if scale.ndim == 0 else scale.reshape(-1, *[1] * (ndim - 2))


def weight_planes(layer: QuantLayer) -> Planes:
    """Return the planes of a layer's weight; axis 0 are the output channels, scales have shape () or (C,).

    An offset is a term like the others. Scales are at least float32, those of the packed network.
    """
    return _made_planes(layer) if layer.kept_planes is None else layer.kept_planes(_made_planes)


def _made_planes(layer: QuantLayer) -> Planes:
    weight = layer.filters(layer.weight.detach())
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    terms = checked_planes(layer.weight_quantizer, weight).parts
    return Planes(tuple(replace(t, scale=t.scale.reshape(-1)) if t.scale.ndim > 1 else t for t in terms))
